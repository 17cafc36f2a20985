package generic

import (
	"net/http"
	"strings"

	"golang.org/x/oauth2"
)

// Header gives the token headers and the static ones, keys as spelled. A static header whose
// secret cannot be read is left out.
func (p *Provider) Header(tok *oauth2.Token) http.Header {
	h := make(http.Header, len(p.c.TokenHeaders)+len(p.c.StaticHeaders))
	for name, s := range p.c.StaticHeaders {
		if v, err := s.Value(); err == nil {
			h[name] = []string{v}
		}
	}
	expand(h, p.c.TokenHeaders, "{access_token}", tok.AccessToken, "{token_type}", tok.Type())
	return h
}

// expand adds templated headers. Assigned, since Set would respell them.
func expand(to http.Header, headers []Header, oldnew ...string) {
	r := strings.NewReplacer(oldnew...)
	for _, h := range headers {
		to[h.Name] = []string{r.Replace(h.Template)}
	}
}
