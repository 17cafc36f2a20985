package auth_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// product is a Provider whose tokens are numbered.
type product struct {
	mu       sync.Mutex
	made     int
	lifetime time.Duration
	delay    time.Duration
	refresh  bool                      // hand out refresh tokens
	fail     func(n int) error         // n counts calls from 1
	answer   func(n int) *oauth2.Token // instead of the numbered one
	calls    atomic.Int64
	running  atomic.Int64
	prevs    []*oauth2.Token
}

func (p *product) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	if p.running.Add(1) > 1 {
		panic("two exchanges at once")
	}
	defer p.running.Add(-1)
	n := int(p.calls.Add(1))
	select {
	case <-time.After(p.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prevs = append(p.prevs, prev)
	if p.fail != nil {
		if err := p.fail(n); err != nil {
			return nil, err
		}
	}
	if p.answer != nil {
		return p.answer(n), nil
	}
	p.made++
	tok := &oauth2.Token{AccessToken: fmt.Sprintf("T%d", p.made), ExpiresIn: int64(p.lifetime / time.Second)}
	if p.refresh {
		tok.RefreshToken = fmt.Sprintf("R%d", p.made)
	}
	return tok, nil
}

func (p *product) Header(tok *oauth2.Token) http.Header {
	return http.Header{"Authorization": {"Bearer " + tok.AccessToken}}
}

func (p *product) Rejects(resp *http.Response, body []byte) bool {
	return resp.StatusCode == 401 && strings.Contains(string(body), "token")
}

func (p *product) setFail(f func(int) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = f
}

func newSession(t *testing.T, p auth.Provider, o *auth.Options) *auth.Session {
	t.Helper()
	s := auth.New(p, o)
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

// get returns the access token, or fails.
func get(t *testing.T, s *auth.Session) string {
	t.Helper()
	tok, err := s.Token(t.Context())
	if err != nil {
		t.Fatalf("Token: %v", err)
	}
	return tok.AccessToken
}

func response(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

func TestLifecycle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour, delay: 200 * time.Millisecond}
		s := newSession(t, p, nil)
		if got := get(t, s); got != "T1" {
			t.Fatalf("first token %s", got)
		}
		time.Sleep(54 * time.Minute)
		if got := get(t, s); got != "T1" || p.calls.Load() != 1 {
			t.Fatalf("fresh: %s after %d exchanges", got, p.calls.Load())
		}
		time.Sleep(5 * time.Minute) // stale
		start := time.Now()
		if got := get(t, s); got != "T1" || time.Since(start) != 0 {
			t.Fatalf("stale: %s after %s", got, time.Since(start))
		}
		time.Sleep(time.Second)
		if got := get(t, s); got != "T2" || p.calls.Load() != 2 {
			t.Fatalf("refreshed: %s after %d exchanges", got, p.calls.Load())
		}
		time.Sleep(2 * time.Hour) // expired
		start = time.Now()
		if got := get(t, s); got != "T3" || time.Since(start) != p.delay {
			t.Fatalf("expired: %s after %s", got, time.Since(start))
		}
	})
}

func TestOneExchangeForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour, delay: time.Second}
		s := newSession(t, p, nil)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if tok, err := s.Token(t.Context()); err != nil || tok.AccessToken != "T1" {
					t.Errorf("%v, %v", tok, err)
				}
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := s.Token(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 50*time.Millisecond {
			t.Errorf("own deadline: %v after %s", err, time.Since(start))
		}
		wg.Wait()
		if n := p.calls.Load(); n != 1 {
			t.Errorf("%d exchanges", n)
		}
	})
}

// The exchange goes on for the others when the caller who began it leaves.
func TestLeaderLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour, delay: time.Second}
		s := newSession(t, p, nil)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(100 * time.Millisecond); cancel() }()
		if _, err := s.Token(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if got := get(t, s); got != "T1" || p.calls.Load() != 1 {
			t.Errorf("%s after %d exchanges", got, p.calls.Load())
		}
	})
}

func TestLifetimes(t *testing.T) {
	t.Parallel()
	jwt := "e30.eyJpYXQiOjEwMDAsImV4cCI6MTYwMH0.x" // exp - iat = 600
	for name, test := range map[string]struct {
		tok  oauth2.Token
		want time.Duration
	}{
		"expires_in":  {oauth2.Token{AccessToken: jwt, ExpiresIn: 60}, time.Minute},
		"expiry":      {oauth2.Token{AccessToken: jwt, Expiry: time.Date(2000, 1, 1, 0, 2, 0, 0, time.UTC)}, 2 * time.Minute},
		"jwt":         {oauth2.Token{AccessToken: jwt}, 10 * time.Minute},
		"absurd":      {oauth2.Token{AccessToken: "x", ExpiresIn: 1 << 60}, time.Hour},
		"negative":    {oauth2.Token{AccessToken: "x", ExpiresIn: -1}, time.Hour},
		"none at all": {oauth2.Token{AccessToken: "x"}, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				s := newSession(t, &product{answer: func(int) *oauth2.Token { return &test.tok }}, nil)
				tok, err := s.Token(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if got := tok.Expiry.Sub(start); got != test.want {
					t.Errorf("lifetime %s, want %s", got, test.want)
				}
			})
		})
	}
}

func TestTokenIsWithoutRefreshToken(t *testing.T) {
	t.Parallel()
	s := newSession(t, &product{lifetime: time.Hour, refresh: true}, nil)
	tok, err := s.Token(t.Context())
	if err != nil || tok.RefreshToken != "" {
		t.Errorf("%q, %v", tok.RefreshToken, err)
	}
}

