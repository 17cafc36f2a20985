package generic

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
	"github.com/itsmauth/itsmauth/internal/jwt"
	"github.com/itsmauth/itsmauth/internal/retryafter"
)

// parseToken reads the token from r's response (RFC 6749 section 5.1). Its lifetime counts from start,
// when the exchange began, and so never ends later than the product's.
func (p *Provider) parseToken(r *request, start time.Time) (*oauth2.Token, error) {
	response := &p.c.Response
	doc, body, isText := r.doc, trim(r.body), response.Format == "text"
	if isText {
		doc = r.said
	}
	tok := &oauth2.Token{
		AccessToken:  first(doc, response.AccessToken, token),
		RefreshToken: first(doc, response.RefreshToken, token),
		TokenType:    first(doc, response.TokenType, str),
	}
	if isText && r.doc != nil {
		tok = &oauth2.Token{AccessToken: token(r.doc)} // in JSON's quotes
	} else if isText && r.said == nil && !bytes.ContainsAny(body, "{[<") && string(body) != "null" {
		tok.AccessToken = string(body)
	}
	switch {
	case bytes.HasPrefix(body, []byte("<")):
		return nil, fmt.Errorf("%w: the token response is an HTML page", auth.ErrProtocol)
	case !isText && r.said != nil && r.doc == nil:
		return nil, fmt.Errorf("%w: the token response is a form; set response.format to text", auth.ErrProtocol)
	case !isText && r.doc == nil:
		return nil, fmt.Errorf("%w: the token response is not JSON", auth.ErrProtocol)
	case tok.AccessToken == "":
		where := ""
		if !isText && p.c.Provider == "oauth2" {
			where = fmt.Sprintf(" at %q; if it is elsewhere in the response, set response.access_token", response.AccessToken)
		}
		return nil, fmt.Errorf("%w: the token response has no access token%s", auth.ErrProtocol, where)
	case !printable(tok.AccessToken) || isText && strings.Contains(tok.AccessToken, " "):
		return nil, fmt.Errorf("%w: the access token has characters that cannot be sent in a header", auth.ErrProtocol)
	case tok.TokenType != "" && !headerName.MatchString(tok.TokenType): // the characters of a scheme, too
		return nil, fmt.Errorf("%w: the token type has characters that cannot be sent in a header", auth.ErrProtocol)
	}
	unit := map[string]time.Duration{"s": time.Second, "ms": time.Millisecond}[response.ExpiresInUnit]
	life := lifetime(jsonbody.Find(doc, response.ExpiresIn), unit)
	if own, ok := jwt.Lifetime(tok.AccessToken, retryafter.Date(r.resp.Header, time.Now())); ok && own <= maxLifetime && (life == 0 || own < life) {
		life = own
	}
	life = cmp.Or(life, p.c.DefaultLifetime)
	tok.Expiry = start.Add(life)
	if life%time.Second == 0 {
		tok.ExpiresIn = int64(life / time.Second)
	}
	return tok, nil
}

// maxLifetime is the longest plausible lifetime. A larger number is ignored: its unit is probably not seconds.
const maxLifetime = 10 * 365 * 24 * time.Hour

// lifetime reads expires_in, as a number or a string. 0 is unknown.
func lifetime(found []any, unit time.Duration) time.Duration {
	for _, v := range found {
		n := strings.TrimSpace(jsonbody.Text(v))
		number, err := strconv.ParseFloat(n, 64) // also accepts what is not a JSON number
		ns := number * float64(unit)
		if err == nil && json.Valid([]byte(n)) && ns > 0 && ns <= float64(maxLifetime) {
			return time.Duration(ns)
		}
	}
	return 0
}

// printable reports whether s has only characters that a token may have (RFC 6749 appendix A.12).
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}
