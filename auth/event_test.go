package auth_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// observed records events.
type observed struct {
	mu     sync.Mutex
	events []auth.Event
	ctxs   []context.Context
}

func (o *observed) Observe(ctx context.Context, e auth.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events, o.ctxs = append(o.events, e), append(o.ctxs, ctx)
}

// String shows the events since it was last called, one a line, without times of day.
func (o *observed) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var b strings.Builder
	for _, e := range o.events {
		if e.Kind == auth.EventStoreBack {
			e.Took = e.Took.Truncate(10 * time.Second) // the store is asked at random times
		}
		fmt.Fprintf(&b, "%s connector=%s provider=%s op=%s code=%s status=%d attempt=%d wait=%s took=%s", e.Kind, e.Connector, e.Provider, e.Op, e.Code, e.Status, e.Attempt, e.Wait, e.Took)
		for _, at := range []time.Time{e.Expiry, e.ConsentExpiry} {
			if !at.IsZero() {
				fmt.Fprintf(&b, " until=%s", time.Until(at).Round(time.Minute))
			}
		}
		for _, is := range []error{auth.ErrCredentials, auth.ErrConsentRequired, auth.ErrUnavailable, auth.ErrStore} {
			if errors.Is(e.Err, is) {
				fmt.Fprintf(&b, " err=%q", is)
			}
		}
		b.WriteString("\n")
	}
	o.events, o.ctxs = nil, nil
	return b.String()
}

