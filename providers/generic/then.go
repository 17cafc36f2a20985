package generic

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/retryafter"
	"github.com/itsmauth/itsmauth/internal/tokenextra"
)

// then makes the request of [Config.Then] with tok, and returns tok with the cookies that it sets. If one of
// them is the cookie that tok was, tok is the new one.
func (p *Provider) then(ctx context.Context, tok *oauth2.Token) (*oauth2.Token, error) {
	r := p.request("exchange", p.c.Then.URL, tok.AccessToken, tok.RefreshToken)
	r.then, r.method, r.proves = true, p.c.Then.Method, tok.AccessToken
	p.bind(ctx, r, tok)
	for name, s := range p.c.APIHeaders {
		r.header[name] = []string{r.readSecret("api_headers."+name, s)}
	}
	expand(r.header, p.c.TokenHeaders, "{access_token}", tok.AccessToken, "{token_type}", tok.Type())
	if err := p.send(ctx, r); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(trim(r.body), []byte("<")) {
		return nil, r.newError(fmt.Errorf("%w: the response is an HTML page", auth.ErrProtocol))
	}
	set := setCookies(r.resp.Header, retryafter.Date(r.resp.Header, time.Now()))
	if own := cookieNamed(p.c.Response.Cookie, set); own != nil {
		tok.AccessToken = cookieValue(own)
	}
	rest := slices.DeleteFunc(set, func(c *http.Cookie) bool { return c.Name == p.c.Response.Cookie })
	if len(rest) > 0 {
		tok = tokenextra.WithCookies(tok, cookieHeader(rest))
	}
	return tok, nil
}
