// Package endpoint says where a URL leads.
package endpoint

import (
	"net"
	"net/url"
	"strings"
)

// Origin spells the scheme, host and port of u (RFC 6454 section 4) in one way: in lower case, with
// the port that http and https have when u names none.
func Origin(u *url.URL) string {
	scheme, port := strings.ToLower(u.Scheme), u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[scheme]
	}
	return scheme + "://" + net.JoinHostPort(strings.Map(lower, u.Hostname()), port)
}

// lower folds A to Z and no more: İ (U+0130), say, would become i, but is another host to IDNA.
func lower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		r += 'a' - 'A'
	}
	return r
}

// Loopback reports whether host, which has no port and an IPv6 address no brackets, is this machine
// for sure: localhost (RFC 6761 section 6.3) or a loopback address. No other name is looked up.
func Loopback(host string) bool {
	return strings.EqualFold(host, "localhost") || net.ParseIP(host).IsLoopback()
}
