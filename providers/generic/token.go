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

// parseToken reads the token from r's response (RFC 6749 section 5.1). Its lifetime counts from start,
// when the exchange began, and so never ends later than the product's.
func (p *Provider) parseToken(r *request, start time.Time) (*oauth2.Token, error) {
	response := &p.c.Response
	body := bytes.TrimSpace(bytes.TrimPrefix(r.body, byteOrderMark))
	tok := &oauth2.Token{}
	if response.Format == "json" {
		tok.AccessToken = first(r.doc, response.AccessToken, str)
		tok.RefreshToken = first(r.doc, response.RefreshToken, str)
		tok.TokenType = first(r.doc, response.TokenType, str)
	} else if !bytes.ContainsAny(body, "{[<") {
		tok.AccessToken = string(body)
	}
	switch {
	case bytes.HasPrefix(body, []byte("<")):
		return nil, fmt.Errorf("%w: it is an HTML page", auth.ErrProtocol)
	case response.Format == "json" && r.doc == nil:
		return nil, fmt.Errorf("%w: it is not JSON", auth.ErrProtocol)
	case tok.AccessToken == "":
		return nil, fmt.Errorf("%w: it has no access token", auth.ErrProtocol)
	case !printable(tok.AccessToken) || response.Format == "text" && strings.Contains(tok.AccessToken, " "):
		return nil, fmt.Errorf("%w: its access token has characters that cannot be sent in a header", auth.ErrProtocol)
	}
	life := lifetime(find(r.doc, response.ExpiresIn))
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

// maxLifetime is the longest plausible lifetime. A larger number is ignored: it is not in seconds.
const maxLifetime = 10 * 365 * 24 * time.Hour

// lifetime reads expires_in: seconds, as a number or a string. 0 is unknown.
func lifetime(found []any) time.Duration {
	for _, v := range found {
		n := strings.TrimSpace(text(v))
		seconds, err := strconv.ParseFloat(n, 64) // also accepts what is not a JSON number
		if err == nil && json.Valid([]byte(n)) && seconds > 0 && seconds <= maxLifetime.Seconds() {
			return time.Duration(seconds * float64(time.Second))
		}
	}
	return 0
}

// printable reports whether s has only characters that a token may have (RFC 6749 appendix A.12).
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}