// unlocked is a store that can be read, but has no lock to give: a replica, or one with a full disk.
type unlocked struct{ auth.Memory }

func (*unlocked) Lock(context.Context, string) (func(), error) { return nil, auth.ErrStore }

// With such a store each process is on its own, and kills the others' tokens: forced exchanges have the
// limits that they always have.
func TestStoreWithoutLock(t *testing.T) {
	t.Parallel()
	for name, accepted := range map[string]bool{"accepted, then killed": true, "never accepted": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &product{lifetime: time.Hour}
				s := newSession(t, p, &auth.Options{Store: new(unlocked)})
				for range 6000 {
					tok, err := s.Token(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if accepted {
						s.Rejected(response(200, ""), tok)
					}
					s.Rejected(response(401, "token"), tok)
					time.Sleep(10 * time.Millisecond)
				}
				if n := p.calls.Load(); n > 16 {
					t.Errorf("%d exchanges in a minute", n)
				}
			})
		})
	}
}

// slowUnlock is a store whose locks are slow to give back.
type slowUnlock struct{ auth.Memory }

func (s *slowUnlock) Lock(ctx context.Context, key string) (func(), error) {
	unlock, err := s.Memory.Lock(ctx, key)
	return func() { time.Sleep(time.Second); unlock() }, err
}

func TestAdoptedIsAnsweredBeforeUnlock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &auth.Options{Store: new(slowUnlock)}
		p := &product{lifetime: time.Hour, delay: time.Second}
		a, b := newSession(t, p, o), newSession(t, p, o)
		go a.Token(t.Context())
		synctest.Wait()
		start := time.Now()
		if get(t, b); time.Since(start) != 2*time.Second { // a's exchange and unlock
			t.Errorf("after %s", time.Since(start))
		}
	})
}

// A background flight meets a store that is away, slowly, and the token expires meanwhile.
func TestExpiredMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFallible()
		s := newSession(t, &product{lifetime: time.Hour}, &auth.Options{Store: asStore{f}})
		get(t, s)
		time.Sleep(time.Hour - time.Second)
		f.away.Store(true)
		f.slow = 5 * time.Second
		get(t, s)
		time.Sleep(2 * time.Second)
		if got := get(t, s); got != "T2" {
			t.Error(got)
		}
	})
}

// expendable is a product whose refresh token nobody misses.
type expendable struct{ *product }

func (expendable) Refresh() auth.Refresh { return auth.Refresh{Expendable: true} }

// TestAnswerWithoutRefreshToken holds that it keeps the old one, unless that was refused and the full
// grant made.
func TestAnswerWithoutRefreshToken(t *testing.T) {
	t.Parallel()
	for want, of := range map[string]func(*product) auth.Provider{
		"R1": func(p *product) auth.Provider { return p },
		"":   func(p *product) auth.Provider { return expendable{p} },
	} {
		synctest.Test(t, func(t *testing.T) {
			p := &product{answer: func(n int) *oauth2.Token {
				tok := &oauth2.Token{AccessToken: fmt.Sprint("T", n), ExpiresIn: 3600}
				if n == 1 {
					tok.RefreshToken = "R1"
				}
				return tok
			}}
			s := newSession(t, of(p), nil)
			for range 3 {
				get(t, s)
				time.Sleep(2 * time.Hour)
			}
			if p.prevs[1].RefreshToken != "R1" || p.prevs[2].RefreshToken != want {
				t.Errorf("second exchange with %q, third with %q, want R1 and %q", p.prevs[1].RefreshToken, p.prevs[2].RefreshToken, want)
			}
		})
	}
}

// TestRejectedCompressed is of callers who ask for gzip themselves, as behind httputil.ReverseProxy.
func TestRejectedCompressed(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 256<<10)
	rand.NewChaCha8([32]byte{}).Read(noise)
	zip := func(s string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		io.WriteString(z, s)
		z.Close()
		return b.String()
	}
	for name, tc := range map[string]struct {
		encoding, body string
		want           bool
	}{
		"gzip":             {"gzip", zip("token"), true},
		"an older name":    {"X-Gzip", zip("token"), true},
		"of the request":   {"gzip", zip("wrong password"), false},
		"more than we see": {"gzip", zip("token" + hex.EncodeToString(noise)), true},
		"expands beyond":   {"gzip", zip(strings.Repeat(" ", 64<<10) + "token"), false},
		"only said":        {"gzip", "token", true},
		"empty":            {"gzip", "", false},
		"unknown":          {"br", zip("token"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSession(t, &product{lifetime: time.Hour}, nil)
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			resp := response(401, tc.body)
			resp.Header.Set("Content-Encoding", tc.encoding)
			if got := s.Rejected(resp, tok); got != tc.want {
				t.Errorf("rejected: %v", got)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != tc.body || resp.Header.Get("Content-Encoding") != tc.encoding {
				t.Error("the caller's response was changed:", err)
			}
		})
	}
}

func TestRejected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, nil)
		old, _ := s.Token(t.Context())
		if s.Rejected(response(401, "wrong password"), old) || s.Rejected(response(200, ""), old) {
			t.Error("a response about the request drops the token")
		}
		resp := response(401, "token refused")
		if !s.Rejected(resp, old) {
			t.Error("a refused token stays")
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != "token refused" {
			t.Errorf("body is now %q", b)
		}
		if got := get(t, s); got != "T2" {
			t.Errorf("next token %s", got)
		}
		if !s.Rejected(response(401, "token"), old) || get(t, s) != "T2" {
			t.Error("a late refusal of the old token drops the new one")
		}
	})
}

