package acme_test

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/docs/internal/acme"
	"github.com/itsmauth/itsmauth/providers"
)

// A desk emulates Acme Desk. It refuses what the product refuses.
type desk struct{ sessions sync.Map }

func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/session" {
		var login struct{ User, Time, Signature string }
		mac := hmac.New(sha256.New, []byte("s3cret"))
		json.NewDecoder(r.Body).Decode(&login)
		fmt.Fprint(mac, login.User, login.Time)
		if login.User != "sync" || login.Signature != fmt.Sprintf("%x", mac.Sum(nil)) {
			http.Error(w, `{"message":"wrong signature"}`, http.StatusUnauthorized)
			return
		}
		session := rand.Text()
		d.sessions.Store(session, true)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"session":%q}`, session)
		return
	}
	if _, valid := d.sessions.Load(r.Header.Get("X-Acme-Session")); !valid {
		http.Error(w, `{"message":"no session"}`, http.StatusUnauthorized)
	} else if r.URL.Path != "/tickets" {
		http.NotFound(w, r)
	} else {
		io.WriteString(w, `["the printer is on fire"]`)
	}
}

func TestProvider(t *testing.T) {
	d := new(desk)
	s := httptest.NewServer(d)
	defer s.Close()
	get := func(path string) func() *http.Request {
		return func() *http.Request { r, _ := http.NewRequest("GET", s.URL+path, nil); return r }
	}
	open := func(t *testing.T) auth.Provider {
		base, _ := url.Parse(s.URL)
		p, err := acme.New(acme.Provider{User: "sync", Key: auth.SecretString("s3cret")}, auth.Env{BaseURL: base})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	authtest.TestProvider(t, open, authtest.Product{
		Good:    get("/tickets"),
		Refused: get("/no-such-ticket"),
		Kill:    func(session string) { d.sessions.Delete(session) },
		Secrets: []string{"s3cret"},
	})
}

func Example() {
	s := httptest.NewServer(new(desk))
	defer s.Close()
	os.Setenv("ACME_KEY", "s3cret")
	yaml := strings.ReplaceAll(`
version: 1
connectors:
  desk:
    provider: acme
    base_url: https://desk.example.com
    user: sync
    key: ${env:ACME_KEY}
`, "https://desk.example.com", s.URL)

	conns, err := config.Parse("itsmauth.yaml", []byte(yaml), config.WithProvider(providers.Define("acme", acme.New)))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conns.Close()
	desk, err := conns.Get("desk")
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := desk.Client().Get(desk.BaseURL.String() + "/tickets")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	tickets, _ := io.ReadAll(resp.Body)
	fmt.Printf("%s\n", tickets)
	// Output: ["the printer is on fire"]
}

// TestPage tests that the page shows this package's code, and that the provider is as short as it says.
func TestPage(t *testing.T) {
	page, provider := read(t, "../../writing-a-provider.md"), read(t, "acme.go")
	dedent := func(s string) string { return regexp.MustCompile("(?m)^\t+").ReplaceAllString(s, "") }
	code := dedent(provider + read(t, "acme_test.go"))
	for _, block := range regexp.MustCompile("(?ms)^```(?:go|yaml)\n(.*?)^```").FindAllStringSubmatch(page, -1) {
		if !strings.Contains(code, dedent(block[1])) {
			t.Errorf("this package does not have what the page shows:\n%s", block[1])
		}
	}
	if !strings.Contains(page, "```go\n"+provider+"```") {
		t.Error("the page does not show acme.go as it is")
	}
	if n := strings.Count(provider, "\n"); n >= 60 {
		t.Errorf("the provider has %d lines", n)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
