package transport

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
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

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// constant always has the same token.
type constant struct{}

func (constant) Token(context.Context) (*oauth2.Token, error) {
	return &oauth2.Token{AccessToken: "T"}, nil
}
func (constant) Header(*oauth2.Token) http.Header                   { return http.Header{} }
func (constant) Rejected(resp *http.Response, _ *oauth2.Token) bool { return false }
