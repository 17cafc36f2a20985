package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/internal/redistest"
)

// setup starts a server whose tokens live long, and says where it is.
func setup(tb testing.TB, size int) Setup {
	srv := httptest.NewServer(new(Server))
	tb.Cleanup(srv.Close)
	api, err := url.Parse(srv.URL + "/a/api")
	must(err)
	token, err := url.Parse(fmt.Sprintf("%s/a/token?size=%d", srv.URL, size))
	must(err)
	return Setup{API: api, TokenURL: token, Lifetime: time.Hour}
}

// Every peer works, or its figures mean nothing.
func TestPeers(t *testing.T) {
	for _, p := range Peers {
		t.Run(p.Name, func(t *testing.T) {
			s := setup(t, 40)
			stack := p.New(s)
			defer stack.Close()
			for range 3 {
				req, _ := http.NewRequest("POST", s.API.String(), strings.NewReader(body))
				if p.Name == "plain" {
					req.Header.Set("X-Anonymous", "1")
				}
				resp, err := stack.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Fatal(resp.Status)
				}
			}
		})
	}
}

// floor is the least that a cached read does: an atomic load and a look at the clock.
func floor(Setup) Stack {
	var tok atomic.Pointer[oauth2.Token]
	tok.Store(&oauth2.Token{AccessToken: "0123456789", Expiry: time.Now().Add(time.Hour)})
	expires := tok.Load().Expiry.UnixNano()
	return Stack{Close: func() {}, Token: func(context.Context) (string, error) {
		if t := tok.Load(); time.Now().UnixNano() < expires {
			return t.AccessToken, nil
		}
		return "", io.EOF
	}}
}

// The cached read: a token that is fresh.
func BenchmarkToken(b *testing.B) {
	for _, p := range append([]Peer{{"floor", floor}}, Peers...) {
		stack := p.New(setup(b, 40))
		defer stack.Close()
		if stack.Token == nil || p.Name == HandBuilt { // the same as x/oauth2's
			continue
		}
		ctx := context.Background()
		if _, err := stack.Token(ctx); err != nil {
			b.Fatal(err)
		}
		b.Run("serial/"+p.Name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := stack.Token(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("parallel/"+p.Name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := stack.Token(ctx); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

var body = strings.Repeat("0123456789abcdef", 64)

// stub answers without a network.
var stub = roundTripper(func(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	return &http.Response{Status: "200 OK", StatusCode: 200, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: stubHeader, Body: http.NoBody, Request: req}, nil
})

var stubHeader = http.Header{"Content-Type": {"application/json"}}

// shallow is the least that a correct RoundTripper does: a copy of the request with a header of its
// own.
var shallow = roundTripper(func(req *http.Request) (*http.Response, error) {
	out := *req
	out.Header = make(http.Header, len(req.Header)+1)
	for k, v := range req.Header {
		out.Header[k] = v
	}
	out.Header["Authorization"] = shallowValue
	return stub(&out)
})

var shallowValue = []string{"Bearer 0123456789012345678901234567890123456789"}

// redis is a store in a Redis of its own, or nil where none is installed.
func redis(b *testing.B) auth.Store {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return nil
	}
	s, err := redisstore.Open(redisstore.Config{URL: auth.SecretString(redistest.Start(b).URL())})
	must(err)
	b.Cleanup(func() { s.(io.Closer).Close() })
	return s
}

type trip struct {
	name string
	rt   http.RoundTripper
}

// A request through the whole stack, with a stub in place of the network.
func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range []int{40, 1024} {
		for _, method := range []string{"GET", "POST"} {
			stacks := []trip{{"floor-stub", stub}, {"floor-shallow-copy", shallow}}
			s := setup(b, size)
			s.Base = stub
			for _, p := range Peers {
				if p.Name == "plain" {
					continue
				}
				stack := p.New(s)
				defer stack.Close()
				if stack.Trip == nil {
					stack.Trip = roundTripper(stack.Do)
				}
				stacks = append(stacks, trip{p.Name, stack.Trip})
				if shared := s; p.Name == Ours { // to be compared with it, and so beside it
					if shared.Store = redis(b); shared.Store != nil {
						stack := itsmauth(shared)
						defer stack.Close()
						stacks = append(stacks, trip{Ours + "+Redis", stack.Trip})
					}
				}
			}
			for _, stack := range stacks {
				b.Run(fmt.Sprintf("%s/token=%d/%s", method, size, stack.name), func(b *testing.B) {
					newRequest := func() *http.Request {
						var payload io.Reader
						if method == "POST" {
							payload = strings.NewReader(body)
						}
						req, err := http.NewRequest(method, s.API.String(), payload)
						must(err)
						req.Header.Set("Accept", "application/json")
						return req
					}
					req := newRequest()
					b.ReportAllocs()
					for b.Loop() {
						if req.Body != nil {
							req.Body, _ = req.GetBody()
						}
						resp, err := stack.rt.RoundTrip(req)
						if err != nil {
							b.Fatal(err)
						}
						resp.Body.Close()
					}
				})
			}
		}
	}
}
