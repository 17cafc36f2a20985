package config

import (
	"fmt"
	"net/url"
	"slices"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
)

// maxOfAKind is how many warnings of a kind are listed.
const maxOfAKind = 20

// Warnings are the settings that work and that put credentials, tokens or a login at risk, in the order of the
// file: a literal secret, for example, or insecure_skip_verify. After 20 of a kind, one more says how many
// are left. [Load] logs them, too.
func (c *Connectors) Warnings() []Problem { return slices.Clone(c.warnings) }

// warn adds the warnings about p that no setting alone can give.
func (l *loader) warn(p *plan, storeType string) {
	if key, ok := p.settings["username"]; ok && key.Literal && p.sendsKeyAsUsername() {
		l.doc.Warn(p.path.Below("username"), yamldoc.ErrLiteral)
	}
	flow := p.session.CodeFlow()
	if flow == nil {
		return
	}
	if storeType == "memory" {
		l.doc.WarnKey(p.path, yamldoc.Advise("the login is lost when the process ends, because the token store is memory", "set token_store.type: file"))
	}
	if p.Provider != "oauth2" { // others have no key for it, or products that do not document it
		return
	}
	if page, err := url.Parse(flow.URL("state", "verifier")); err == nil && !page.Query().Has("code_challenge") {
		at := p.path.Below("pkce")
		if !l.doc.Has(at) {
			at = p.path.Below("grant")
		}
		l.doc.Warn(at, yamldoc.Advise("the login does not use PKCE, which RFC 9700 recommends for every client", "set pkce: true"))
	}
}

// sendsKeyAsUsername reports whether the username is a secret and the password is none.
func (p *plan) sendsKeyAsUsername() bool {
	_, secret := p.settings["username"].Value.(auth.Secret)
	password, _ := p.settings["password"].Value.(auth.Secret)
	text, err := password.Value()
	return secret && err == nil && (text == "" || text == "X")
}

// warnings are the warnings of a file, in its order. What an alias or several connectors repeat is one.
func (l *loader) warnings(found []yamldoc.Fault) (list []Problem) {
	type place struct {
		line, col int
		message   string
	}
	seen, count, last := map[place]bool{}, map[string]int{}, map[string]int{}
	for _, p := range l.problems(found) {
		at := place{p.Line, p.Col, p.Message}
		if seen[at] {
			continue
		}
		seen[at] = true
		if count[p.Message]++; count[p.Message] <= maxOfAKind+1 {
			last[p.Message] = len(list)
			list = append(list, p)
		}
	}
	for message, n := range count {
		if more := n - maxOfAKind; more > 0 {
			list[last[message]].Message = fmt.Sprintf("%d more like this: %s", more, message)
		}
	}
	return list
}
