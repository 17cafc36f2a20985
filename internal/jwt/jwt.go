// Package jwt reads the time claims of a JSON Web Token (RFC 7519). It does not verify the signature: the
// claims only decide when to request a new token.
package jwt

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"math"
	"strings"
	"time"
)

// maxSeconds is the end of the year 9999. A later NumericDate is ignored.
const maxSeconds = 253402300799

// Lifetime returns exp - iat, which unlike exp alone does not depend on a clock. Without iat it returns exp
// - issued. For a token that was dead by then it returns a nanosecond. ok is false if the token is not a JWT
// or has no exp.
func Lifetime(token string, issued time.Time) (lifetime time.Duration, ok bool) {
	c := read(token)
	c.Iat = cmp.Or(c.Iat, float64(issued.UnixMilli())/1000)
	ns := (c.Exp - c.Iat) * float64(time.Second)
	if c.Exp == 0 || ns >= math.MaxInt64 {
		return 0, false
	}
	return max(time.Duration(ns), 1), true
}

// Expiry returns the exp claim. ok is false if the token is not a JWT or has no exp.
func Expiry(token string) (expiry time.Time, ok bool) {
	exp := read(token).Exp
	sec, frac := math.Modf(exp)
	return time.Unix(int64(sec), int64(frac*float64(time.Second))), exp > 0
}

// Valid reports whether the token has the form of a signed JWT, a JWS in compact serialization
// (RFC 7515 section 7.1).
func Valid(token string) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || parts[2] == "" || strings.ContainsAny(token, "\r\n") { // which base64 would ignore
		return false
	}
	for _, p := range parts[:2] {
		b, err := base64.RawURLEncoding.DecodeString(p)
		if err != nil || !json.Valid(b) || b[0] != '{' {
			return false
		}
	}
	_, err := base64.RawURLEncoding.DecodeString(parts[2])
	return err == nil
}

type claims struct {
	Exp float64 `json:"exp"`
	Iat float64 `json:"iat"`
}

// read returns the token's claims. One that is absent or is no NumericDate (RFC 7519 section 2) is 0.
func read(token string) (c claims) {
	if parts := strings.Split(token, "."); len(parts) == 3 {
		b, _ := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
		json.Unmarshal(b, &c) // sets the claims that are numbers, even if it returns an error
	}
	for _, date := range []*float64{&c.Exp, &c.Iat} {
		if *date < 0 || *date > maxSeconds {
			*date = 0
		}
	}
	return c
}
