package jwt

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

func token(payload string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256"}`)) + "." + enc([]byte(payload)) + "." + enc([]byte("signature"))
}

func TestTimes(t *testing.T) {
	t.Parallel()
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	for name, tc := range map[string]struct {
		token    string
		lifetime time.Duration // 0: none
		expiry   time.Time     // zero: none
	}{
		"both":           {token(`{"iat":1700000000,"exp":1700000600}`), 10 * time.Minute, at(1700000600)},
		"fractions":      {token(`{"iat":1700000000.5,"exp":1.700000601e9}`), 600500 * time.Millisecond, at(1700000601)},
		"no iat":         {token(`{"exp":1700000600}`), 500 * time.Second, at(1700000600)},
		"no iat, dead":   {token(`{"exp":1700000100}`), 1, at(1700000100)},
		"long dead":      {token(`{"exp":1600000000}`), 1, at(1600000000)},
		"no exp":         {token(`{"iat":1700000000}`), 0, time.Time{}},
		"born dead":      {token(`{"iat":1700000600,"exp":1700000600}`), 1, at(1700000600)},
		"dead before":    {token(`{"iat":1700000600,"exp":5}`), 1, at(5)},
		"zero":           {token(`{"iat":1700000600,"exp":0}`), 0, time.Time{}},
		"only negative":  {token(`{"exp":-1}`), 0, time.Time{}},
		"strings":        {token(`{"iat":"1700000000","exp":"1700000600"}`), 0, time.Time{}},
		"null":           {token(`{"iat":null,"exp":null}`), 0, time.Time{}},
		"negative":       {token(`{"iat":-5,"exp":-1}`), 0, time.Time{}},
		"no date":        {token(`{"iat":1,"exp":1e300}`), 0, time.Time{}},
		"overflow":       {token(`{"iat":1,"exp":250000000000}`), 0, at(250000000000)},
		"an instant":     {token(`{"iat":1e-10,"exp":2e-10}`), 1, at(0)},
		"infinite":       {token(`{"iat":1,"exp":1e999}`), 0, time.Time{}},
		"an array":       {token(`[1]`), 0, time.Time{}},
		"no JSON":        {token(`x`), 0, time.Time{}},
		"padded":         {"e30." + base64.URLEncoding.EncodeToString([]byte(`{"iat":1,"exp":3}`)) + ".c2ln", 2 * time.Second, at(3)},
		"two parts":      {"e30.e30", 0, time.Time{}},
		"five parts":     {"a.b.c.d.e", 0, time.Time{}},
		"not base64":     {"a.%%%.c", 0, time.Time{}},
		"opaque":         {"2YotnFZFEjr1zCsicMWpAA", 0, time.Time{}},
		"empty":          {"", 0, time.Time{}},
		"only dots":      {"..", 0, time.Time{}},
		"with a newline": {token(`{"iat":1,"exp":3}`) + "\n", 2 * time.Second, at(3)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lifetime, ok := Lifetime(tc.token, at(1700000100))
			if lifetime != tc.lifetime || ok != (tc.lifetime != 0) {
				t.Errorf("Lifetime = %v, %v; want %v", lifetime, ok, tc.lifetime)
			}
			expiry, ok := Expiry(tc.token)
			if ok && !expiry.Equal(tc.expiry) || ok == tc.expiry.IsZero() {
				t.Errorf("Expiry = %v, %v; want %v", expiry, ok, tc.expiry)
			}
		})
	}
}

func TestValid(t *testing.T) {
	t.Parallel()
	for tok, want := range map[string]bool{
		token(`{}`):                   true,
		token(`{"exp":1}`):            true,
		token(`[]`):                   false,
		"":                            false,
		"..":                          false,
		"e30.e30.":                    false,
		"e30.e30.c2ln":                true,
		"e30.e30.c2ln\n":              false,
		"e30.e3\n0.c2ln":              false,
		"<html><a href=x.y.z></html>": false,
		"one":                         false,
	} {
		if Valid(tok) != want {
			t.Errorf("Valid(%q) = %v", tok, !want)
		}
	}
}

func FuzzTimes(f *testing.F) {
	f.Add(token(`{"iat":1700000000,"exp":1700000600}`))
	f.Add(token(`{"iat":1e308,"exp":-1e308}`))
	f.Add("..")
	f.Fuzz(func(t *testing.T, tok string) {
		lifetime, ok := Lifetime(tok, time.Unix(1700000100, 0))
		if ok != (lifetime > 0) {
			t.Errorf("Lifetime = %v, %v", lifetime, ok)
		}
		expiry, has := Expiry(tok)
		if has && (expiry.Unix() < 0 || expiry.Year() > 9999+1) {
			t.Errorf("Expiry = %v", expiry)
		}
		if ok && !has {
			t.Error("a lifetime without an expiry")
		}
		if Valid(tok) && strings.Count(tok, ".") != 2 {
			t.Errorf("Valid(%q)", tok)
		}
	})
}
