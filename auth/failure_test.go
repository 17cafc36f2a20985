package auth_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// A provider may well wrap what net/http says, which is with the whole URL.
func TestErrorShowsNoQuery(t *testing.T) {
	t.Parallel()
	first := &url.Error{Op: "Get", URL: "https://sso.example.com/login?key=s3cr3t", Err: io.EOF}
	cause := &url.Error{Op: "Post", URL: `https://sso.example.com/token?code=s3cr3t&x="é`, Err: io.ErrUnexpectedEOF}
	err := &auth.Error{Op: "exchange", Err: fmt.Errorf("%w: %w", auth.ErrUnavailable, errors.Join(first, cause))}
	if s := err.Error(); strings.Contains(s, "s3cr3t") || !strings.Contains(s, `Post "https://sso.example.com/token": unexpected EOF`) {
		t.Error(s)
	}
}

// A refresh that keeps failing while the token is valid costs callers nothing. It shows in Status,
// and in the log once for each exchange.
func TestBackgroundFailureIsQuiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer // written by one exchange at a time, read when there is none
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		get(t, s)
		if st, err := s.Status(t.Context()); err != nil || st.Failure != nil || !st.NextTry.IsZero() {
			t.Errorf("before: %+v, %v", st, err)
		}
		p.setFail(func(int) error { return &auth.Error{Status: 502, Err: auth.ErrProtocol} })
		time.Sleep(55*time.Minute + time.Minute) // surely stale
		p.calls.Store(0)

		var callers sync.WaitGroup
		for range 50 {
			callers.Go(func() {
				for range 2000 { // of 200 s
					start := time.Now()
					if tok, err := s.Token(t.Context()); err != nil || tok.AccessToken != "T1" || time.Since(start) != 0 {
						t.Errorf("after %s: %v, %v", time.Since(start), tok, err)
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		for range 199 {
			synctest.Wait()
			st, err := s.Status(t.Context())
			wait := time.Until(st.NextTry) // a caller comes by every 100 ms
			if err != nil || st.State != auth.StateStale || !errors.Is(st.Failure, auth.ErrProtocol) || wait < -100*time.Millisecond || wait > time.Minute {
				t.Errorf("status: %+v, %v; the next try is in %s", st, err, wait)
				break
			}
			time.Sleep(time.Second)
		}
		callers.Wait()

		// 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60 s, each less up to a fifth.
		n := int(p.calls.Load())
		if n < 8 || n > 10 {
			t.Errorf("%d exchanges in 200 s", n)
		}
		if lines := strings.Count(log.String(), "\n"); lines != n || strings.Count(log.String(), "background exchange failed") != n {
			t.Errorf("%d lines for %d exchanges:\n%s", lines, n, log.String())
		}
		p.setFail(nil)
		time.Sleep(time.Minute) // expired
		tok := get(t, s)
		if st, err := s.Status(t.Context()); tok != "T2" || err != nil || st.State != auth.StateFresh || st.Failure != nil {
			t.Errorf("recovered: %s, %+v, %v", tok, st, err)
		}
	})
}

// caller is a log handler that itself wants a token: it ships records through the connector.
type caller struct {
	slog.Handler
	s   *auth.Session
	got error
}

func (h *caller) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h *caller) Handle(_ context.Context, r slog.Record) error {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, h.got = h.s.Token(ctx)
	return h.Handler.Handle(ctx, r)
}

func TestLoggerMayWantToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		h := &caller{Handler: slog.NewTextHandler(&log, nil)}
		p := &product{lifetime: time.Hour, fail: func(int) error { return &auth.Error{Err: auth.ErrProtocol} }}
		h.s = newSession(t, p, &auth.Options{Logger: slog.New(h)})
		if _, err := h.s.Token(t.Context()); !errors.Is(err, auth.ErrProtocol) {
			t.Error(err)
		}
		synctest.Wait()
		if !errors.Is(h.got, auth.ErrProtocol) || !strings.Contains(log.String(), "exchange failed") {
			t.Errorf("the handler got %v; the log is %s", h.got, &log)
		}

		p.setFail(nil)
		time.Sleep(2 * time.Second)
		for range 5 {
			tok, err := h.s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			h.s.Rejected(response(200, ""), tok)
			h.s.Rejected(response(401, "token"), tok)
		}
		if !strings.Contains(log.String(), "killed elsewhere") {
			t.Errorf("the log is %s", &log)
		}
	})
}

