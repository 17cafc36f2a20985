// Package adopted marks tokens that a session took from its store. The mark travels with the token,
// since a call asks for it after the session may have gone on to another one.
package adopted

import "golang.org/x/oauth2"

const extra = "itsmauth_adopted"

// Mark gives a copy of tok with the mark.
func Mark(tok *oauth2.Token) *oauth2.Token {
	return tok.WithExtra(map[string]any{extra: true})
}

// Is reports whether tok has the mark.
func Is(tok *oauth2.Token) bool { return tok.Extra(extra) == true }
