package generic

import (
	"encoding/base64"
	"encoding/hex"
	"html"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	maxDescription = 200      // how much of a description is shown, in characters
	maxSearched    = 4 << 10  // a longer description, in bytes, is not searched for secrets and not shown
	maxSought      = 32 << 10 // nor is any if what must not be in it is longer: a response may be as large as a search is slow
)

// description returns the product's description of its error (RFC 6749 section 5.2) as one line, or "" if it
// must not be shown.
func (r *request) description() string {
	at := r.c.Response.Error
	for _, pointer := range []string{"/error_description", at + "/message", "/message", "/msg", "/detail", at} {
		said := strings.Join(strings.Fields(first(r.said, pointer, str)), " ")
		unprintable := strings.ContainsFunc(said, func(c rune) bool { return !unicode.IsPrint(c) })
		if said == "" || len(said) > maxSearched || unprintable || pointer == at && errorCode.MatchString(said) || r.quotesSent(said) {
			continue
		}
		if chars := []rune(said); len(chars) > maxDescription {
			said = string(chars[:maxDescription-1]) + "…"
		}
		return said
	}
	return ""
}

// partOfSecret is how many characters in a row of a secret must not be shown.
const partOfSecret = 5

// forms are the forms in which texts are compared: an endpoint may echo the request with escapes, or with other
// characters between the letters.
var forms = []func(string) string{
	strings.ToLower,
	letters,
	func(s string) string { return strings.ToLower(decodeEscapes(s)) },
	func(s string) string { return letters(decodeEscapes(s)) },
}

// quotesSent reports whether text may contain a part of a secret of the settings, of a request or of the
// response, also encoded, or another value of the request. In doubt it returns true.
func (r *request) quotesSent(text string) bool {
	secrets, others := r.sent()
	if len(strings.Join(append(secrets, others...), "")) > maxSought {
		return true
	}
	for _, form := range forms {
		shown := form(text)
		for _, s := range secrets {
			encoded := func(e string) bool { return len(shown) >= partOfSecret && overlap(shown, form(e)) }
			if s != "" && (overlap(shown, form(s)) || slices.ContainsFunc(encodings(s), encoded)) {
				return true
			}
		}
		for _, s := range others {
			if s = form(s); len(s) >= 4 && strings.Contains(shown, s) {
				return true
			}
		}
	}
	return false
}

// sent returns the secrets of this request, of the settings and of the response, and the other values sent.
func (r *request) sent() (secrets, others []string) {
	secrets = append(slices.Clip(r.secrets), r.url.RawQuery, first(r.said, r.c.Response.AccessToken, token), first(r.said, r.c.Response.RefreshToken, token))
	own := []auth.Secret{r.c.ClientSecret, r.c.Password, r.c.RefreshToken, r.c.ClientAssertion} // a private key is not sent
	for _, s := range slices.AppendSeq(own, maps.Values(r.c.SecretParams)) {
		v, _ := s.Value()
		secrets = append(secrets, v)
	}
	others = append(slices.Clip(r.c.Scopes), r.c.ClientID, r.c.Username)
	for _, s := range r.c.assertionSettings() {
		others = append(others, s[1])
	}
	for name, values := range r.fields {
		if name != "grant_type" && name != "token_type_hint" { // whose values are no settings
			others = append(others, values...)
		}
	}
	if r.resp != nil && (r.c.Response.Cookie != "" || r.then) {
		for _, c := range r.resp.Cookies() {
			if len(c.Value) >= partOfSecret { // or a 1 would hide every 1
				secrets = append(secrets, c.Value)
			}
		}
	}
	for _, s := range secrets {
		if plain, err := base64.StdEncoding.DecodeString(s); err == nil && utf8.Valid(plain) {
			user, password, _ := strings.Cut(string(plain), ":")
			secrets, others = append(secrets, password), append(others, user)
		}
	}
	return secrets, others
}

// overlap reports whether a and b have partOfSecret bytes in a row in common, or all of the shorter one.
func overlap(a, b string) bool {
	n := min(partOfSecret, len(a), len(b))
	for i := range len(a) - n + 1 {
		if strings.Contains(b, a[i:i+n]) {
			return true
		}
	}
	return false
}

// letters returns the letters and digits of s in lower case.
func letters(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, s)
}

// escape is a character as URLs, JSON and JavaScript write it.
var escape = regexp.MustCompile(`(?i)[%\\]u[0-9a-f]{4}|(?:%|\\x)[0-9a-f]{2}`)

// decodeEscapes decodes the escapes of URLs, JSON, JavaScript and HTML, also nested ones.
func decodeEscapes(s string) string {
	for range 3 {
		s = html.UnescapeString(escape.ReplaceAllStringFunc(s, func(e string) string {
			digits := strings.TrimLeft(e, `%\uUxX`)
			n, _ := strconv.ParseUint(digits, 16, 32)
			if len(digits) == 2 {
				return string([]byte{byte(n)})
			}
			return string(rune(n))
		}))
	}
	return s
}

// encodings returns s in hex and in base64. In base64, s may follow any number of other bytes, such as a user.
func encodings(s string) []string {
	all := []string{hex.EncodeToString([]byte(s))}
	for before := range 3 {
		e := base64.StdEncoding.EncodeToString([]byte("::"[:before] + s))
		all = append(all, e[(before*8+5)/6:(before+len(s))*8/6]) // the characters of s alone
	}
	return all
}
