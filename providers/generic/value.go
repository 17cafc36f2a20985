package generic

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/internal/jsonbody"
)

// decodeForm parses a form with an error or an access token. It returns nil for anything else.
func decodeForm(body []byte) any {
	fields, err := url.ParseQuery(string(trim(body)))
	if err != nil || !fields.Has("error") && !fields.Has("access_token") || bytes.ContainsAny(body, "<{") {
		return nil
	}
	doc := map[string]any{}
	for name := range fields {
		doc[name] = fields.Get(name)
	}
	return doc
}

// trim removes white space around body, and a byte order mark.
func trim(body []byte) []byte { return bytes.TrimSpace(bytes.TrimPrefix(body, jsonbody.ByteOrderMark)) }

// token returns a string, or a number as it is written, and "" for anything else.
func token(v any) string {
	if n, ok := v.(json.Number); ok {
		return n.String()
	}
	return str(v)
}

// str returns a string, and "" for anything else.
func str(v any) string {
	s, _ := v.(string)
	return s
}

// knownKeys are names that token responses have. Others are not shown: a server may repeat in any text what it was
// sent.
var knownKeys = []string{"access_token", "accessToken", "AccessToken", "token", "Token", "id_token", "idToken", "jwt", "JWT", "auth_token", "authToken",
	"session_token", "sessionToken", "session_id", "sessionId", "session", "ticket", "key", "api_key", "apiKey", "bearer",
	"token_type", "tokenType", "expires_in", "expiresIn", "expires", "expires_at", "expiresAt", "expiry", "refresh_token", "refreshToken", "scope",
	"data", "result", "results", "response", "payload", "body", "value", "content", "d", "status", "success", "message", "error", "errors", "code",
	"user", "account", "credentials", "authentication", "auth", "login"}

// keysOf says which keys the response has, without their values.
func keysOf(doc any) string {
	object, ok := doc.(map[string]any)
	if !ok || len(object) == 0 {
		return ""
	}
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(object)) {
		if slices.Contains(knownKeys, k) {
			keys = append(keys, k)
		}
	}
	keys = keys[:min(len(keys), 10)]
	switch others := len(object) - len(keys); {
	case len(keys) == 0:
		return "; the response has none of the usual keys"
	case others > 0:
		keys = append(keys, fmt.Sprintf("and %d more", others))
	}
	return "; the response has the keys " + strings.Join(keys, ", ")
}

// first returns the first non-empty value at pointer, converted by [jsonbody.Text], token or str.
func first(doc any, pointer string, as func(any) string) string {
	for _, v := range jsonbody.Find(doc, pointer) {
		if s := as(v); s != "" {
			return s
		}
	}
	return ""
}
