// Package jwt reads the time claims of a JSON Web Token (RFC 7519). It does not verify the signature: the
// claims only decide when to request a new token.
package jwt

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strings"
	"time"
)

// maxSeconds is the end of the year 9999. A later NumericDate is ignored.
const maxSeconds = 253402300799

// Lifetime returns exp - iat. Unlike exp alone, it does not depend on the local clock. ok is false if the
// token is not a JWT, lacks a claim, or has a lifetime that is not positive.
func Lifetime(token string) (lifetime time.Duration, ok bool) {
	c := read(token)
	exp, ok1 := date(c.Exp)
	iat, ok2 := date(c.Iat)
	ns := (exp - iat) * float64(time.Second)
	if !ok1 || !ok2 || ns < 1 || ns >= math.MaxInt64 {
		return 0, false
	}
	return time.Duration(ns), true
}

// Expiry returns the exp claim. ok is false if the token is not a JWT or has no exp.
func Expiry(token string) (expiry time.Time, ok bool) {
	exp, ok := date(read(token).Exp)
	if !ok {
		return time.Time{}, false
	}
	sec, frac := math.Modf(exp)
	return time.Unix(int64(sec), int64(frac*float64(time.Second))), true
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
	Exp any `json:"exp"`
	Iat any `json:"iat"`
}

func read(token string) (c claims) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims{}
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil || json.Unmarshal(b, &c) != nil {
		return claims{}
	}
	return c
}

// date reads a NumericDate (RFC 7519 section 2): seconds, maybe with a fraction.
func date(claim any) (float64, bool) {
	f, ok := claim.(float64)
	return f, ok && f > 0 && f <= maxSeconds
}
