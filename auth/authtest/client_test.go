package authtest

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

// TestClient compares the client of the tests with that of production.
func TestClient(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}
	}))
	defer s.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	ours := new(kit).connect(t, http.DefaultTransport.RoundTrip).ctx.Value(oauth2.HTTPClient).(*http.Client)
	theirs := transport.NewExchanger(nil)
	defer theirs.CloseIdleConnections()
	for url, want := range map[string]string{
		s.URL + "/":                    "200",
		s.URL + "/redirect":            "307",
		"http://127.0.0.1.nip.invalid": "refused to send",
		"http://192.0.2.1:" + port:     "refused to send",
	} {
		for name, c := range map[string]*http.Client{"the test's": ours, "production's": theirs} {
			req, _ := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader("secret"))
			got := ""
			resp, err := c.Do(req)
			if err == nil {
				resp.Body.Close()
				got = fmt.Sprint(resp.StatusCode)
			} else if e, ok := errors.AsType[*auth.Error](err); ok && errors.Is(e, auth.ErrInsecure) {
				got = "refused to send"
			}
			if got != want {
				t.Errorf("%s client, POST %s: %q (%v), want %q", name, url, got, err, want)
			}
		}
	}
}
