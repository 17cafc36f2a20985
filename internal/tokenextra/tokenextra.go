// Package tokenextra keeps in a token what belongs to it and has no field there. It is in the token, because
// a call may ask for it when the session has another token already.
package tokenextra

import "golang.org/x/oauth2"

const (
	adopted    = "itsmauth_adopted"
	signingKey = "itsmauth_signing_key"
)

// Adopt returns a copy of tok with the mark that a session took it from its store.
func Adopt(tok *oauth2.Token) *oauth2.Token {
	return tok.WithExtra(map[string]any{adopted: true, signingKey: tok.Extra(signingKey)})
}

// Adopted reports whether tok has the mark.
func Adopted(tok *oauth2.Token) bool { return tok.Extra(adopted) == true }

// WithSigningKey returns a copy of tok with a signing key. The copy holds a function, because nothing can
// print what a function holds.
func WithSigningKey(tok *oauth2.Token, key string) *oauth2.Token {
	return tok.WithExtra(map[string]any{signingKey: func() string { return key }})
}

// SigningKey returns tok's signing key, or "".
func SigningKey(tok *oauth2.Token) string {
	if key, ok := tok.Extra(signingKey).(func() string); ok {
		return key()
	}
	return ""
}
