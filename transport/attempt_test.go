package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/testpki"
)

// A Read of the body of a failed attempt, begun before the attempt was abandoned, must not count as an
// upload of the next attempt: that would suspend its timeout and end the call where it is to be retried.
func TestLateReadLeavesTheNextAttemptAlone(t *testing.T) {
	t.Parallel()
	for name, getBody := range map[string]bool{"with GetBody": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var first *attemptBody
				attempts := 0
				rt, err := New(constant{}, &Options{BaseURL: &url.URL{Scheme: "https", Host: "api.example.com"}, Retry: Retry{MinBackoff: 1},
					Wrap: func(http.RoundTripper) http.RoundTripper {
						return roundTripFunc(func(r *http.Request) (*http.Response, error) {
							switch attempts++; attempts {
							case 1:
								first = r.Body.(*attemptBody)
								return &http.Response{StatusCode: 503, Body: http.NoBody}, nil
							case 2:
								io.Copy(io.Discard, r.Body)
								first.abandoned.Store(false) // as if Read had looked already
								first.Read(make([]byte, 1))
								<-r.Context().Done()
								return nil, context.Cause(r.Context())
							}
							return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
						})
					}})
				if err != nil {
					t.Fatal(err)
				}
				req, _ := http.NewRequest("PUT", "https://api.example.com/", strings.NewReader("body"))
				if !getBody {
					req.GetBody = nil
				}
				start := time.Now()
				resp, err := rt.RoundTrip(req)
				if got := fmt.Sprint(attempts, " attempts in ", time.Since(start).Truncate(time.Second)); err != nil || resp.StatusCode != 200 || got != "3 attempts in 30s" {
					t.Error(got, err)
				}
			})
		})
	}
}

// A resend that gets no second slot is prevented: over HTTP/1 by closing its connection, over HTTP/2,
// where other requests use the connection, by the attempt's context alone.
func TestResendWithoutSlot(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			rt, err := newRoundTripper(constant{}, &Options{BaseURL: &url.URL{Scheme: "https", Host: "api.example.com"},
				Limiter: NewLimiter([]auth.Limit{{Requests: 1, Per: time.Hour}}, 0)})
			if err != nil {
				t.Fatal(err)
			}
			req, _ := http.NewRequest("GET", "https://api.example.com/", nil)
			c := &call{t: rt, req: req, origin: &rt.origins[0], began: time.Now()}
			c.deadline.Store(c.headerDeadline(c.began))
			a := c.begin()
			defer c.end()
			if err := a.admit(); err != nil {
				t.Fatal(err)
			}
			a.slot.Wrote()
			ours, peer := net.Pipe()
			server := tls.Server(peer, &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "api.example.com", time.Now().Add(time.Hour))}, NextProtos: []string{protocol}})
			go io.Copy(io.Discard, server)
			conn := tls.Client(ours, &tls.Config{RootCAs: ca.Pool(), ServerName: "api.example.com", NextProtos: []string{protocol}})
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			httptrace.ContextClientTrace(traced{a}).GotConn(httptrace.GotConnInfo{Conn: conn})
			if !errors.Is(context.Cause(a), auth.ErrRateLimited) {
				t.Errorf("the attempt goes on: %v", context.Cause(a))
			}
			if _, err := conn.Write([]byte("x")); (err == nil) != (protocol == "h2") {
				t.Errorf("writing to the connection: %v", err)
			}
		})
	}
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// constant always has the same token.
type constant struct{}

func (constant) Token(context.Context) (*oauth2.Token, error) {
	return &oauth2.Token{AccessToken: "T"}, nil
}
func (constant) Header(*oauth2.Token) http.Header                   { return http.Header{} }
func (constant) Rejected(resp *http.Response, _ *oauth2.Token) bool { return false }
