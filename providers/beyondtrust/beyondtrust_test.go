package beyondtrust_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/providers/beyondtrust"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

func connect(t *testing.T, base, id, secret string) auth.Provider {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	p, err := beyondtrust.New(beyondtrust.Config{ClientID: id, ClientSecret: auth.SecretString(secret)}, auth.Env{BaseURL: u})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBasicOnTheWire checks the bytes of the Basic header: x/oauth2 would URL-escape id and secret.
func TestBasicOnTheWire(t *testing.T) {
	t.Parallel()
	for _, pair := range [][2]string{{"id", "plain"}, {"a+b/c=d&e%f", "g+h/i=j&k%2Bl:m"}, {"köln", "pässwörd√"}, {"id", "\xe9\xff"}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		wire := make(chan []byte, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				close(wire)
				return
			}
			defer c.Close()
			var raw bytes.Buffer
			if r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &raw))); err == nil {
				io.Copy(io.Discard, r.Body)
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{\"access_token\":\"AT\"}")
			wire <- raw.Bytes()
		}()
		_, err = connect(t, "http://"+l.Addr().String(), pair[0], pair[1]).Exchange(t.Context(), nil)
		l.Close()
		if err != nil {
			t.Fatal(err)
		}
		got := <-wire
		want := "\r\nAuthorization: Basic " + base64.StdEncoding.EncodeToString([]byte(pair[0]+":"+pair[1])) + "\r\n"
		if !bytes.HasPrefix(got, []byte("POST /oauth2/token HTTP/1.1\r\n")) || !bytes.Contains(got, []byte(want)) ||
			!bytes.HasSuffix(got, []byte("\r\n\r\ngrant_type=client_credentials")) {
			t.Errorf("%q: on the wire is %q", pair, got)
		}
	}
}

func TestAgainstTheEmulator(t *testing.T) {
	t.Parallel()
	s := beyondtrusttest.NewServer(nil)
	defer s.Close()
	p := connect(t, s.URL, beyondtrusttest.DefaultClientID, beyondtrusttest.DefaultClientSecret)
	tok, err := p.Exchange(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if tok.RefreshToken != "" || tok.ExpiresIn != 3600 {
		t.Errorf("%+v", tok)
	}
	call := func(query string) (status int, rejected bool) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/api/command?"+query, nil)
		req.Header = p.Header(tok)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, p.Rejects(resp, body)
	}
	check := func(query string, status int, rejected bool) {
		t.Helper()
		if gotStatus, got := call(query); gotStatus != status || got != rejected {
			t.Errorf("%s: %d, rejected %v; want %d, %v", query, gotStatus, got, status, rejected)
		}
	}
	check("action=get_api_info", 200, false)
	check("action=get_api_info&no_such_parameter=1", 401, false)
	s.RevokeAll()
	check("action=get_api_info", 401, true)

	s.SetSecret("another")
	_, err = p.Exchange(t.Context(), nil)
	var e *auth.Error
	if !errors.Is(err, auth.ErrCredentials) || !errors.As(err, &e) || e.Code != "invalid_client" || e.Provider != "beyondtrust" {
		t.Error(err)
	}
	s.Throttle(1, "12")
	_, err = p.Exchange(t.Context(), nil)
	if !errors.Is(err, auth.ErrRateLimited) || !errors.As(err, &e) || e.RetryAfter != 12*time.Second {
		t.Error(err)
	}
}

func TestProvider(t *testing.T) {
	t.Parallel()
	s := beyondtrusttest.NewServer(nil)
	defer s.Close()
	get := func(query string) func() *http.Request {
		return func() *http.Request {
			r, _ := http.NewRequest("GET", s.URL+"/api/config/v1/jump-item"+query, nil)
			return r
		}
	}
	authtest.TestProvider(t, func(t *testing.T) auth.Provider {
		return connect(t, s.URL, beyondtrusttest.DefaultClientID, beyondtrusttest.DefaultClientSecret)
	}, authtest.Product{
		Good: get(""), Refused: get("?no_such_parameter=1"), Kill: s.Revoke,
		Secrets: []string{beyondtrusttest.DefaultClientSecret},
	})
}

func TestTraffic(t *testing.T) {
	t.Parallel()
	want := auth.Traffic{Limits: []auth.Limit{{Requests: 20, Per: time.Second}, {Requests: 15000, Per: time.Hour}}, Close: true}
	if d := cmp.Diff(want, connect(t, "https://x", "id", "s").(auth.Shaped).Traffic()); d != "" {
		t.Error(d)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	p, err := beyondtrust.New(beyondtrust.Config{}, auth.Env{})
	if want := "base_url: required\nclient_id: required\nclient_secret: required"; p != nil || err == nil || err.Error() != want {
		t.Errorf("%v, %v", p, err)
	}
	base, _ := url.Parse("https://x/")
	p, err = beyondtrust.New(beyondtrust.Config{ClientID: "a:b", ClientSecret: auth.SecretString("s")}, auth.Env{BaseURL: base})
	var key *auth.KeyError
	if p != nil || !errors.As(err, &key) || key.Key != "client_id" {
		t.Errorf("%v, %v", p, err)
	}
}

func ExampleNew() {
	appliance := beyondtrusttest.NewServer(nil)
	defer appliance.Close()
	base, _ := url.Parse(appliance.URL)

	p, err := beyondtrust.New(beyondtrust.Config{
		ClientID:     beyondtrusttest.DefaultClientID,
		ClientSecret: auth.SecretString(beyondtrusttest.DefaultClientSecret),
	}, auth.Env{Name: "support", BaseURL: base})
	fmt.Println(p != nil, err)
	// Output: true <nil>
}
