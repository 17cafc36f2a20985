package auth_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// An exchange may take ExchangeTimeout, whatever the patience of its caller.
func TestExchangeTimeout(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		limit, takes, fails time.Duration
	}{
		{0, 29 * time.Second, 0},
		{0, 33 * time.Second, 30 * time.Second},
		{2 * time.Minute, 33 * time.Second, 0},
		{2 * time.Minute, 119 * time.Second, 0},
		{2 * time.Minute, 121 * time.Second, 2 * time.Minute},
	} {
		t.Run(fmt.Sprint(test.limit, test.takes), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSession(t, &product{lifetime: time.Hour, delay: test.takes}, &auth.Options{ExchangeTimeout: test.limit})
				start := time.Now()
				_, err := s.Token(t.Context())
				if failed := err != nil; failed != (test.fails > 0) || failed && (!errors.Is(err, auth.ErrUnavailable) || time.Since(start) != test.fails ||
					!strings.Contains(err.Error(), fmt.Sprint("no answer within ", test.fails))) {
					t.Errorf("%v after %s", err, time.Since(start))
				}
			})
		})
	}
}

// An exchange that got no answer may have spent the refresh token. If the product then refuses it, the
// error says so. After a time limit ended an exchange, all wait until the exchange may have ended at the product.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	unavailable := func(cause error) error { return fmt.Errorf("%w: %w", auth.ErrUnavailable, cause) }
	for name, test := range map[string]struct {
		limit time.Duration
		err   error         // nil: there is no answer until the exchange is given up
		again time.Duration // how long after the mark the refresh token is sent again
		lost  bool
	}{
		"no answer":            {0, nil, 34 * time.Second, true},
		"no answer for long":   {2 * time.Minute, nil, 124 * time.Second, true},
		"silence of transport": {0, unavailable(os.ErrDeadlineExceeded), 30 * time.Second, true},
		"broken connection":    {0, unavailable(io.ErrUnexpectedEOF), time.Second, true},
		"half an answer":       {0, &auth.Error{Status: 200, Err: unavailable(io.ErrUnexpectedEOF)}, time.Second, true},
		"503":                  {0, &auth.Error{Status: 503, Err: auth.ErrUnavailable}, time.Second, false},
		"no sense":             {0, &auth.Error{Status: 200, Err: auth.ErrProtocol}, time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &product{lifetime: time.Hour, refresh: true}
				s := newSession(t, p, &auth.Options{ExchangeTimeout: test.limit})
				get(t, s)
				time.Sleep(2 * time.Hour)
				marked := time.Now()
				if p.setFail(func(int) error { return test.err }); test.err == nil {
					p.delay = time.Hour
				}
				_, err := s.Token(t.Context())
				if !errors.Is(err, auth.ErrUnavailable) && !errors.Is(err, auth.ErrProtocol) || strings.Contains(err.Error(), "it was lost") != test.lost {
					t.Error(err)
				}
				p.delay = 0
				p.setFail(func(int) error { return &auth.Error{Status: 400, Code: "invalid_grant", Err: auth.ErrConsentRequired} })
				time.Sleep(time.Second)
				_, err = s.Token(t.Context())
				told := "interrupted at " + marked.Format(time.RFC3339) + ": its answer was lost"
				if !errors.Is(err, auth.ErrConsentRequired) || strings.Contains(err.Error(), told) != test.lost || time.Since(marked) != test.again {
					t.Errorf("%v, %s after the mark, want %s", err, time.Since(marked), test.again)
				}
			})
		})
	}
}