// A product that refuses every token makes a handful of exchanges a minute.
func TestEndlessRefusal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, nil)
		for range 600 {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if s.Rejected(response(401, "token"), tok) {
				if tok, err = s.Token(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.Rejected(response(401, "token"), tok)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.calls.Load(); n < 4 || n > 8 {
			t.Errorf("%d exchanges in a minute", n)
		}
	})
}

// Tokens that work for a moment and are then killed elsewhere: three exchanges, then one in 5 s.
func TestKilledElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, nil)
		for range 600 {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(200, ""), tok)
			s.Rejected(response(401, "token"), tok)
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.calls.Load(); n < 12 || n > 16 {
			t.Errorf("%d exchanges in a minute, want 1 + 3 + one in 5 s", n)
		}
	})
}

// A long rest saves up no more than the row of three.
func TestKilledElsewhereAfterRest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: 24 * time.Hour}
		s := newSession(t, p, nil)
		refuse := func() {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(200, ""), tok)
			s.Rejected(response(401, "token"), tok)
		}
		refuse()
		time.Sleep(time.Hour)
		for range 100 {
			refuse()
		}
		if n := p.calls.Load(); n != 5 {
			t.Errorf("%d exchanges, want 1 + 1 + 3", n)
		}
	})
}

// An incident that is long over does not lengthen the next one's back-off.
func TestForcedBackoffIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSession(t, &product{lifetime: time.Hour}, nil)
		refused := func() (dropped bool) {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s.Rejected(response(401, "token"), tok)
		}
		for range 3000 {
			refused()
			time.Sleep(100 * time.Millisecond)
		}
		for range 24 { // hours in which all is well
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(200, ""), tok)
			time.Sleep(time.Hour)
		}
		if !refused() || refused() {
			t.Fatal("want a drop, and then a back-off")
		}
		start := time.Now()
		for !refused() {
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(start); d > 1100*time.Millisecond {
			t.Errorf("the back-off begins with %s, want 1s", d)
		}
	})
}

// What a TokenSource hands out are copies.
func TestAcceptedByCopy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSession(t, &product{lifetime: time.Hour}, nil)
		src := auth.TokenSource(t.Context(), s)
		for i, status := range []int{401, 200, 401} {
			tok, err := src.Token()
			if err != nil {
				t.Fatal(err)
			}
			if dropped := s.Rejected(response(status, "token"), tok); dropped != (status == 401) {
				t.Errorf("response %d: dropped is %t", i, dropped)
			}
		}
	})
}

// counting counts for which tokens it was asked for headers.
type counting struct {
	*product
	headers map[string]int
}

func (c counting) Header(tok *oauth2.Token) http.Header {
	c.headers[tok.AccessToken]++
	return c.product.Header(tok)
}

func TestHeaderOnceAToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(auth.Memory)
		for _, who := range []string{"who obtained it", "who adopted it"} {
			c := counting{&product{lifetime: time.Hour}, map[string]int{}}
			s := newSession(t, c, &auth.Options{Store: store})
			if _, err := s.Status(t.Context()); err != nil || len(c.headers) > 0 && who == "who obtained it" {
				t.Errorf("Status: headers of %v, %v", c.headers, err)
			}
			clear(c.headers)
			for range 3 {
				tok, err := s.Token(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				s.Header(tok)
			}
			if c.headers["T1"] != 1 {
				t.Errorf("%s: headers of %v", who, c.headers)
			}
		}
	})
}

// A server that hands out the same token again does not end in a loop.
func TestSameTokenAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{answer: func(int) *oauth2.Token { return &oauth2.Token{AccessToken: "same", ExpiresIn: 3600} }}
		s := newSession(t, p, nil)
		for range 50 {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(401, "token"), tok)
		}
		if n := p.calls.Load(); n != 2 {
			t.Errorf("%d exchanges, want 2", n)
		}
	})
}

func unavailable(int) error { return &auth.Error{Op: "exchange", Err: auth.ErrUnavailable} }

func TestFailureIsRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour, fail: func(int) error { return auth.ErrProtocol }}
		s := newSession(t, p, nil)
		var at []time.Duration
		start := time.Now()
		for range 700 {
			before := p.calls.Load()
			if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrProtocol) {
				t.Fatal(err)
			}
			if p.calls.Load() > before {
				at = append(at, time.Since(start).Round(100*time.Millisecond))
			}
			time.Sleep(100 * time.Millisecond)
		}
		want := []time.Duration{0, 1e9, 3e9, 7e9, 15e9, 31e9, 61e9}
		if fmt.Sprint(at) != fmt.Sprint(want) {
			t.Errorf("exchanges at %v, want %v", at, want)
		}
	})
}

func TestUnavailableIsTriedThrice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour, fail: func(n int) error {
			if n < 3 {
				return unavailable(n)
			}
			return nil
		}}
		s := newSession(t, p, nil)
		if got := get(t, s); got != "T1" || p.calls.Load() != 3 {
			t.Errorf("%s after %d", got, p.calls.Load())
		}
	})
}

func TestBackgroundFailureKeepsToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, nil)
		get(t, s)
		p.setFail(func(int) error { return auth.ErrProtocol })
		time.Sleep(56 * time.Minute)
		for range 200 { // of 200 s
			if got := get(t, s); got != "T1" {
				t.Fatal(got)
			}
			time.Sleep(time.Second)
		}
		if n := p.calls.Load(); n < 6 || n > 12 {
			t.Errorf("%d exchanges", n)
		}
		time.Sleep(time.Minute) // expired: a waiting caller tries at once
		before := p.calls.Load()
		if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrProtocol) || p.calls.Load() != before+1 {
			t.Errorf("%v after %d", err, p.calls.Load()-before)
		}
		p.setFail(nil)
		time.Sleep(time.Second)
		if got := get(t, s); got != "T2" {
			t.Error(got)
		}
	})
}

func TestRefusedCredentials(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var secret atomic.Value
		secret.Store("wrong")
		p := &product{lifetime: time.Hour}
		p.fail = func(int) error {
			if secret.Load() == "right" {
				return nil
			}
			return &auth.Error{Op: "exchange", Code: "invalid_client", Status: 401, Err: auth.ErrCredentials}
		}
		s := newSession(t, p, &auth.Options{Secrets: []auth.Secret{auth.SecretFunc(func() (string, error) { return secret.Load().(string), nil })}})
		for range 59 {
			if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrCredentials) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := p.calls.Load(); n != 1 {
			t.Errorf("%d exchanges within a minute", n)
		}
		secret.Store("right")
		time.Sleep(time.Second)
		if got := get(t, s); got != "T1" {
			t.Error(got)
		}
	})
}

// A secret that changes while it is refused is tried at once.
func TestSecretChangesMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		p := &product{lifetime: time.Hour, fail: func(n int) error {
			if n == 1 {
				return auth.ErrCredentials
			}
			return nil
		}}
		s := newSession(t, p, &auth.Options{Secrets: []auth.Secret{auth.SecretFunc(func() (string, error) { return fmt.Sprint(reads.Add(1)), nil })}})
		if got := get(t, s); got != "T1" || p.calls.Load() != 2 {
			t.Errorf("%s after %d", got, p.calls.Load())
		}
	})
}

func TestRestartAdopts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := &product{lifetime: time.Hour, refresh: true}
		get(t, newSession(t, p, &auth.Options{Store: &store}))
		time.Sleep(30 * time.Minute)
		s := newSession(t, p, &auth.Options{Store: &store})
		if got := get(t, s); got != "T1" || p.calls.Load() != 1 {
			t.Fatalf("%s after %d", got, p.calls.Load())
		}
		time.Sleep(31 * time.Minute)
		if got := get(t, s); got != "T2" || p.prevs[1].RefreshToken != "R1" {
			t.Errorf("%s from %v", got, p.prevs[1])
		}
	})
}

// Each of these processes asks for one token, as a command line does. One that finds it stale renews it
// for the next.
func TestStaleIsRenewedForTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(auth.Memory)
		p := &product{lifetime: time.Hour, delay: time.Second}
		once := func() string {
			s := auth.New(p, &auth.Options{Store: store})
			got := get(t, s)
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
			return got
		}
		once()
		time.Sleep(58 * time.Minute)
		for i, want := range []string{"T1", "T2", "T2"} {
			if got := once(); got != want {
				t.Errorf("process %d: %s, want %s", i, got, want)
			}
		}
		if n := p.calls.Load(); n != 2 {
			t.Errorf("%d exchanges", n)
		}
	})
}

// Of two sessions of one identity, the second adopts what the first obtained after a refusal.
func TestSharedStoreAfterRevocation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := &product{lifetime: time.Hour}
		a := newSession(t, p, &auth.Options{Store: &store})
		b := newSession(t, p, &auth.Options{Store: &store})
		ta, _ := a.Token(t.Context())
		tb, _ := b.Token(t.Context())
		a.Rejected(response(401, "token"), ta)
		b.Rejected(response(401, "token"), tb)
		if get(t, a) != "T2" || get(t, b) != "T2" || p.calls.Load() != 2 {
			t.Errorf("%d exchanges", p.calls.Load())
		}
	})
}

// broken is a Store that fails where told.
type brokenStore struct {
	auth.Memory
	load, save atomic.Bool
	saves      atomic.Int64
}

func (b *brokenStore) Load(ctx context.Context, key string) (auth.Record, error) {
	if b.load.Load() {
		return auth.Record{}, auth.ErrStore
	}
	return b.Memory.Load(ctx, key)
}

func (b *brokenStore) Save(ctx context.Context, key string, r auth.Record) error {
	b.saves.Add(1)
	if b.save.Load() {
		return errors.New("disk full")
	}
	return b.Memory.Save(ctx, key, r)
}

func TestNothingIsSpentWithoutStore(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"load", "save"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var store brokenStore
				p := &product{lifetime: time.Hour, refresh: true}
				s := newSession(t, p, &auth.Options{Store: &store})
				get(t, s)
				(map[string]*atomic.Bool{"load": &store.load, "save": &store.save})[name].Store(true)
				time.Sleep(2 * time.Hour)
				if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrStore) || p.calls.Load() != 1 {
					t.Errorf("%v after %d exchanges", err, p.calls.Load())
				}
				store.load.Store(false)
				store.save.Store(false)
				time.Sleep(time.Second)
				if got := get(t, s); got != "T2" {
					t.Error(got)
				}
			})
		})
	}
}

func TestStoreFailsWithNothingAtStake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		store.load.Store(true)
		s := newSession(t, &product{lifetime: time.Hour}, &auth.Options{Store: &store})
		if got := get(t, s); got != "T1" {
			t.Error(got)
		}
	})
}

