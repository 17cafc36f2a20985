package generic

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
	"github.com/itsmauth/itsmauth/internal/jwt"
	"github.com/itsmauth/itsmauth/internal/retryafter"
	"github.com/itsmauth/itsmauth/internal/settings"
)

// parseToken reads the token from r's response (RFC 6749 section 5.1). Its lifetime counts from start,
// when the exchange began, and so never ends later than the product's.
func (p *Provider) parseToken(r *request, start time.Time) (*oauth2.Token, error) {
	response := &p.c.Response
	doc, body, inBody := r.doc, trim(r.body), response.Cookie == ""
	isText := inBody && response.Format == "text"
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
	date := retryafter.Date(r.resp.Header, time.Now())
	var cookie *http.Cookie
	if !inBody {
		cookie = cookieNamed(response.Cookie, setCookies(r.resp.Header, date))
		tok.AccessToken = cookieValue(cookie)
	}
	switch {
	case bytes.HasPrefix(body, []byte("<")):
		return nil, fmt.Errorf("%w: the token response is an HTML page", auth.ErrProtocol)
	case !inBody && cookie == nil:
		return nil, fmt.Errorf("%w: the token response sets no cookie %s; check response.cookie", auth.ErrProtocol, response.Cookie)
	case inBody && !isText && r.said != nil && r.doc == nil:
		return nil, fmt.Errorf("%w: the token response is a form; set response.format to text", auth.ErrProtocol)
	case inBody && !isText && r.doc == nil:
		return nil, fmt.Errorf("%w: the token response is not JSON", auth.ErrProtocol)
	case tok.AccessToken == "":
		where := ""
		if !isText && p.c.Provider == "oauth2" {
			where = fmt.Sprintf(" at %q; if it is elsewhere in the response, set response.access_token", response.AccessToken)
		}
		return nil, fmt.Errorf("%w: the token response has no access token%s%s", auth.ErrProtocol, where, keysOf(doc))
	case !printable(tok.AccessToken) || isText && strings.Contains(tok.AccessToken, " "):
		return nil, fmt.Errorf("%w: the access token has characters that cannot be sent in a header", auth.ErrProtocol)
	case tok.TokenType != "" && !settings.IsHeaderName(tok.TokenType): // the characters of a scheme, too
		return nil, fmt.Errorf("%w: the token type has characters that cannot be sent in a header", auth.ErrProtocol)
	case p.dpop != nil && !strings.EqualFold(tok.TokenType, "DPoP"):
		return nil, fmt.Errorf("%w: the token is not bound to the key: the token response has no token_type DPoP; turn on DPoP for this client in the product, or remove dpop", auth.ErrProtocol)
	}
	unit := map[string]time.Duration{"s": time.Second, "ms": time.Millisecond}[response.ExpiresInUnit]
	life := lifetime(jsonbody.Find(doc, response.ExpiresIn), unit)
	if response.ExpiresAt != "" {
		if left := timeLeft(jsonbody.Find(doc, response.ExpiresAt), date); left > 0 && (life == 0 || left < life) {
			life = left
		}
	}
	if own, ok := jwt.Lifetime(tok.AccessToken, date); ok && own <= maxLifetime && (life == 0 || own < life) {
		life = own
	}
	life = cmp.Or(life, cookieLifetime(cookie, date), p.c.DefaultLifetime)
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

// timeLeft reads expires_at and returns how long that is after date, if that is plausible. 0 is unknown.
func timeLeft(found []any, date time.Time) time.Duration {
	for _, v := range found {
		if left := instant(jsonbody.Text(v)).Sub(date); left > 0 && left <= maxLifetime {
			return left
		}
	}
	return 0
}

const (
	leastMillis = 1e11 // a number since 1970 is in milliseconds from here: in seconds it is the year 5138, in milliseconds 1973
	mostMillis  = 1e15
)

// instant reads a time: RFC 3339, an HTTP date (RFC 9110 section 5.6.7), or seconds or milliseconds since 1970. It
// returns the zero time for anything else.
func instant(s string) time.Time {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseFloat(s, 64); err == nil && json.Valid([]byte(s)) && n > 0 && n < mostMillis {
		if n < leastMillis {
			n *= 1000
		}
		return time.UnixMilli(int64(n))
	}
	if t, err := http.ParseTime(s); err == nil {
		return t
	}
	// RFC 3339 section 5.6 allows small letters, and a space in place of the T.
	t, _ := time.Parse(time.RFC3339, strings.Replace(strings.ToUpper(s), " ", "T", 1))
	return t
}

// printable reports whether s has only characters that a token may have (RFC 6749 appendix A.12).
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}