func TestEvents(t *testing.T) {
	t.Parallel()
	refused := func(op, code string, is error) func(int) error {
		return func(int) error { return &auth.Error{Op: op, Code: code, Status: 400, Err: is} }
	}
	for _, tt := range []struct {
		name   string
		person bool
		do     func(t *testing.T, s *auth.Session, p *product, f *fallible)
		want   string
	}{
		{"exchange", false, func(t *testing.T, s *auth.Session, p *product, _ *fallible) {
			p.delay = 2 * time.Second
			get(t, s)
			get(t, s)
		}, "token_obtained connector=desk provider=test op=exchange code= status=0 attempt=1 wait=0s took=2s until=1h0m0s\n"},
		{"background exchange", false, func(t *testing.T, s *auth.Session, p *product, _ *fallible) {
			get(t, s)
			time.Sleep(57 * time.Minute)
			get(t, s)
		}, `token_obtained connector=desk provider=test op=exchange code= status=0 attempt=1 wait=0s took=0s until=3m0s
token_obtained connector=desk provider=test op=exchange code= status=0 attempt=1 wait=0s took=0s until=1h0m0s
`},
		{"adopted", false, func(t *testing.T, s *auth.Session, p *product, f *fallible) {
			get(t, newSession(t, p, &auth.Options{Connector: "desk", Provider: "test", Store: asStore{f}}))
			get(t, s)
		}, "token_obtained connector=desk provider=test op=store code= status=0 attempt=0 wait=0s took=0s until=1h0m0s\n"},
		{"refused credentials", false, func(t *testing.T, s *auth.Session, p *product, _ *fallible) {
			p.setFail(refused("exchange", "invalid_client", auth.ErrCredentials))
			s.Token(t.Context())
			s.Token(t.Context()) // remembered: no exchange
		}, `exchange_failed connector=desk provider=test op=exchange code=invalid_client status=400 attempt=1 wait=0s took=0s err="credentials refused"
`},
		{"unavailable", false, func(t *testing.T, s *auth.Session, p *product, _ *fallible) {
			p.delay = time.Second
			p.setFail(func(n int) error {
				if n < 3 {
					return &auth.Error{Op: "exchange", Status: 502, Err: auth.ErrUnavailable, RetryAfter: time.Second}
				}
				return nil
			})
			get(t, s)
		}, "token_obtained connector=desk provider=test op=exchange code= status=0 attempt=3 wait=0s took=5s until=1h0m0s\n"},
		{"rejected", false, func(t *testing.T, s *auth.Session, p *product, _ *fallible) {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // for the background's event
			for range 3 {   // calls with the same token
				s.For("other").Rejected(response(401, "token"), tok)
			}
		}, `token_obtained connector=desk provider=test op=exchange code= status=0 attempt=1 wait=0s took=0s until=1h0m0s
token_rejected connector=other provider=test op= code= status=401 attempt=0 wait=0s took=0s
`},
		{"login, refusal", true, func(t *testing.T, s *auth.Session, p *product, _ *fallible) {
			if err := s.Redeem(t.Context(), "code", ""); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			p.setFail(refused("exchange", "invalid_grant", auth.ErrConsentRequired))
			tok, _ := s.Token(t.Context())
			s.Invalidate(tok)
			s.Token(t.Context())
		}, `token_obtained connector=desk provider=test op=login code= status=0 attempt=1 wait=0s took=0s until=1h0m0s until=10h0m0s
exchange_failed connector=desk provider=test op=exchange code=invalid_grant status=400 attempt=1 wait=0s took=0s err="consent required"
refresh_refused connector=desk provider=test op=exchange code=invalid_grant status=400 attempt=1 wait=0s took=0s err="consent required"
`},
		{"consent ends", true, func(t *testing.T, s *auth.Session, p *product, _ *fallible) {
			p.refresh = false // refreshes do not renew the refresh token
			if err := s.Redeem(t.Context(), "code", ""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(8 * time.Hour)
			s.Close(t.Context())
		}, "consent_ending connector=desk provider=test op= code= status=0 attempt=0 wait=0s took=0s until=2h0m0s until=2h0m0s\n"},
		{"store", false, func(t *testing.T, s *auth.Session, p *product, f *fallible) {
			f.away.Store(true)
			get(t, s)
			time.Sleep(10 * time.Second)
			f.away.Store(false)
			time.Sleep(time.Minute)
		}, `token_obtained connector=desk provider=test op=exchange code= status=0 attempt=1 wait=0s took=0s until=59m0s
store_away connector= provider= op=store code= status=0 attempt=0 wait=0s took=0s err="token store failed"
store_back connector= provider= op=store code= status=0 attempt=0 wait=0s took=10s
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o, f := new(observed), newFallible()
				p := &product{lifetime: time.Hour, refresh: tt.person}
				var provider auth.Provider = p
				if tt.person {
					provider = consenting{p}
				}
				s := newSession(t, provider, &auth.Options{Connector: "desk", Provider: "test", Store: asStore{f}, Observer: o})
				tt.do(t, s, p, f)
				synctest.Wait()
				got := o.String()
				if i := strings.Index(got, string(auth.EventConsentEnding)); i >= 0 {
					got = got[i:] // many exchanges before
				}
				if sorted(got) != sorted(tt.want) {
					t.Errorf("got\n%swant\n%s", got, tt.want)
				}
			})
		})
	}
}

// sorted sorts lines: events come from several goroutines.
func sorted(lines string) string { return strings.Join(slices.Sorted(strings.Lines(lines)), "") }

// An observer may use the session, be slow, and panic.
func TestObserverMisbehaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		o := &hostile{}
		s := newSession(t, &product{lifetime: time.Hour}, &auth.Options{Observer: o, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		o.s = s
		start := time.Now()
		get(t, s)
		if d := time.Since(start); d != 0 {
			t.Errorf("a slow observer delays a call by %s", d)
		}
		if err := s.Close(t.Context()); err != nil || time.Since(start) != time.Minute {
			t.Errorf("Close did not wait for the observer: %v after %s", err, time.Since(start))
		}
		if o.got != "T1" || strings.Contains(log.String(), "canary") || !strings.Contains(log.String(), `msg="the observer panicked" panic=*errors.errorString`) {
			t.Errorf("the observer got %q\n%s", o.got, log.String())
		}
	})
}

type hostile struct {
	s   *auth.Session
	got string
}

func (h *hostile) Observe(ctx context.Context, e auth.Event) {
	if tok, err := h.s.Token(ctx); err == nil {
		h.got = tok.AccessToken
	}
	time.Sleep(time.Minute)
	panic(errors.New("canary"))
}

type traceKey struct{}

// tracing keeps the context of the exchange.
type tracing struct {
	product
	ctx chan context.Context
}

func (p *tracing) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	p.ctx <- ctx
	return p.product.Exchange(ctx, prev)
}

// An exchange has the values of the call that began it, but neither its end nor its hooks.
func TestExchangeCarriesTrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := new(observed)
		p := &tracing{product{lifetime: time.Hour, delay: time.Second}, make(chan context.Context, 1)}
		s := newSession(t, p, &auth.Options{Observer: o})
		traced := func(value string) (context.Context, context.CancelFunc) {
			ctx := context.WithValue(t.Context(), traceKey{}, value)
			ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: func(string) { t.Error("the call's hook sees the token request") }})
			return context.WithTimeout(ctx, time.Millisecond)
		}
		check := func(want string) {
			t.Helper()
			ctx := <-p.ctx
			httptrace.ContextClientTrace(ctx).GetConn("")
			if ctx.Value(traceKey{}) != want || ctx.Err() != nil {
				t.Errorf("the exchange has %v, %v; want %s", ctx.Value(traceKey{}), ctx.Err(), want)
			}
			time.Sleep(time.Minute)
			o.mu.Lock()
			defer o.mu.Unlock()
			if got := o.ctxs[len(o.ctxs)-1]; got.Value(traceKey{}) != want || got.Err() != nil {
				t.Errorf("the observer got %v", got)
			}
		}
		first, cancel := traced("first")
		defer cancel()
		s.Token(first) // leaves
		check("first")
		time.Sleep(57 * time.Minute)
		background, cancel := traced("background")
		defer cancel()
		s.Token(background)
		check("background")
	})
}

// Without an observer nothing is allocated.
func TestNoObserverAllocatesNothing(t *testing.T) {
	s := newSession(t, &product{lifetime: time.Hour}, nil)
	tok, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resp := response(http.StatusOK, "")
	if n := testing.AllocsPerRun(100, func() { s.Token(t.Context()); s.Rejected(resp, tok) }); n > 0 {
		t.Errorf("%.1f allocations", n)
	}
}