// What was obtained beside the store is not replaced by something older that is in it: refused
// together, the older one would be refused again.
func TestOlderTokenIsNotAdopted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{lifetime: time.Hour}
		others, ours := newSession(t, p, &auth.Options{Store: &store}), newSession(t, p, &auth.Options{Store: &store})
		get(t, others)
		time.Sleep(time.Second)
		store.load.Store(true)
		tok, err := ours.Token(t.Context())
		if err != nil || tok.AccessToken != "T2" {
			t.Fatal(tok, err)
		}
		store.load.Store(false)
		time.Sleep(time.Second)
		ours.Invalidate(tok)
		if got := get(t, ours); got != "T3" {
			t.Errorf("%s in place of T2", got)
		}
		if r, _ := store.Load(t.Context(), ours.Key()); !strings.Contains(string(r.Data), `"T3"`) {
			t.Error("T3 is not for the others")
		}
	})
}

// What refused tokens forced while the store was away, each process for itself and to the harm of the
// others, does not keep one from exchanging for all when it is back.
func TestStoreIsBackAfterRefusals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Store: &store})
		refused := func() {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(401, "token"), tok)
		}
		get(t, s)
		store.load.Store(true)
		for range 100 {
			refused()
			time.Sleep(100 * time.Millisecond)
		}
		store.load.Store(false)
		before := p.calls.Load()
		refused() // and looks
		synctest.Wait()
		refused()
		if get(t, s); p.calls.Load() != before+1 {
			t.Errorf("%d exchanges with the store back", p.calls.Load()-before)
		}
	})
}

func TestRecordsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tokens := &product{lifetime: time.Hour}
		refreshed := &product{lifetime: time.Hour, refresh: true}
		for name, test := range map[string]struct {
			p    auth.Provider
			ends time.Duration // 0: it is not known when
		}{
			"client credentials": {tokens, time.Hour},
			"refresh token":      {refreshed, 0},
			"consent":            {consenting{refreshed}, consentLife},
			"expendable":         {expendable{refreshed}, time.Hour},
		} {
			store := new(auth.Memory)
			s := newSession(t, test.p, &auth.Options{Store: store})
			if s.CodeFlow() == nil {
				get(t, s)
			} else if err := s.Redeem(t.Context(), "code", ""); err != nil {
				t.Fatal(err)
			}
			r, err := store.Load(t.Context(), s.Key())
			if err != nil || r.Version == 0 || r.Expires.IsZero() != (test.ends == 0) || test.ends != 0 && time.Until(r.Expires) != test.ends {
				t.Errorf("%s: %v, %v; want an end in %s", name, r, err, test.ends)
			}
		}
	})
}

// A token that is still valid is no reason to exchange beside the store: others would do the same.
// One that is not, is.
func TestStoreFailsInTheBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Store: &store})
		get(t, s)
		store.load.Store(true)
		time.Sleep(59 * time.Minute)
		for range 20 {
			if got := get(t, s); got != "T1" || p.calls.Load() != 1 {
				t.Errorf("%s after %d exchanges", got, p.calls.Load())
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		if got := get(t, s); got != "T2" {
			t.Errorf("%s once the token has expired", got)
		}
	})
}

// A rotated refresh token is saved however long that takes; callers do not wait for it, Close does.
func TestSaveIsRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{lifetime: time.Hour, refresh: true}
		s := auth.New(p, &auth.Options{Store: &store})
		p.answer = func(int) *oauth2.Token {
			store.save.Store(true)
			return &oauth2.Token{AccessToken: "A", RefreshToken: "R", ExpiresIn: 3600}
		}
		if got := get(t, s); got != "A" {
			t.Fatal(got)
		}
		time.Sleep(time.Minute)
		store.save.Store(false)
		time.Sleep(10 * time.Second)
		if r, _ := store.Load(t.Context(), s.Key()); r.Version == 0 || !strings.Contains(string(r.Data), `"R"`) {
			t.Errorf("not saved: version %d", r.Version)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A token that cannot be saved is still not handed out past its end; callers learn why at once.
func TestExpiredWhileSaving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{answer: func(int) *oauth2.Token {
			store.save.Store(true)
			return &oauth2.Token{AccessToken: "A", RefreshToken: "R", ExpiresIn: 600}
		}}
		s := newSession(t, p, &auth.Options{Store: &store})
		get(t, s)
		time.Sleep(11 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if tok, err := s.Token(ctx); !errors.Is(err, auth.ErrStore) || time.Since(start) != 0 {
			t.Errorf("%v, %v after %s", tok, err, time.Since(start))
		}
		p.mu.Lock()
		p.answer = func(int) *oauth2.Token { return &oauth2.Token{AccessToken: "B", ExpiresIn: 600} }
		p.mu.Unlock()
		store.save.Store(false)
		time.Sleep(3 * time.Second)
		if got := get(t, s); got != "B" {
			t.Error(got)
		}
	})
}

func TestCloseTellsWhatIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{answer: func(int) *oauth2.Token {
			store.save.Store(true)
			return &oauth2.Token{AccessToken: "A", RefreshToken: "R", ExpiresIn: 3600}
		}}
		s := auth.New(p, &auth.Options{Store: &store})
		get(t, s)
		if err := s.Close(t.Context()); !errors.Is(err, auth.ErrStore) {
			t.Error(err)
		}
	})
}

// A save that fails while Close waits is made once more, when a store that was silent may answer again.
func TestCloseSavesOnceMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store brokenStore
		p := &product{delay: time.Second, answer: func(int) *oauth2.Token {
			store.save.Store(true)
			time.AfterFunc(250*time.Millisecond, func() { store.save.Store(false) })
			return &oauth2.Token{AccessToken: "A", RefreshToken: "R", ExpiresIn: 3600}
		}}
		s := auth.New(p, &auth.Options{Store: &store})
		go s.Token(t.Context())
		synctest.Wait()
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if r, _ := store.Load(t.Context(), s.Key()); !strings.Contains(string(r.Data), `"R"`) {
			t.Error("not saved")
		}
	})
}

func TestCloseWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour, delay: 10 * time.Second}
		s := auth.New(p, nil)
		ctx, cancel := context.WithCancel(t.Context())
		go s.Token(ctx)
		synctest.Wait()
		cancel()
		start := time.Now()
		if err := s.Close(t.Context()); err != nil || time.Since(start) != p.delay {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		if got := get(t, s); got != "T1" {
			t.Error(got)
		}
		time.Sleep(2 * time.Hour)
		if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrClosed) {
			t.Error(err)
		}
	})
}

// Close does not wait for a lock that somebody else holds on to.
func TestCloseBeforeExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(auth.Memory)
		p := &product{lifetime: time.Hour}
		s := auth.New(p, &auth.Options{Store: store})
		unlock, err := store.Lock(t.Context(), s.Key())
		if err != nil {
			t.Fatal(err)
		}
		waiting := make(chan error)
		go func() { _, err := s.Token(t.Context()); waiting <- err }()
		synctest.Wait()
		closed := make(chan error)
		start := time.Now()
		go func() { closed <- s.Close(t.Context()) }()
		if err := <-waiting; !errors.Is(err, auth.ErrClosed) {
			t.Errorf("who waits gets %v", err)
		}
		if err := <-closed; err != nil || time.Since(start) != time.Second {
			t.Errorf("Close: %v after %s", err, time.Since(start))
		}
		unlock()
		if n := p.calls.Load(); n != 0 {
			t.Errorf("%d exchanges", n)
		}
	})
}

// With nothing to wait for, Close succeeds also where ctx has ended.
func TestCloseIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 { // it was a matter of luck
			s := auth.New(&product{lifetime: time.Hour}, nil)
			get(t, s)
			synctest.Wait()
			for range 2 {
				if err := s.Close(ended); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// A caller whose ctx has ended begins nothing, and learns of its own error and of the cause.
func TestCallerHasEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour, delay: time.Second}
		s := newSession(t, p, nil)
		mine := errors.New("mine")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, mine)
		defer cancel()
		time.Sleep(time.Minute)
		var timeout interface{ Timeout() bool }
		if _, err := s.Token(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, mine) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v", err)
		}
		synctest.Wait()
		if n := p.calls.Load(); n != 0 {
			t.Errorf("%d exchanges", n)
		}
		get(t, s)
		if _, err := s.Token(ctx); err != nil {
			t.Errorf("with a token at hand: %v", err)
		}
	})
}

// Somebody else's pending mark: wait until their exchange must be over, try once, and say so.
func TestInterruptedExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := &product{lifetime: time.Hour, refresh: true}
		dying := auth.New(p, &auth.Options{Store: &store, Connector: "remedy"})
		get(t, dying)
		time.Sleep(2 * time.Hour)
		p.delay = time.Hour // until it is killed
		ctx, kill := context.WithTimeout(t.Context(), time.Second)
		defer kill()
		dying.Token(ctx)
		dying.Close(ctx)
		marked := time.Now().Add(-time.Second)

		p.delay = 0
		p.setFail(func(int) error {
			return &auth.Error{Op: "exchange", Code: "invalid_grant", Err: auth.ErrConsentRequired}
		})
		s := newSession(t, p, &auth.Options{Store: &store, Connector: "remedy"})
		_, err := s.Token(t.Context())
		if !errors.Is(err, auth.ErrConsentRequired) || !strings.Contains(fmt.Sprint(err), "interrupted at "+marked.Format(time.RFC3339)) ||
			!strings.Contains(fmt.Sprint(err), "itsmauth login remedy") {
			t.Error(err)
		}
		if got := time.Since(marked); got < 30*time.Second {
			t.Errorf("tried %s after the mark", got)
		}
		// It is in the record: nobody tries again.
		calls := p.calls.Load()
		other := newSession(t, p, &auth.Options{Store: &store, Connector: "remedy"})
		if _, err := other.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) || p.calls.Load() != calls {
			t.Errorf("%v after %d exchanges", err, p.calls.Load()-calls)
		}
		if st, err := other.Status(t.Context()); err != nil || st.State != auth.StateConsentRequired {
			t.Errorf("%+v %v", st, err)
		}
	})
}

// The one try after an interrupted exchange may meet an outage: the interruption is told all the same.
func TestInterruptionIsNotForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &auth.Options{Store: new(auth.Memory)}
		p := &product{lifetime: time.Hour, refresh: true}
		dying := auth.New(p, o)
		get(t, dying)
		time.Sleep(2 * time.Hour)
		p.delay = time.Hour // until it is killed
		marked := time.Now()
		ctx, kill := context.WithTimeout(t.Context(), time.Second)
		defer kill()
		dying.Token(ctx)
		dying.Close(ctx)

		p.delay = 0
		s := newSession(t, p, o)
		for _, err := range []*auth.Error{
			{Status: 503, Err: auth.ErrUnavailable},
			{Status: 401, Code: "invalid_client", Err: auth.ErrCredentials},
			{Status: 400, Code: "invalid_grant", Err: auth.ErrConsentRequired},
		} {
			p.setFail(func(int) error { return err })
			_, got := s.Token(t.Context())
			if !errors.Is(got, err.Err) {
				t.Fatalf("%v, want %v", got, err.Err)
			}
			if told := strings.Contains(got.Error(), "interrupted at "+marked.Format(time.RFC3339)); told != (err.Status == 400) {
				t.Errorf("%v", got)
			}
			time.Sleep(2 * time.Minute)
		}
	})
}

