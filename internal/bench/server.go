package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Server is a product with any number of accounts, each below /NAME/:
//
//	POST /NAME/token?life=SECONDS&delay=MS&size=BYTES&cap=N   a token
//	     /NAME/api                                            wants one
//	POST /NAME/revoke                                         kills all
//	GET  /NAME/stats                                          Stats
type Server struct {
	mu       sync.Mutex
	accounts map[string]*account
}

type account struct {
	mu     sync.RWMutex
	tokens []string
	valid  map[string]time.Time
	stats  Stats
}

// Stats are an account's.
type Stats struct {
	Exchanges int `json:"exchanges"`
	Refused   int `json:"refused"` // API calls
}

func (s *Server) account(name string) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accounts == nil {
		s.accounts = map[string]*account{}
	}
	a := s.accounts[name]
	if a == nil {
		a = &account{valid: map[string]time.Time{}}
		s.accounts[name] = a
	}
	return a
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, what, _ := strings.Cut(strings.Trim(r.URL.Path, "/"), "/")
	a := s.account(name)
	switch what {
	case "api":
		a.api(w, r)
	case "token":
		a.token(w, r)
	case "revoke":
		a.mu.Lock()
		defer a.mu.Unlock()
		clear(a.valid)
		a.tokens = nil
	case "stats":
		a.mu.RLock()
		defer a.mu.RUnlock()
		json.NewEncoder(w).Encode(a.stats)
	default:
		http.NotFound(w, r)
	}
}

func (a *account) api(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	tok, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	a.mu.RLock()
	expires, ok := a.valid[tok]
	a.mu.RUnlock()
	if r.Header.Get("X-Anonymous") == "" && (!ok || time.Now().After(expires)) {
		a.mu.Lock()
		a.stats.Refused++
		a.mu.Unlock()
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"error":"invalid_token"}`)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"id":1,"name":"web-01"}`)
}

func (a *account) token(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(q.Get(name)); err == nil {
			return n
		}
		return otherwise
	}
	start := time.Now()
	time.Sleep(time.Duration(number("delay", 0)) * time.Millisecond)
	life, most := number("life", 3600), number("cap", 0)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stats.Exchanges++
	value := fmt.Sprintf("%0*d", number("size", 40), a.stats.Exchanges)
	a.tokens = append(a.tokens, value)
	a.valid[value] = start.Add(time.Duration(life)*time.Second + 50*time.Millisecond)
	if most > 0 && len(a.tokens) > most {
		delete(a.valid, a.tokens[0])
		a.tokens = slices.Delete(a.tokens, 0, 1)
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":%d}`, value, life)
}
