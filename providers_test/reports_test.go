package providers_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/itsmauth/itsmauth/config"
)

// Each case is a server of a kind that users of other clients have reported trouble with.
func TestReportedServers(t *testing.T) {
	t.Parallel()
	bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, "Only one auth mechanism allowed")
			return
		}
		io.WriteString(w, "the file")
	}))
	t.Cleanup(bare.Close)
	for name, tt := range map[string]struct {
		token    string // the token response; %d is a number
		settings string
		api      http.HandlerFunc
		path     string
		want     string // the API's response
		tokens   int64  // how many were requested
	}{
		"the scope is a list, the error null": {
			token: `{"access_token":"%d","scope":["a","b"],"token_type":["bearer"],"refresh_token":null,"error":null,"error_description":"","expires_in":"3600"}`,
			want:  "Bearer 1", tokens: 1,
		},
		"the error is empty":    {token: `{"access_token":"%d","error":"","success":true}`, want: "Bearer 1", tokens: 1},
		"the error is false":    {token: `{"access_token":"%d","error":false}`, want: "Bearer 1", tokens: 1},
		"a byte order mark":     {token: "\ufeff" + `{"access_token":"%d"}`, want: "Bearer 1", tokens: 1},
		"the type in lowercase": {token: `{"access_token":"%d","token_type":"bearer"}`, want: "Bearer 1", tokens: 1},
		"an encoded slash in the path": {
			api:  func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) },
			path: "/projects/group%2Fproject?ref=a%2Fb", want: "/api/projects/group%2Fproject?ref=a%2Fb", tokens: 1,
		},
		"a file on another host that refuses tokens": {
			api: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, bare.URL+"?X-Amz-Signature=x", http.StatusFound)
			},
			want: "the file", tokens: 1,
		},
		"an expired token is sent to the login page": {
			settings: "rejected_when: [{status: 401}, {status: 302}]",
			api: func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") == "Bearer 1" {
					http.Redirect(w, r, "/login.do", http.StatusFound)
					return
				}
				io.WriteString(w, r.URL.Path)
			},
			path: "/x", want: "/api/x", tokens: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var tokens atomic.Int64
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/token" && tt.token == "":
					fmt.Fprintf(w, `{"access_token":"%d"}`, tokens.Add(1))
				case r.URL.Path == "/token":
					fmt.Fprintf(w, tt.token, tokens.Add(1))
				case tt.api == nil:
					io.WriteString(w, r.Header.Get("Authorization"))
				default:
					tt.api(w, r)
				}
			}))
			t.Cleanup(s.Close)
			conns, err := config.Parse("reports.yaml", []byte(fmt.Sprintf(`version: 1
connectors:
  c:
    provider: oauth2
    base_url: %s/api
    token_url: %[1]s/token
    client_id: id
    client_secret: secret
    %s
`, s.URL, tt.settings)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conns.Close() })
			c, err := conns.Get("c")
			if err != nil {
				t.Fatal(err)
			}
			req, err := c.NewRequest(t.Context(), "GET", tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 200 || strings.TrimSpace(string(body)) != tt.want || tokens.Load() != tt.tokens {
				t.Errorf("%d %q, %v, %d tokens; want %q, %d", resp.StatusCode, body, err, tokens.Load(), tt.want, tt.tokens)
			}
		})
	}
}
