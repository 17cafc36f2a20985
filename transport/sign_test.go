package transport_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

// signing is a product whose requests are signed: N-number token. A response with the header Nonce and an
// error status challenges them.
type signing struct {
	product
	sign func(req *http.Request, tok *oauth2.Token) error // besides; may be nil
	off  bool

	mu         sync.Mutex
	signed     int
	nonce      string
	challenged []string // status and body of each response
}

func (p *signing) Signs() bool { return !p.off }

func (p *signing) Sign(req *http.Request, tok *oauth2.Token) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signed++
	req.Header.Set("Signature", fmt.Sprintf("%s%d %s", p.nonce, p.signed, tok.AccessToken))
	for _, v := range req.Header["Accept"] {
		req.Header["Accept"][0] = "changed " + v
	}
	if req.Header.Get("Authorization") != "Bearer "+tok.AccessToken {
		return errors.New("Sign came before Header")
	}
	if p.sign != nil {
		return p.sign(req, tok)
	}
	return nil
}

func (p *signing) Challenged(resp *http.Response, body []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.challenged = append(p.challenged, fmt.Sprint(resp.StatusCode, string(body)))
	nonce, ok := resp.Header["Nonce"]
	if ok {
		p.nonce = nonce[0] + "-"
	}
	return ok
}