// What a Provider made with x/oauth2 gets for an error means the same as in RFC 6749 section 5.2.
func TestRetrieveError(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status  int
		code    string
		body    string
		refresh bool
		want    error
	}{
		{400, "invalid_grant", "s3cr3t", true, auth.ErrConsentRequired},
		{400, "INVALID_GRANT", "s3cr3t", true, auth.ErrConsentRequired},
		{400, "invalid_grant", "s3cr3t", false, auth.ErrCredentials},
		{401, "invalid_client", "s3cr3t", true, auth.ErrCredentials},
		{400, "unauthorized_client", "s3cr3t", true, auth.ErrCredentials},
		{400, "invalid_scope", "s3cr3t", true, auth.ErrProtocol},
		{400, "unsupported_grant_type", "s3cr3t", true, auth.ErrProtocol},
		{401, "server_error", "s3cr3t", true, auth.ErrConsentRequired},
		{401, "server_error", "s3cr3t", false, auth.ErrCredentials},
		{200, "bad_refresh_token", "s3cr3t", true, auth.ErrConsentRequired},
		{403, "", "{}", true, auth.ErrConsentRequired},
		{403, "", "{}", false, auth.ErrCredentials},
		{403, "", "s3cr3t", true, auth.ErrProtocol},
		{403, "", "s3cr3t", false, auth.ErrProtocol},
		{401, "", "s3cr3t", false, auth.ErrCredentials},
		{403, "", "[1]", false, auth.ErrCredentials},
		{403, "", "<html>s3cr3t", true, auth.ErrProtocol},
		{403, "", "<html>s3cr3t", false, auth.ErrProtocol},
		{403, "", "", false, auth.ErrProtocol},
		{404, "", "{}", true, auth.ErrProtocol},
		{404, "invalid_grant", "s3cr3t", true, auth.ErrProtocol},
		{408, "", "s3cr3t", true, auth.ErrUnavailable},
		{429, "", "s3cr3t", true, auth.ErrRateLimited},
		{400, "temporarily_unavailable", "s3cr3t", true, auth.ErrConsentRequired},
		{500, "invalid_grant", "s3cr3t", true, auth.ErrUnavailable},
		{503, "", "s3cr3t", true, auth.ErrUnavailable},
	} {
		t.Run(fmt.Sprint(tt.status, tt.code, tt.body, tt.refresh), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &product{lifetime: time.Hour, refresh: tt.refresh}
				s := newSession(t, p, nil)
				get(t, s)
				p.setFail(func(int) error {
					return &oauth2.RetrieveError{
						Response:  &http.Response{StatusCode: tt.status, Header: http.Header{"Retry-After": {"20"}}},
						Body:      []byte(tt.body),
						ErrorCode: tt.code,
					}
				})
				time.Sleep(2 * time.Hour)
				_, err := s.Token(t.Context())
				var e *auth.Error
				if !errors.Is(err, tt.want) || !errors.As(err, &e) || e.Status != tt.status || e.RetryAfter != 20*time.Second || strings.Contains(err.Error(), "s3cr3t") {
					t.Errorf("%v, want %v", err, tt.want)
				}
			})
		})
	}
}

// A new secret is tried at once also where the token is still valid.
func TestSecretChangesInTheBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var secret atomic.Value
		secret.Store("old")
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, &auth.Options{Secrets: []auth.Secret{auth.SecretFunc(func() (string, error) { return secret.Load().(string), nil })}})
		get(t, s)
		p.setFail(func(int) error {
			if secret.Load() == "new" {
				return nil
			}
			return &auth.Error{Code: "invalid_client", Status: 401, Err: auth.ErrCredentials}
		})
		time.Sleep(56 * time.Minute)
		for range 100 {
			if got := get(t, s); got != "T1" {
				t.Fatal(got)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.calls.Load(); n != 2 {
			t.Errorf("%d exchanges, want the first and the refused one", n)
		}
		secret.Store("new")
		start := time.Now()
		for get(t, s) == "T1" {
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(start); d > 1200*time.Millisecond {
			t.Errorf("tried after %s", d)
		}
	})
}

// A refusal is not forgotten over a token that was in the store already when it came.
func TestRefusalOutlivesAdoption(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &auth.Options{Store: new(auth.Memory)}
		p := &product{lifetime: time.Hour}
		a, b := newSession(t, p, o), newSession(t, p, o)
		get(t, a)
		get(t, b)
		time.Sleep(55*time.Minute + 30*time.Second)
		p.lifetime = 5 * time.Minute
		tok, err := b.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b.Invalidate(tok)
		get(t, b) // T2, for which a does not look
		p.setFail(func(int) error { return &auth.Error{Code: "invalid_client", Status: 401, Err: auth.ErrCredentials} })
		time.Sleep(4*time.Minute + 20*time.Second)
		get(t, a) // T1, and is refused another, as T2 is stale too
		time.Sleep(15 * time.Second)
		p.calls.Store(0)
		if got := get(t, a); got != "T2" { // T1 has expired
			t.Error(got)
		}
		synctest.Wait()
		if n := p.calls.Load(); n != 0 {
			t.Errorf("%d exchanges 15 s after credentials were refused", n)
		}
	})
}

// Two processes with a refresh token to spend mark the record in turn. That must not make either forget
// that the product refused.
func TestFailureHoldsAmongProcesses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  *auth.Error
		most int64 // exchanges in 50 s, of both
	}{
		"invalid_client": {&auth.Error{Code: "invalid_client", Status: 401, Err: auth.ErrCredentials}, 2},
		"429":            {&auth.Error{Status: 429, RetryAfter: time.Minute, Err: auth.ErrRateLimited}, 2},
		"404":            {&auth.Error{Status: 404, Err: auth.ErrProtocol}, 12},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &product{lifetime: time.Hour, refresh: true}
				o := &auth.Options{Store: new(auth.Memory)}
				a, b := newSession(t, p, o), newSession(t, p, o)
				get(t, a)
				get(t, b)
				time.Sleep(2 * time.Hour)
				p.setFail(func(int) error { return test.err })
				p.calls.Store(0)
				for range 500 {
					for _, s := range []*auth.Session{a, b} {
						if _, err := s.Token(t.Context()); !errors.Is(err, test.err.Err) {
							t.Fatalf("%v, want %v", err, test.err.Err)
						}
					}
					time.Sleep(100 * time.Millisecond)
				}
				if n := p.calls.Load(); n > test.most {
					t.Errorf("%d exchanges in 50 s, want at most %d", n, test.most)
				}
				p.setFail(nil)
				time.Sleep(time.Minute)
				if get(t, a) != get(t, b) {
					t.Error("two tokens")
				}
			})
		})
	}
}
