// Package endpoint checks and compares hosts and origins of URLs.
package endpoint

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// host matches [url.URL.Host]: an IP address in brackets, which url.Parse has checked, or labels, of which
// the last may end with a dot. A letter of an international name may be several code points.
var host = regexp.MustCompile(`^(\[.+\]|[\pL\pM\p{Nd}_-]+(\.[\pL\pM\p{Nd}_-]+)*\.?)(:[0-9]*)?$`)

// Check refuses a URL that parses and cannot be meant: https://https://host, whose host is "https", one
// with a host that cannot exist, such as <host> or $HOST, or with a port that cannot. Its errors hold nothing
// of the URL.
func Check(u *url.URL) error {
	schemes := []string{"http", "https", "redis", "rediss", "socks5", "socks5h"}
	portless := strings.HasSuffix(u.Host, ":")
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	switch {
	case strings.HasPrefix(u.Path, "//") && (portless || slices.Contains(schemes, strings.ToLower(u.Hostname()))):
		return errors.New("must have one scheme, not two")
	case u.Host != "" && !host.MatchString(u.Host):
		return errors.New("must have a host name (letters, digits, - and _) or an IP address")
	case portless, u.Port() != "" && (n == 0 || err != nil):
		return errors.New("must have a port from 1 to 65535")
	}
	return nil
}

// Origin returns the scheme, host and port of u (RFC 6454 section 4), in lower case, with the default
// port of http or https if u has none.
func Origin(u *url.URL) string {
	scheme, port := strings.ToLower(u.Scheme), u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[scheme]
	}
	return scheme + "://" + net.JoinHostPort(strings.Map(lower, u.Hostname()), port)
}

// lower changes only A to Z: strings.ToLower would make i from İ (U+0130), which is another host.
func lower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		r += 'a' - 'A'
	}
	return r
}

// Loopback reports whether host says that it is this machine: localhost, a name below it (RFC 6761 section
// 6.3), or a loopback address. host has no port, and an IPv6 address has no brackets. Names are not looked up.
func Loopback(host string) bool {
	name := strings.Map(lower, host)
	if below, ok := strings.CutSuffix(name, ".localhost"); ok {
		return below != ""
	}
	if name == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.IsLoopback() && addr.Zone() == ""
}
