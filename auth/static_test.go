package auth_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// desk is a provider without a token endpoint.
type desk struct {
	key       auth.Secret
	exchanges int
	unread    int // how often Header cannot read the key
}

func (d *desk) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	d.exchanges++
	if _, err := d.key.Value(); err != nil {
		return nil, &auth.Error{Op: "token", Err: fmt.Errorf("%w: headers.X-Key cannot be read: %w", auth.ErrUnavailable, err)}
	}
	return &oauth2.Token{AccessToken: rand.Text()}, nil
}

func (d *desk) Header(*oauth2.Token) http.Header {
	key, _ := d.key.Value()
	if d.unread > 0 {
		d.unread--
		return nil
	}
	return http.Header{"X-Key": {key}}
}

func (d *desk) Rejects(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 }
func (d *desk) StaticCredentials() []string                { return []string{"headers.X-Key"} }
func (d *desk) Secrets() []auth.Secret                     { return []auth.Secret{d.key} }

// noStore fails the test if it is used.
type noStore struct{ t *testing.T }

func (s noStore) Load(context.Context, string) (auth.Record, error) {
	s.t.Error("the store was read")
	return auth.Record{}, nil
}
func (s noStore) Save(context.Context, string, auth.Record) error { s.t.Error("saved"); return nil }
func (s noStore) Delete(context.Context, string, uint64) error    { s.t.Error("deleted"); return nil }
func (s noStore) Lock(context.Context, string) (func(), error) {
	s.t.Error("locked")
	return func() {}, nil
}

// sent is a token with the key that its call carries.
func sent(t *testing.T, s *auth.Session) (tok *oauth2.Token, key string) {
	t.Helper()
	tok, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tok, s.Header(tok)["X-Key"][0]
}

// A static provider's token is opaque and does not expire. It is another one as soon as a refusal shows that the key
// has changed, and within a second without a refusal.
func TestStatic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &source{value: "one"}
		p := &desk{key: src.secret()}
		var logged strings.Builder
		s := auth.New(p, &auth.Options{Connector: "desk", Store: auth.Encrypt(noStore{t}), Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		defer s.Close(t.Context())
		status := func() error {
			t.Helper()
			st, err := s.Status(t.Context())
			if err != nil || st.State != auth.StateFresh || !st.Expiry.IsZero() || !st.NextTry.IsZero() {
				t.Errorf("%+v, %v", st, err)
			}
			return st.Failure
		}
		if err := status(); err != nil {
			t.Error(err)
		}
		first, key := sent(t, s)
		if key != "one" || strings.Contains(fmt.Sprintf("%#v", first), "one") || !first.Expiry.IsZero() {
			t.Errorf("%s with %#v", key, first)
		}
		time.Sleep(100 * 24 * time.Hour)
		if tok, _ := sent(t, s); tok.AccessToken != first.AccessToken || p.exchanges != 1 {
			t.Errorf("another token after %d exchanges", p.exchanges)
		}

		// A refusal, the key has not changed.
		for range 3 {
			if s.Rejected(answer(401), first) {
				t.Error("the key has not changed")
			}
		}
		err := status()
		if !errors.Is(err, auth.ErrCredentials) || err.Error() != "desk: request: credentials refused (HTTP 401); check headers.X-Key and the account in the product" {
			t.Error(err)
		}
		if n := strings.Count(logged.String(), "check headers.X-Key and the account"); n != 1 || strings.Contains(logged.String(), "one") {
			t.Errorf("logged %d times: %s", n, &logged)
		}
		s.Invalidate(first)
		if tok, _ := sent(t, s); tok.AccessToken != first.AccessToken || p.exchanges != 1 {
			t.Errorf("another token after %d exchanges", p.exchanges)
		}
		if s.Rejected(answer(200), first) || status() != nil {
			t.Error("a later response has accepted the key")
		}

		// It changes: at once after a refusal, and without one in a second.
		src.value = "two"
		if !s.Rejected(answer(401), first) {
			t.Error("the key has changed")
		}
		second, key := sent(t, s)
		if key != "two" || second.AccessToken == first.AccessToken || !s.Rejected(answer(401), first) || s.Rejected(answer(401), second) {
			t.Errorf("%s", key)
		}
		if reads := src.reads; s.Header(first)["X-Key"][0] != "two" || src.reads != reads {
			t.Error("a call with an earlier token reads the key")
		}
		src.value = "three"
		time.Sleep(time.Second)
		if _, key := sent(t, s); key != "three" {
			t.Error(key)
		}
		src.value, p.unread = "four", 1 // the headers cannot be made, and the last ones stay
		if !s.Rejected(answer(401), second) {
			t.Error("a newer token than second")
		}
		if _, key := sent(t, s); key != "three" {
			t.Error(key)
		}
		src.value = "three"
		time.Sleep(time.Second)
		third, key := sent(t, s)
		if key != "three" || third.AccessToken == second.AccessToken || status() != nil {
			t.Error(key)
		}

		// While it cannot be read, the last one is used.
		src.err = errors.New("gone")
		time.Sleep(time.Second)
		if tok, key := sent(t, s); key != "three" || s.Rejected(answer(401), tok) {
			t.Error(key)
		}

		for _, err := range []error{s.CheckStore(t.Context()), s.Revoke(t.Context()), s.Redeem(t.Context(), "", "")} {
			if errors.Is(err, auth.ErrStore) || err != nil && !strings.Contains(err.Error(), "desk: ") {
				t.Error(err)
			}
		}
		if s.Revoke(t.Context()) == nil {
			t.Error("revoked")
		}
	})
}

