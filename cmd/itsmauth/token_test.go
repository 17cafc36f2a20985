package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/oauth2"
)

// What token prints is one token, or its headers: neither another header nor codes of a terminal.
func TestTokenIsOneLine(t *testing.T) {
	t.Parallel()
	server := plainServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]string{"access_token": "t", "token_type": "Bearer t\r\nX-Evil: 1"})
	}))
	file := onlineFile(t, "    provider: oauth2\n    base_url: "+server+"\n    token_url: "+server+"/token\n    client_id: i\n    client_secret: s\n")
	for _, args := range [][]string{{"--header"}, nil, {"--output", "json"}} {
		if code, stdout, stderr := itsmauth(t.Context(), append([]string{"--config", file, "token", "target"}, args...)...); code != 1 || stdout != "" || strings.Contains(stderr, "Evil") {
			t.Errorf("%v: exit %d, %q %q", args, code, stdout, stderr)
		}
	}
	for value, want := range map[string]bool{"Bearer abc-._~+/=": true, "Bearer a\nX-Evil: 1": false, "Bearer a\x1b[2J": false, "Bearer \u202ea": false, "Bearer \x9ba": false, "Bearer \u009ba": false} {
		_, tok, _ := strings.Cut(value, " ")
		for _, err := range []error{
			checkSendable(&oauth2.Token{AccessToken: tok}, nil),
			checkSendable(&oauth2.Token{AccessToken: "t"}, http.Header{"Authorization": {value}}),
		} {
			if (err == nil) != want {
				t.Errorf("%q: %v", value, err)
			}
		}
	}
}
