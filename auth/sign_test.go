package auth_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// signing is a provider whose tokens come with a key, made once, and whose endpoint at url wants a nonce in each
// request.
type signing struct {
	product
	url string

	at    sync.Mutex
	nonce string
	seen  []string // status and body of each response that the provider was shown
	off   bool
}

func (p *signing) Signs() bool { return !p.off }

func (p *signing) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	if err := p.post(ctx); err != nil {
		return nil, err
	}
	tok, err := p.product.Exchange(ctx, prev)
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("K%d", p.calls.Load())
	if prev != nil && auth.SigningKey(prev) != "" {
		key = auth.SigningKey(prev)
	}
	return auth.WithSigningKey(tok, key), nil
}

func (p *signing) post(ctx context.Context) error {
	p.at.Lock()
	nonce := p.nonce
	p.at.Unlock()
	req, err := http.NewRequestWithContext(ctx, "POST", p.url, strings.NewReader(nonce))
	if err != nil {
		return err
	}
	resp, err := ctx.Value(oauth2.HTTPClient).(*http.Client).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); resp.StatusCode != 200 {
		return errors.Join(err, &auth.Error{Op: "exchange", Status: resp.StatusCode, Err: fmt.Errorf("%w: %q", auth.ErrProtocol, b)})
	}
	return nil
}

func (p *signing) Revoke(ctx context.Context, _ *oauth2.Token) error { return p.post(ctx) }

func (p *signing) CodeFlow() *auth.CodeFlow {
	return &auth.CodeFlow{Redeem: func(ctx context.Context, _, _ string) (*oauth2.Token, error) { return p.Exchange(ctx, nil) }}
}

func (p *signing) Sign(req *http.Request, tok *oauth2.Token) error {
	if auth.SigningKey(tok) == "" {
		return errors.New("no key")
	}
	req.Header.Set("Signature", auth.SigningKey(tok)+" "+tok.AccessToken)
	return nil
}

func (p *signing) Challenged(resp *http.Response, body []byte) bool {
	p.at.Lock()
	defer p.at.Unlock()
	p.seen = append(p.seen, fmt.Sprint(resp.StatusCode, string(body)))
	p.nonce = resp.Header.Get("Nonce")
	return string(body) == "nonce"
}

// endpoint wants a nonce that works once, or is broken and never satisfied.
func endpoint(t *testing.T, broken bool) (url string, requests func() int) {
	var mu sync.Mutex
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		ok := string(b) == fmt.Sprint("N", n) && n > 0 && !broken
		n++
		if !ok {
			w.Header().Set("Nonce", fmt.Sprint("N", n))
			w.WriteHeader(400)
			io.WriteString(w, "nonce")
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// An exchange, a login or a logout that was challenged is made once more.
func TestChallengedExchange(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(*auth.Session) error{
		"exchange": func(s *auth.Session) error { _, err := s.Token(t.Context()); return err },
		"login":    func(s *auth.Session) error { return s.Redeem(t.Context(), "code", "") },
		"logout": func(s *auth.Session) error {
			_, err := s.Token(t.Context())
			return errors.Join(err, s.Revoke(t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, requests := endpoint(t, false)
			p := &signing{url: url}
			want := map[string]int{"exchange": 2, "login": 2, "logout": 4}[name]
			if err := do(newSession(t, p, nil)); err != nil || requests() != want || len(p.seen) != want || p.seen[0] != "400nonce" {
				t.Errorf("%v after %d requests; the provider saw %q", err, requests(), p.seen)
			}
			url, requests = endpoint(t, true)
			p = &signing{url: url}
			if err := do(newSession(t, p, nil)); !errors.Is(err, auth.ErrProtocol) || name != "logout" && requests() != 2 {
				t.Errorf("an endpoint that always challenges: %v after %d requests", err, requests())
			}
			url, requests = endpoint(t, false)
			p = &signing{url: url, off: true}
			if err := do(newSession(t, p, nil)); !errors.Is(err, auth.ErrProtocol) || len(p.seen) > 0 {
				t.Errorf("a provider that does not sign: %v after %d requests; it saw %q", err, requests(), p.seen)
			}
		})
	}
}

// The key comes with the token and is kept with it, in the store too.
func TestSigningKey(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(srv.Close)
	key, err := auth.ParseKey(strings.Repeat("A", 43) + "=")
	if err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string]auth.Store{"plain": new(auth.Memory), "encrypted": auth.Encrypt(new(auth.Memory), key)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signed := func(s *auth.Session) string {
				t.Helper()
				tok, err := s.Token(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				req := httptest.NewRequest("GET", "/", nil)
				if err := s.Sign(req, tok); err != nil {
					t.Fatal(err)
				}
				j, _ := json.Marshal(tok)
				for _, text := range []string{fmt.Sprintf("%v %+v %#v", tok, tok, *tok), string(j)} {
					if strings.Contains(text, "K1") {
						t.Errorf("the token is printed with its key: %s", text)
					}
				}
				return req.Header.Get("Signature")
			}
			first, second := &signing{url: srv.URL}, &signing{url: srv.URL}
			a := newSession(t, first, &auth.Options{Store: store})
			b := newSession(t, second, &auth.Options{Store: store})
			if one, two := signed(a), signed(b); one != "K1 T1" || two != "K1 T1" || second.calls.Load() != 0 {
				t.Errorf("the sessions sign %q and %q after %d and %d exchanges", one, two, first.calls.Load(), second.calls.Load())
			}
			old, _ := a.Token(t.Context())
			second.made = 1
			b.Invalidate(old)
			if two := signed(b); two != "K1 T2" {
				t.Errorf("after an exchange with the stored key: %q", two)
			}
			a.Invalidate(old)
			if one := signed(a); one != "K1 T2" {
				t.Errorf("after the other's exchange: %q", one)
			}
		})
	}
}

func TestSessionSigns(t *testing.T) {
	t.Parallel()
	off := newSession(t, &signing{off: true}, nil)
	none := newSession(t, new(product), nil)
	for _, s := range []*auth.Session{off, none} {
		req := httptest.NewRequest("GET", "/", nil)
		if err := s.Sign(req, new(oauth2.Token)); err != nil || len(req.Header) > 0 || s.Signs() || s.Challenged(response(401, "nonce"), []byte("nonce")) {
			t.Errorf("a session whose provider does not sign: %v, %v, %v", s.Signs(), err, req.Header)
		}
	}
	p := new(signing)
	s := newSession(t, p, &auth.Options{Connector: "a", Provider: "signing"})
	err := s.Sign(httptest.NewRequest("GET", "/", nil), new(oauth2.Token))
	if e, ok := errors.AsType[*auth.Error](err); !ok || e.Connector != "a" || e.Provider != "signing" || e.Op != "sign" || !s.Signs() {
		t.Errorf("%#v", err)
	}
	if !s.Challenged(response(401, ""), []byte("nonce")) || s.Challenged(response(200, ""), []byte("nonce")) || len(p.seen) != 2 {
		t.Errorf("the provider saw %q", p.seen)
	}
}