// signed returns a client whose requests p signs.
func signed(t *testing.T, p auth.Provider, base string, o transport.Options) *http.Client {
	t.Helper()
	s := auth.New(p, &auth.Options{Connector: "test", Provider: "hmac"})
	t.Cleanup(func() { s.Close(context.Background()) })
	o.BaseURL, o.Connector, o.Retry = parse(t, base), "test", quick
	c, err := transport.NewClient(s, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// A script answers the nth request with the nth status; what follows a blank is the body, and N is a nonce.
func script(t *testing.T, answers ...string) (base string, seen func() []string) {
	var mu sync.Mutex
	var log []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		log = append(log, strings.TrimSpace(r.Header.Get("Signature")+" "+string(b[:min(len(b), 20)])))
		n := min(len(log), len(answers)) - 1
		mu.Unlock()
		answer, body, _ := strings.Cut(answers[n], " ")
		if status, ok := strings.CutSuffix(answer, "N"); ok {
			w.Header().Set("Nonce", "N")
			answer = status
		}
		if to, ok := strings.CutPrefix(body, "to "); ok {
			w.Header().Set("Location", to)
		}
		var status int
		fmt.Sscan(answer, &status)
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(log) }
}

func TestSigned(t *testing.T) {
	t.Parallel()
	elsewhere, seenElsewhere := script(t, "200 there")
	large := strings.Repeat("x", 2<<20)
	for _, row := range []struct {
		name    string
		answers []string
		body    io.Reader // nil: GET
		off     bool
		want    []string // signature and body of each request
		status  int
	}{
		{"each retry", []string{"503", "503", "200"}, nil, false, []string{"1 T1", "2 T1", "3 T1"}, 200},
		{"a replay with a new token", []string{"401 token", "200"}, strings.NewReader("data"), false, []string{"1 T1 data", "2 T2 data"}, 200},
		{"a redirect", []string{"307 to /x", "200"}, strings.NewReader("data"), false, []string{"1 T1 data", "2 T1 data"}, 200},
		{"a challenge", []string{"401N", "200"}, nil, false, []string{"1 T1", "N-2 T1"}, 200},
		{"a challenged body", []string{"400N", "200"}, strings.NewReader("data"), false, []string{"1 T1 data", "N-2 T1 data"}, 200},
		{"a challenged body without GetBody", []string{"401N", "200"}, io.NopCloser(strings.NewReader("data")), false, []string{"1 T1 data", "N-2 T1 data"}, 200},
		{"a body too long to be kept", []string{"401N", "200"}, io.NopCloser(strings.NewReader(large)), false, []string{"1 T1 " + large[:20]}, 401},
		{"a challenge in a row", []string{"401N", "401N", "200"}, nil, false, []string{"1 T1", "N-2 T1"}, 401},
		{"a refusal after a challenge", []string{"401N token", "401N token", "200"}, nil, false, []string{"1 T1", "N-2 T1", "N-3 T2"}, 200},
		{"a challenge after a refusal", []string{"401N token", "401 token", "401N token", "200"}, nil, false, []string{"1 T1", "N-2 T1", "N-3 T2", "N-4 T2"}, 200},
		{"a challenge after a retry", []string{"401N", "503", "401N", "200"}, nil, false, []string{"1 T1", "N-2 T1", "N-3 T1", "N-4 T1"}, 200},
		{"success is no challenge", []string{"200N", "200"}, strings.NewReader("data"), false, []string{"1 T1 data"}, 200},
		{"a provider that does not sign", []string{"401N", "200"}, nil, true, []string{""}, 401},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p := &signing{off: row.off}
			base, seen := script(t, row.answers...)
			c := signed(t, p, base, transport.Options{})
			req, _ := http.NewRequest("GET", base+"/", nil)
			if row.body != nil {
				req, _ = http.NewRequest("POST", base+"/", row.body)
			}
			req.Header.Set("Signature", "the caller's")
			req.Header.Set("Accept", "text/plain")
			if row.off {
				req.Header.Del("Signature")
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if _, want, _ := strings.Cut(row.answers[len(seen())-1], " "); string(got) != want {
				t.Errorf("the body of the response is %q", got)
			}
			if resp.StatusCode != row.status || !slices.Equal(seen(), row.want) {
				t.Errorf("HTTP %d after %q; want %d after %q", resp.StatusCode, seen(), row.status, row.want)
			}
			if !row.off && (req.Header.Get("Signature") != "the caller's" || req.Header.Get("Accept") != "text/plain" || len(p.challenged) != len(row.want)) {
				t.Errorf("the caller's header is now %q; the provider saw %q", req.Header, p.challenged)
			}
		})
	}
	t.Run("to another origin", func(t *testing.T) {
		t.Parallel()
		p := new(signing)
		base, _ := script(t, "302 to "+elsewhere+"/x")
		resp, err := signed(t, p, base, transport.Options{}).Get(base)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := seenElsewhere(); len(got) != 1 || got[0] != "" || len(p.challenged) != 1 {
			t.Errorf("the other origin saw %q, the provider %q", got, p.challenged)
		}
	})
	t.Run("to an allowed origin", func(t *testing.T) {
		t.Parallel()
		p := new(signing)
		allowed, seen := script(t, "200")
		base, _ := script(t, "302 to "+allowed)
		resp, err := signed(t, p, base, transport.Options{AllowedOrigins: []*url.URL{parse(t, allowed)}}).Get(base)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := seen(); !slices.Equal(got, []string{"2 T1"}) {
			t.Errorf("the allowed origin saw %q", got)
		}
	})
}

// The provider reads the body by GetBody, and what is sent is whole.
func TestSignatureOfTheBody(t *testing.T) {
	t.Parallel()
	var read []string
	p := &signing{sign: func(req *http.Request, _ *oauth2.Token) error {
		if req.Body != nil && req.GetBody == nil {
			return errors.New("the body can be read only once")
		}
		body, err := req.GetBody()
		if err != nil {
			return err
		}
		defer body.Close()
		b, err := io.ReadAll(body)
		read = append(read, string(b))
		req.URL.RawQuery = "signature=abc"
		return err
	}}
	base, seen := script(t, "503", "200")
	c := signed(t, p, base, transport.Options{})
	req, _ := http.NewRequest("PUT", base+"/x?a=b", bytes.NewReader([]byte("data")))
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if want := []string{"1 T1 data", "2 T1 data"}; !slices.Equal(seen(), want) || !slices.Equal(read, []string{"data", "data"}) {
		t.Errorf("sent %q, signed %q", seen(), read)
	}
	if req.URL.RawQuery != "a=b" || resp.Request.URL.RawQuery != "a=b" {
		t.Errorf("the query of the caller's request is now %q, the response's %q", req.URL.RawQuery, resp.Request.URL.RawQuery)
	}
}

