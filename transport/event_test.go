package transport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

type observed struct {
	mu     sync.Mutex
	events []string
}

func (o *observed) Observe(ctx context.Context, e auth.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := ""
	if e.Err != nil {
		err = fmt.Sprintf(" limited=%v", errors.Is(e.Err, auth.ErrRateLimited))
	}
	wait := e.Wait
	if e.Op == "retry" && wait < time.Second {
		wait = 0 // random
	}
	o.events = append(o.events, fmt.Sprintf("%v: %s %s %s %s %d attempt=%d wait=%s%s", ctx.Value(callKey{}), e.Kind, e.Connector, e.Provider, e.Op, e.Status, e.Attempt, wait, err))
}

type callKey struct{}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestEvents(t *testing.T) {
	t.Parallel()
	statuses := func(codes ...int) func(int) (int, error) {
		return func(n int) (int, error) { return codes[min(n, len(codes)-1)], nil }
	}
	for _, tt := range []struct {
		name    string
		product func(n int) (int, error) // n counts attempts from 0
		limits  []auth.Limit
		calls   int
		want    []string
	}{
		{"no events", statuses(200, 404), nil, 2, nil},
		{"retries", statuses(503, 502, 200), nil, 1, []string{
			"1: call_retried test test retry 503 attempt=1 wait=0s", "1: call_retried test test retry 502 attempt=2 wait=0s"}},
		{"without a response", func(n int) (int, error) {
			if n == 0 {
				return 0, io.ErrUnexpectedEOF
			}
			return 200, nil
		}, nil, 1, []string{"1: call_retried test test retry 0 attempt=1 wait=0s limited=false"}},
		{"a rejected token", statuses(401, 200), nil, 1, []string{"1: call_retried test test replay 401 attempt=1 wait=0s"}},
		{"a rate limit", statuses(200), []auth.Limit{{Requests: 1, Per: 10 * time.Second}}, 2, []string{"2: call_limited test test request 0 attempt=1 wait=10.000000001s"}},
		{"a limit without room in time", statuses(200), []auth.Limit{{Requests: 1, Per: time.Hour}}, 2, []string{"2: call_limited test test request 0 attempt=1 wait=0s limited=true"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o, n := new(observed), 0
				c := client(t, new(product), "http://localhost", transport.Options{Provider: "test", Observer: o,
					Limiter: transport.NewLimiter(tt.limits, 0),
					Wrap: func(http.RoundTripper) http.RoundTripper {
						return roundTripperFunc(func(r *http.Request) (*http.Response, error) {
							status, err := tt.product(n)
							n++
							if err != nil {
								return nil, err
							}
							return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("token")), Request: r}, nil
						})
					}})
				for i := range tt.calls {
					req, err := http.NewRequestWithContext(context.WithValue(t.Context(), callKey{}, i+1), "GET", "http://localhost/x", nil)
					if err != nil {
						t.Fatal(err)
					}
					if resp, err := c.Do(req); err == nil {
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				}
				if !slices.Equal(o.events, tt.want) {
					t.Errorf("got\n%s\nwant\n%s", strings.Join(o.events, "\n"), strings.Join(tt.want, "\n"))
				}
			})
		})
	}
}
