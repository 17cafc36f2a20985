package endpoint

import (
	"net/url"
	"testing"
)

func TestOrigin(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"https://example.com":                 "https://example.com:443",
		"HTTPS://EXAMPLE.com:443/a?b#c":       "https://example.com:443",
		"https://example.com:/":               "https://example.com:443",
		"https://user:pass@example.com:8443/": "https://example.com:8443",
		"http://example.com":                  "http://example.com:80",
		"http://example.com:443":              "http://example.com:443",
		"https://example.com.":                "https://example.com.:443",
		"http://[2001:DB8::1]/":               "http://[2001:db8::1]:80",
		"https://[::1]:8443":                  "https://[::1]:8443",
		"socks5://proxy":                      "socks5://proxy:",
		"//example.com":                       "://example.com:",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := Origin(u); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestLoopback(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"localhost": true, "LocalHost": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"app.localhost": true, "a.b.LOCALHOST": true, ".localhost": false, "notlocalhost": false, "app.localhost.": false,
		"local\u017fhost": false, "localho\u017ft": false, "app.localho\u017ft": false, "localhost.localdomain": false,
		"": false, "localhost.": false, "localhost.example.com": false, "127.0.0.1.example.com": false, "0.0.0.0": false,
		"::": false, "[::1]": false, "::1%lo": false, "127.1": false, "2130706433": false, "127.0.0.1:80": false, "10.0.0.1": false,
		"::ffff:10.0.0.1": false, "::ffff:0.0.0.0": false, "fe80::1": false,
	} {
		if got := Loopback(host); got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	const two, port = "must have one scheme, not two", "must have a port from 1 to 65535"
	const host = "must have a host name (letters, digits, - and _) or an IP address"
	for in, want := range map[string]string{
		"https://h": "", "https://h:1": "", "https://h:65535": "", "https://h:00443": "", "https://h//x": "", "https://https": "",
		"https://https.example//x": "", "https://h/https://x": "", "https://[::1]:8443": "", "app.example:/callback": "", "app.example://callback": "",
		"https://h.": "", "https://a_b.c-d.example:1": "", "https://192.0.2.1": "", "https://MÜNCHEN.example": "", "https://xn--mnchen-3ya.example": "",
		"https://हिन्दी.example": "", "https://例え.jp": "", "https://h%C3%A4.example": "", "https://[fe80::1%25eth0]:1": "", "https://1.example": "",
		"https://https://x": two, "http://https://x": two, "HTTPS://HTTP://x": two, "https://https//x": two, "https://https:443//x": two,
		"redis://redis://x": two, "socks5://http://x": two,
		"https://wss://z": two, "https://ftp://z": two, "https://htp://z": two, "https://h://z": two, "redis://wss://z": two,
		"https://h:": port, "https://h:/x": port, "https://[::1]:": port, "https://192.0.2.1:/": port,
		"https://<host>": host, "https://$HOST": host, "https://x;y": host, "https://.x": host, "https://x..y": host,
		"https://x..": host, "https://.": host, "https://:443": host, "https://a,b": host, "https://a*": host, "https://a'b": host, "https://a(b)": host,
		"https://a&b=c": host, "https://a!": host, "https://a+b": host, "https://h~": host, "https://a%E2%80%A6b": host, "https://a\u00a0b": host,
		"https://h:0": port, "https://h:65536": port, "https://h:99999": port, "https://[::1]:99999/": port, "https://h:123456789012345678901": port,
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Error(err)
			continue
		}
		got := ""
		if err := Check(u); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}