// consenting is a product that a person must allow.
type consenting struct{ *product }

func (c consenting) CodeFlow() *auth.CodeFlow {
	return &auth.CodeFlow{
		Redeem: func(ctx context.Context, code, verifier string) (*oauth2.Token, error) {
			return &oauth2.Token{AccessToken: "A-" + code, RefreshToken: "R-" + code, ExpiresIn: 3600}, nil
		},
	}
}

func (c consenting) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	if prev == nil || prev.RefreshToken == "" {
		return nil, &auth.Error{Op: "exchange", Err: auth.ErrConsentRequired}
	}
	return c.product.Exchange(ctx, prev)
}

const consentLife = 10 * time.Hour

func (c consenting) Refresh() auth.Refresh { return auth.Refresh{Lifetime: consentLife} }

func TestLoginElsewhereEndsRefusal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := consenting{&product{lifetime: time.Hour, refresh: true}}
		service := newSession(t, p, &auth.Options{Store: &store})
		if _, err := service.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
			t.Fatal(err)
		}
		if st, _ := service.Status(t.Context()); st.State != auth.StateConsentRequired {
			t.Error(st.State)
		}
		cli := newSession(t, p, &auth.Options{Store: &store})
		if err := cli.Redeem(t.Context(), "code", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour) // the access token of the login is over, its refresh token is not
		if got := get(t, service); got != "T1" || p.prevs[0].RefreshToken != "R-code" {
			t.Error(got)
		}
	})
}

func TestIdleConsentIsKeptAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := consenting{&product{lifetime: time.Hour, refresh: true}}
		s := newSession(t, p, nil)
		if err := s.Redeem(t.Context(), "code", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*consentLife + time.Minute)
		if n := p.calls.Load(); n != 6 {
			t.Errorf("%d exchanges in three lives", n)
		}
		if st, _ := s.Status(t.Context()); !st.ConsentExpiry.After(time.Now()) {
			t.Error(st)
		}
	})
}

// How long a refresh token lives is by its own clock; when that began is by ours.
func TestConsentWithSkewedClock(t *testing.T) {
	t.Parallel()
	for _, skew := range []time.Duration{0, time.Hour, -time.Hour + 4*time.Second, -time.Hour - 4*time.Second} {
		t.Run(skew.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				token := func(life time.Duration) string {
					iat := time.Now().Add(skew).Unix()
					claims := fmt.Sprintf(`{"iat":%d,"exp":%d}`, iat, iat+int64(life/time.Second))
					return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
				}
				p := &product{answer: func(int) *oauth2.Token {
					return &oauth2.Token{AccessToken: token(10 * time.Minute), RefreshToken: token(time.Hour)}
				}}
				s := newSession(t, p, nil)
				get(t, s)
				time.Sleep(50 * time.Minute)
				st, err := s.Status(t.Context())
				if left := time.Until(st.ConsentExpiry); err != nil || p.calls.Load() != 2 || (left-40*time.Minute).Abs() > time.Minute {
					t.Errorf("%d exchanges, %s of the consent are left, %v", p.calls.Load(), left, err)
				}
			})
		})
	}
}

// A refusal is the same to Status here and elsewhere.
func TestStatusAfterRefusal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := consenting{&product{lifetime: time.Hour, refresh: true}}
		here, elsewhere := newSession(t, p, &auth.Options{Store: &store}), newSession(t, p, &auth.Options{Store: &store})
		if err := here.Redeem(t.Context(), "code", ""); err != nil {
			t.Fatal(err)
		}
		p.setFail(func(int) error { return &auth.Error{Status: 400, Err: auth.ErrConsentRequired} })
		time.Sleep(2 * time.Hour)
		if _, err := here.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
			t.Fatal(err)
		}
		for name, s := range map[string]*auth.Session{"here": here, "elsewhere": elsewhere} {
			if st, err := s.Status(t.Context()); st.State != auth.StateConsentRequired || !st.Expiry.IsZero() || !st.ConsentExpiry.IsZero() {
				t.Errorf("%s: %+v, %v", name, st, err)
			}
		}
	})
}

// seeded is a product whose refresh token the settings give.
type seeded struct {
	*product
	seed *atomic.Pointer[string]
}

func (s seeded) Refresh() auth.Refresh {
	return auth.Refresh{Token: auth.SecretFunc(func() (string, error) { return *s.seed.Load(), nil })}
}

// Two processes have different refresh tokens in their settings, and the product refuses both. Neither tries
// again because of the other.
func TestTwoRefusedSeeds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &auth.Options{Store: new(auth.Memory)}
		p := &product{fail: func(int) error { return &auth.Error{Status: 400, Err: auth.ErrConsentRequired} }}
		var sessions []*auth.Session
		for _, seed := range []string{"a", "b"} {
			s := seeded{p, new(atomic.Pointer[string])}
			s.seed.Store(&seed)
			sessions = append(sessions, newSession(t, s, o))
		}
		for range 600 {
			for _, s := range sessions {
				if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
					t.Fatal(err)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.calls.Load(); n != 2 {
			t.Errorf("%d exchanges in a minute", n)
		}
	})
}

