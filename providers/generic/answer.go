package generic

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jwt"
)

// token reads from r's answer the access token and what comes with it (RFC 6749 section 5.1). start is when the
// exchange began: lifetimes count from there, so that we never take a token for younger than it is.
func (p *Provider) token(r *request, start time.Time) (*oauth2.Token, error) {
	where := &p.c.Response
	body := bytes.TrimSpace(bytes.TrimPrefix(r.body, byteOrderMark))
	tok := &oauth2.Token{}
	if where.Format == "json" {
		tok.AccessToken = first(r.doc, where.AccessToken, str)
		tok.RefreshToken = first(r.doc, where.RefreshToken, str)
		tok.TokenType = first(r.doc, where.TokenType, str)
	} else if !bytes.ContainsAny(body, "{[<") {
		tok.AccessToken = string(body)
	}
	switch {
	case bytes.HasPrefix(body, []byte("<")):
		return nil, fmt.Errorf("%w: HTML where a token should be", auth.ErrProtocol)
	case where.Format == "json" && r.doc == nil:
		return nil, fmt.Errorf("%w: it is not JSON", auth.ErrProtocol)
	case tok.AccessToken == "":
		return nil, fmt.Errorf("%w: there is no access token in it", auth.ErrProtocol)
	case !printable(tok.AccessToken) || where.Format == "text" && strings.Contains(tok.AccessToken, " "):
		return nil, fmt.Errorf("%w: its access token cannot be sent in a header", auth.ErrProtocol)
	}
	life := lifetime(find(r.doc, where.ExpiresIn))
	if life == 0 {
		life, _ = jwt.Lifetime(tok.AccessToken)
	}
	if life == 0 || life > maxLifetime {
		life = p.c.DefaultLifetime
	}
	tok.Expiry = start.Add(life)
	if life%time.Second == 0 {
		tok.ExpiresIn = int64(life / time.Second)
	}
	return tok, nil
}

// maxLifetime is beyond belief: whoever says more means something else.
const maxLifetime = 10 * 365 * 24 * time.Hour

// lifetime reads expires_in, a number of seconds or a string that holds one. 0 is unknown.
func lifetime(found []any) time.Duration {
	for _, v := range found {
		n := strings.TrimSpace(text(v))
		seconds, err := strconv.ParseFloat(n, 64) // which takes more than a JSON number
		if err == nil && json.Valid([]byte(n)) && seconds > 0 && seconds <= maxLifetime.Seconds() {
			return time.Duration(seconds * float64(time.Second))
		}
	}
	return 0
}

// printable reports whether s consists of what a token may (RFC 6749 appendix A.12).
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}
