package generic

import (
	"net/http"
	"strings"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/tokenextra"
)

// Header returns TokenHeaders, StaticHeaders and APIHeaders, with names spelled as in the settings. A static
// header or one of the API is left out if its secret cannot be read.
func (p *Provider) Header(tok *oauth2.Token) http.Header {
	h := make(http.Header, len(p.c.TokenHeaders)+len(p.c.StaticHeaders)+len(p.c.APIHeaders))
	for _, fixed := range []map[string]auth.Secret{p.c.StaticHeaders, p.c.APIHeaders} {
		for name, s := range fixed {
			if v, err := s.Value(); err == nil {
				h[name] = []string{v}
			}
		}
	}
	expand(h, p.c.TokenHeaders, "{access_token}", tok.AccessToken, "{token_type}", tok.Type())
	if cookies := tokenextra.Cookies(tok); cookies != "" {
		addCookies(h, cookies)
	}
	return h
}

// addCookies adds to the header Cookie, in any spelling: a request has one (RFC 6265 section 5.4).
func addCookies(h http.Header, cookies string) {
	for name, values := range h {
		if strings.EqualFold(name, "Cookie") {
			h[name] = []string{values[0] + "; " + cookies}
			return
		}
	}
	h["Cookie"] = []string{cookies}
}

// expand adds headers made from templates. It does not call Header.Set, which would change the names.
func expand(to http.Header, headers []Header, oldnew ...string) {
	r := strings.NewReplacer(oldnew...)
	for _, h := range headers {
		to[h.Name] = []string{r.Replace(h.Template)}
	}
}