// A read that hangs holds a refused call no longer than its own ctx, and ends when it answers.
func TestStaticHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &source{value: "one"}
		s := auth.New(&desk{key: src.secret()}, nil)
		defer s.Close(t.Context())
		tok, _ := sent(t, s)
		src.hang, src.value = make(chan struct{}), "two"
		resp := answer(401)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		resp.Request, _ = http.NewRequestWithContext(ctx, "GET", "https://h", nil)
		start := time.Now()
		if s.Rejected(resp, tok) || time.Since(start) != time.Second {
			t.Errorf("after %s", time.Since(start))
		}
		time.AfterFunc(2*time.Second, func() { close(src.hang) })
		resp.Request = nil
		if s.Rejected(resp, tok) || time.Since(start) != time.Second {
			t.Errorf("waited again, after %s", time.Since(start))
		}
		time.Sleep(time.Second)
		if !s.Rejected(resp, tok) || time.Since(start) != 3*time.Second {
			t.Errorf("after %s", time.Since(start))
		}
		if _, key := sent(t, s); key != "two" {
			t.Error(key)
		}
	})
}

// If reading takes long, a dead key has it done once a second, however many calls it fails.
func TestStaticReadsSeldom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		key := auth.SecretFunc(func() (string, error) { reads++; time.Sleep(100 * time.Millisecond); return "one", nil })
		s := auth.New(&desk{key: key}, nil)
		defer s.Close(t.Context())
		tok, _ := sent(t, s)
		reads = 0
		for start := time.Now(); time.Since(start) < 11*time.Second; time.Sleep(time.Millisecond) {
			s.Rejected(answer(401), tok)
		}
		if reads != 10 {
			t.Errorf("%d reads in 11 s", reads)
		}
	})
}

// If the key cannot be read at first, the error says which, and calls fail until it can.
func TestStaticUnreadable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &source{err: errors.New("no such file")}
		s := auth.New(&desk{key: src.secret()}, &auth.Options{Connector: "desk"})
		defer s.Close(t.Context())
		_, err := s.Token(t.Context())
		if want := "desk: token: unavailable: headers.X-Key cannot be read: no such file"; !errors.Is(err, auth.ErrUnavailable) || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		if st, _ := s.Status(t.Context()); st.State != auth.StateFresh || st.Failure == nil {
			t.Errorf("%+v", st)
		}
		src.err, src.value = nil, "one"
		time.Sleep(2 * time.Second)
		if _, key := sent(t, s); key != "one" {
			t.Error(key)
		}
	})
}

func answer(status int) *http.Response { return &http.Response{StatusCode: status, Body: http.NoBody} }
