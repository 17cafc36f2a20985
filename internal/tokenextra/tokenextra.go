// Package tokenextra keeps in a token what belongs to it and has no field there. It is in the token, because
// a call may ask for it when the session has another token already.
package tokenextra

import "golang.org/x/oauth2"

const (
	adopted    = "itsmauth_adopted"
	signingKey = "itsmauth_signing_key"
	cookies    = "itsmauth_cookies"
)

// with returns a copy of tok with one more value, or another one.
func with(tok *oauth2.Token, key string, value any) *oauth2.Token {
	all := map[string]any{}
	for _, k := range []string{adopted, signingKey, cookies} {
		all[k] = tok.Extra(k)
	}
	all[key] = value
	return tok.WithExtra(all)
}

// withSecret is with, but keeps a function, because nothing can print what a function holds.
func withSecret(tok *oauth2.Token, key, value string) *oauth2.Token {
	return with(tok, key, func() string { return value })
}

func secret(tok *oauth2.Token, key string) string {
	if f, ok := tok.Extra(key).(func() string); ok {
		return f()
	}
	return ""
}

// Adopt returns a copy of tok with the mark that a session took it from its store.
func Adopt(tok *oauth2.Token) *oauth2.Token { return with(tok, adopted, true) }

// Adopted reports whether tok has the mark.
func Adopted(tok *oauth2.Token) bool { return tok.Extra(adopted) == true }

// WithSigningKey returns a copy of tok with a signing key.
func WithSigningKey(tok *oauth2.Token, key string) *oauth2.Token {
	return withSecret(tok, signingKey, key)
}

// SigningKey returns tok's signing key, or "".
func SigningKey(tok *oauth2.Token) string { return secret(tok, signingKey) }

// WithCookies returns a copy of tok with cookies that its requests need, as the header Cookie has them.
func WithCookies(tok *oauth2.Token, header string) *oauth2.Token {
	return withSecret(tok, cookies, header)
}

// Cookies returns tok's cookies, or "".
func Cookies(tok *oauth2.Token) string { return secret(tok, cookies) }