// After an exchange that was answered, or never sent, no other process waits, and no error says that an answer
// was lost.
func TestExchangeIsOver(t *testing.T) {
	t.Parallel()
	dialing := func(takes time.Duration) func(context.Context) error {
		return func(ctx context.Context) error {
			tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
				time.Sleep(takes)
				return nil, errors.New("no way there")
			}}
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://sso.example.com/token", nil)
			_, err := tr.RoundTrip(req)
			return fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
		}
	}
	answer := func(e auth.Error) func(context.Context) error {
		return func(context.Context) error { return &e }
	}
	for name, fail := range map[string]func(context.Context) error{
		"500":                        answer(auth.Error{Status: 500, Err: auth.ErrUnavailable}),
		"503":                        answer(auth.Error{Status: 503, Err: auth.ErrUnavailable}),
		"503, and half of its body":  answer(auth.Error{Status: 503, Err: fmt.Errorf("%w: %w", auth.ErrUnavailable, io.ErrUnexpectedEOF)}),
		"302":                        answer(auth.Error{Status: 302, Err: fmt.Errorf("%w: %w", auth.ErrProtocol, auth.ErrInsecure)}),
		"408":                        answer(auth.Error{Status: 408, Err: auth.ErrUnavailable}),
		"418":                        answer(auth.Error{Status: 418, Err: auth.ErrProtocol}),
		"200, no sense":              answer(auth.Error{Status: 200, Err: auth.ErrProtocol}),
		"200, response.errors":       answer(auth.Error{Status: 200, Code: "temporarily_unavailable", Err: auth.ErrUnavailable}),
		"no token":                   func(context.Context) error { return nil },
		"no connection":              dialing(0),
		"no connection, and no time": dialing(time.Minute),
		"an unreadable secret": func(context.Context) error {
			_, err := auth.SecretFile("/nonexistent").Value()
			return fmt.Errorf("%w: client_secret cannot be read: %w", auth.ErrUnavailable, err)
		},
		"an unusable key": func(context.Context) error {
			return fmt.Errorf("%w: private_key: %w", auth.ErrUnavailable, auth.ErrSecret)
		},
	} {
		for _, spent := range []bool{false, true} {
			t.Run(fmt.Sprint(name, spent), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					o := &auth.Options{Store: new(auth.Memory)}
					p := &failing{product: &product{lifetime: time.Hour, refresh: true}}
					s := newSession(t, p, o)
					get(t, s)
					time.Sleep(2 * time.Hour)
					p.exchange = fail
					if _, err := s.Token(t.Context()); err == nil || strings.Contains(err.Error(), "lost") {
						t.Error(err)
					}
					if p.exchange = nil; spent {
						p.setFail(func(int) error { return &auth.Error{Status: 400, Code: "invalid_grant", Err: auth.ErrConsentRequired} })
					}
					start := time.Now()
					_, err := newSession(t, p, o).Token(t.Context())
					if time.Since(start) != 0 || spent != errors.Is(err, auth.ErrConsentRequired) || spent != (err != nil) || spent && strings.Contains(err.Error(), "lost") {
						t.Errorf("the next process: %v after %s", err, time.Since(start))
					}
					time.Sleep(time.Minute) // the dial ends
				})
			})
		}
	}
}

// failing is a product whose exchange can be replaced.
type failing struct {
	*product
	exchange func(context.Context) error
}

func (p *failing) Exchange(ctx context.Context, prev *oauth2.Token) (*oauth2.Token, error) {
	if p.exchange != nil {
		return nil, p.exchange(ctx)
	}
	return p.product.Exchange(ctx, prev)
}

// A pending mark says how long its exchange may take. A mark of an earlier version does not: then it is 30 s.
func TestMarkSaysHowLong(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		limit, want time.Duration
		earlier     bool
	}{
		{0, 30 * time.Second, false},
		{2 * time.Minute, 2 * time.Minute, false},
		{2 * time.Minute, 30 * time.Second, true},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var store auth.Memory
				p := &product{lifetime: time.Hour, refresh: true}
				dying := auth.New(p, &auth.Options{Store: &store, ExchangeTimeout: test.limit})
				get(t, dying)
				time.Sleep(2 * time.Hour)
				marked := time.Now()
				p.delay = time.Hour
				ctx, kill := context.WithTimeout(t.Context(), time.Second)
				defer kill()
				dying.Token(ctx)
				dying.Close(ctx)
				if test.earlier {
					r, err := store.Load(t.Context(), dying.Key())
					var record map[string]any
					if err := errors.Join(err, json.Unmarshal(r.Data, &record)); err != nil {
						t.Fatal(err)
					}
					delete(record["pending"].(map[string]any), "until")
					r.Data, _ = json.Marshal(record)
					if err := store.Save(t.Context(), dying.Key(), r); err != nil {
						t.Fatal(err)
					}
				}
				p.delay = 0
				if get(t, newSession(t, p, &auth.Options{Store: &store})); time.Since(marked) != test.want {
					t.Errorf("sent %s after the mark, want %s", time.Since(marked), test.want)
				}
			})
		})
	}
}