// A refused refresh token of the settings is replaced there, also if the process that it was refused
// to has ended.
func TestSeedChangesAfterRefusal(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := seeded{&product{lifetime: time.Hour, refresh: true}, new(atomic.Pointer[string])}
			set := func(seed string) { p.seed.Store(&seed) }
			set("old")
			p.fail = func(int) error {
				if *p.seed.Load() == "old" {
					return &auth.Error{Status: 400, Err: auth.ErrConsentRequired}
				}
				return nil
			}
			o := &auth.Options{Connector: "x", Store: new(auth.Memory)}
			s := newSession(t, p, o)
			if restart {
				s.Token(t.Context())
				s = newSession(t, p, o)
			}
			if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) || !strings.HasSuffix(err.Error(), "; give another refresh_token") {
				t.Error(err)
			}
			time.Sleep(time.Minute)
			set("new")
			if got := get(t, s); got != "T1" {
				t.Error(got)
			}
		})
	}
}

func TestRevokeForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := consenting{&product{lifetime: time.Hour, refresh: true}}
		s := newSession(t, p, &auth.Options{Store: &store})
		if err := s.Redeem(t.Context(), "code", ""); err != nil {
			t.Fatal(err)
		}
		if err := s.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Token(t.Context()); !errors.Is(err, auth.ErrConsentRequired) {
			t.Error(err)
		}
		if r, _ := store.Load(t.Context(), s.Key()); strings.Contains(string(r.Data), "code") {
			t.Error("a token is still there")
		}
	})
}

func TestViews(t *testing.T) {
	t.Parallel()
	s := newSession(t, &product{fail: func(int) error { return auth.ErrProtocol }}, &auth.Options{Connector: "a", Provider: "p"})
	_, err := s.For("b").Token(t.Context())
	var e *auth.Error
	if !errors.As(err, &e) || e.Connector != "b" || e.Provider != "p" || !strings.HasPrefix(err.Error(), "b: exchange: ") {
		t.Error(err)
	}
	if _, err := s.Token(t.Context()); !errors.As(err, &e) || e.Connector != "a" {
		t.Error(err)
	}
}

func TestFreshTokenAllocatesNothing(t *testing.T) {
	s := newSession(t, &product{lifetime: time.Hour}, nil)
	ctx := t.Context()
	get(t, s)
	if n := testing.AllocsPerRun(1000, func() {
		tok, _ := s.Token(ctx)
		s.Header(tok)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTokenSourceGivesCopies(t *testing.T) {
	t.Parallel()
	s := newSession(t, &product{lifetime: time.Hour}, nil)
	src := auth.TokenSource(t.Context(), s)
	tok, err := src.Token()
	if err != nil {
		t.Fatal(err)
	}
	tok.AccessToken = "changed"
	if again, _ := src.Token(); again.AccessToken != "T1" {
		t.Error("the session's own token was changed")
	}
	back := newSession(t, auth.FromTokenSource(src), nil)
	if got := get(t, back); got != "T1" {
		t.Error(got)
	}
}

// Another replica can tell who obtained the token, and when.
func TestStatusTellsWhoAndWhen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var store auth.Memory
		p := &product{lifetime: time.Hour}
		get(t, newSession(t, p, &auth.Options{Store: &store}))
		begun := time.Now()
		time.Sleep(time.Minute)
		st, err := newSession(t, p, &auth.Options{Store: &store}).Status(t.Context())
		host, herr := os.Hostname()
		if err != nil || herr != nil || !st.Obtained.Equal(begun) || st.Host != host {
			t.Errorf("obtained by %q at %v, want %q at %v; %v, %v", st.Host, st.Obtained, host, begun, err, herr)
		}
	})
}

// An exchange that was never sent, or was refused for another reason than the refresh token, has spent
// nothing: no other process waits for it. Of one that may have been carried out nobody knows.
func TestRefusalLeavesNoMark(t *testing.T) {
	t.Parallel()
	unavailable := func(cause error) error { return &auth.Error{Err: fmt.Errorf("%w: %w", auth.ErrUnavailable, cause)} }
	for name, test := range map[string]struct {
		err   error
		waits time.Duration
	}{
		"429":                  {&auth.Error{Status: 429, Err: auth.ErrRateLimited}, 0},
		"no room in our limit": {&auth.Error{Err: auth.ErrRateLimited}, 0},
		"credentials":          {auth.ErrCredentials, 0},
		"foreign certificate":  {&auth.Error{Err: auth.ErrInsecure}, 0},
		"connection refused":   {unavailable(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), 0},
		"proxy refuses":        {unavailable(&net.OpError{Op: "proxyconnect", Err: syscall.ECONNREFUSED}), 0},
		"reset":                {unavailable(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), 29 * time.Second},
		"503":                  {&auth.Error{Status: 503, Err: auth.ErrUnavailable}, 29 * time.Second},
		"redirected":           {&auth.Error{Status: 302, Err: auth.ErrInsecure}, 29 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := &auth.Options{Store: new(auth.Memory)}
				p := &product{lifetime: time.Hour, refresh: true}
				a, b := newSession(t, p, o), newSession(t, p, o)
				get(t, a)
				time.Sleep(2 * time.Hour)
				p.setFail(func(int) error { return test.err })
				if _, err := a.Token(t.Context()); err == nil {
					t.Fatal("no error")
				}
				time.Sleep(time.Second)
				p.setFail(nil)
				start := time.Now()
				if got := get(t, b); got != "T2" || time.Since(start) != test.waits {
					t.Errorf("%s after %s, want T2 after %s", got, time.Since(start), test.waits)
				}
			})
		})
	}
}
