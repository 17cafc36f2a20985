package generic

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// setCookies returns the cookies that a response sets (RFC 6265 section 5.3), without those that it removes. A
// later one replaces an earlier one of its name, path and domain.
func setCookies(h http.Header, date time.Time) (set []*http.Cookie) {
	for _, line := range h.Values("Set-Cookie") {
		c, err := http.ParseSetCookie(line)
		if err != nil {
			continue
		}
		set = slices.DeleteFunc(set, func(old *http.Cookie) bool {
			return old.Name == c.Name && old.Path == c.Path && strings.EqualFold(old.Domain, c.Domain)
		})
		removed := c.MaxAge < 0 || c.MaxAge == 0 && !c.Expires.IsZero() && !c.Expires.After(date)
		if !removed && c.Value != "" {
			set = append(set, c)
		}
	}
	return set
}

// cookieNamed returns the last cookie of that name, or nil.
func cookieNamed(name string, set []*http.Cookie) (found *http.Cookie) {
	for _, c := range set {
		if c.Name == name {
			found = c
		}
	}
	return found
}

// cookieValue returns c's value as it was sent: quotes are a part of it (RFC 6265 section 5.2). nil has none.
func cookieValue(c *http.Cookie) string {
	switch {
	case c == nil:
		return ""
	case c.Quoted:
		return `"` + c.Value + `"`
	}
	return c.Value
}

// cookieLifetime returns how long c lives, or 0 if it does not say or c is nil.
func cookieLifetime(c *http.Cookie, date time.Time) (life time.Duration) {
	switch {
	case c == nil:
	case c.MaxAge > 0: // it decides before Expires (RFC 6265 section 5.3)
		life = time.Duration(min(c.MaxAge, int(maxLifetime/time.Second)+1)) * time.Second
	case !c.Expires.IsZero():
		life = c.Expires.Sub(date)
	}
	if life > maxLifetime {
		return 0
	}
	return life
}

// cookieHeader is the header Cookie of the cookies (RFC 6265 section 5.4).
func cookieHeader(set []*http.Cookie) string {
	var pairs []string
	for _, c := range set {
		pairs = append(pairs, c.Name+"="+cookieValue(c))
	}
	return strings.Join(pairs, "; ")
}
