// Package adopted marks tokens that a session took from its store. The mark is in the token, because a
// call may ask for it when the session has another token already.
package adopted

import "golang.org/x/oauth2"

const extra = "itsmauth_adopted"

// Mark returns a copy of tok with the mark.
func Mark(tok *oauth2.Token) *oauth2.Token {
	return tok.WithExtra(map[string]any{extra: true})
}

// Is reports whether tok has the mark.
func Is(tok *oauth2.Token) bool { return tok.Extra(extra) == true }
