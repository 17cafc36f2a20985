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
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
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

// loggedIn returns a session with a consent, and its product.
func loggedIn(t *testing.T, o *auth.Options) (*auth.Session, consenting) {
	t.Helper()
	p := consenting{&product{lifetime: time.Hour, refresh: true}}
	s := newSession(t, p, o)
	if err := s.Redeem(t.Context(), "code", ""); err != nil {
		t.Fatal(err)
	}
	return s, p
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
	onlyExp := "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, time.Date(2000, 1, 1, 0, 1, 0, 0, time.UTC).Unix())) + ".x"
	for name, test := range map[string]struct {
		tok  oauth2.Token
		want time.Duration
	}{
		"expires_in":             {oauth2.Token{AccessToken: jwt, ExpiresIn: 60}, time.Minute},
		"expiry":                 {oauth2.Token{AccessToken: jwt, Expiry: time.Date(2000, 1, 1, 0, 2, 0, 0, time.UTC)}, 2 * time.Minute},
		"jwt":                    {oauth2.Token{AccessToken: jwt}, 10 * time.Minute},
		"jwt, longer expires_in": {oauth2.Token{AccessToken: jwt, ExpiresIn: 3_600_000}, 10 * time.Minute}, // in milliseconds
		"jwt, longer expiry":     {oauth2.Token{AccessToken: jwt, Expiry: time.Date(2000, 1, 1, 1, 0, 0, 0, time.UTC)}, 10 * time.Minute},
		"jwt without iat":        {oauth2.Token{AccessToken: onlyExp}, time.Minute},
		"its expires_in":         {oauth2.Token{AccessToken: onlyExp, ExpiresIn: 3600}, time.Hour}, // by the product's clock
		"jwt, dead":              {oauth2.Token{AccessToken: "e30.eyJleHAiOjEwMDB9.x"}, time.Second},
		"jwt, born dead":         {oauth2.Token{AccessToken: "e30.eyJpYXQiOjE2MDAsImV4cCI6MTYwMH0.x", ExpiresIn: 3600}, time.Second},
		"jwt without exp":        {oauth2.Token{AccessToken: "e30.eyJpYXQiOjE2MDAsImV4cCI6MH0.x"}, time.Hour},
		"jwt of an instant":      {oauth2.Token{AccessToken: "e30.eyJpYXQiOjEwMDAsImV4cCI6MTAwMC41fQ.x"}, time.Second},
		"expiry of an instant":   {oauth2.Token{AccessToken: "x", Expiry: time.Date(2000, 1, 1, 0, 0, 0, 1000, time.UTC)}, time.Second},
		"absurd":                 {oauth2.Token{AccessToken: "x", ExpiresIn: 1 << 60}, time.Hour},
		"negative":               {oauth2.Token{AccessToken: "x", ExpiresIn: -1}, time.Hour},
		"none at all":            {oauth2.Token{AccessToken: "x"}, time.Hour},
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
		s, p := loggedIn(t, nil)
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
		s, _ := loggedIn(t, &auth.Options{Store: &store})
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