// An error of Sign ends the call, and nothing is sent.
func TestSignFails(t *testing.T) {
	t.Parallel()
	closed := errors.New("the key is locked")
	for name, row := range map[string]struct {
		sign func(*http.Request) error
		want string
		is   error
	}{
		"an error":        {func(*http.Request) error { return closed }, "test: sign: the key is locked", closed},
		"an *auth.Error":  {func(*http.Request) error { return &auth.Error{Op: "sign", Err: auth.ErrUnavailable} }, "test: sign: unavailable", auth.ErrUnavailable},
		"another host":    {func(r *http.Request) error { r.URL.Host = "evil.example"; return nil }, "origin", auth.ErrInsecure},
		"another Host":    {func(r *http.Request) error { r.Host = "evil.example"; return nil }, "origin", auth.ErrInsecure},
		"another scheme":  {func(r *http.Request) error { r.URL.Scheme = "ftp"; return nil }, "origin", auth.ErrInsecure},
		"an opaque URL":   {func(r *http.Request) error { r.URL.Opaque = "//evil.example/"; return nil }, "origin", auth.ErrInsecure},
		"no URL":          {func(r *http.Request) error { r.URL = nil; return nil }, "origin", auth.ErrInsecure},
		"another method":  {func(r *http.Request) error { r.Method = "DELETE"; return nil }, "method", auth.ErrInsecure},
		"the body itself": {func(r *http.Request) error { _, err := io.ReadAll(r.Body); return err }, "GetBody", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, seen := script(t, "200")
			c := signed(t, &signing{sign: func(r *http.Request, _ *oauth2.Token) error { return row.sign(r) }}, base, transport.Options{})
			_, err := c.Post(base, "text/plain", strings.NewReader("data"))
			if e, ok := errors.AsType[*auth.Error](err); !ok || e.Op != "sign" || row.is != nil && !errors.Is(err, row.is) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, want an *auth.Error: %s", err, row.want)
			}
			if len(seen()) > 0 {
				t.Errorf("%q was sent", seen())
			}
		})
	}
}

// Of an Authenticator that is no Session, transport takes the methods that it has.
func TestSignerOfAnotherAuthenticator(t *testing.T) {
	t.Parallel()
	session := auth.New(new(product), nil)
	defer session.Close(t.Context())
	for first, want := range map[string][]string{"401N": {"1 T1", "N-2 T1"}, "200N": {"1 T1"}} {
		base, seen := script(t, first, "200")
		c, err := transport.NewClient(justSigning{session, new(signing)}, &transport.Options{BaseURL: parse(t, base)})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Get(base)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if !slices.Equal(seen(), want) {
			t.Errorf("sent %q, want %q", seen(), want)
		}
	}
}

type justSigning struct {
	auth.Authenticator
	p *signing
}

func (a justSigning) Sign(r *http.Request, tok *oauth2.Token) error { return a.p.Sign(r, tok) }
func (a justSigning) Challenged(r *http.Response, body []byte) bool { return a.p.Challenged(r, body) }

// A server may have seen the signature of a request that it did not answer.
func TestSignedAnewAfterABrokenConnection(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if seen = append(seen, r.Header.Get("Signature")); len(seen) == 2 {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			conn.Close()
		}
	}))
	defer srv.Close()
	c := signed(t, new(signing), srv.URL, transport.Options{})
	for range 2 {
		resp, err := c.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if want := []string{"1 T1", "2 T1", "3 T1"}; !slices.Equal(seen, want) {
		t.Errorf("sent %q, want %q", seen, want)
	}
}
