package generic

import (
	"net/http"
	"strings"

	"golang.org/x/oauth2"
)

// Header returns TokenHeaders and StaticHeaders, with names spelled as in the settings. A static header
// is left out if its secret cannot be read.
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

// expand adds headers made from templates. It does not call Header.Set, which would change the names.
func expand(to http.Header, headers []Header, oldnew ...string) {
	r := strings.NewReplacer(oldnew...)
	for _, h := range headers {
		to[h.Name] = []string{r.Replace(h.Template)}
	}
}
