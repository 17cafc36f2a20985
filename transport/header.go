package transport

import (
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// header returns the headers of an attempt: the caller's, with the token's replacing those of the same
// name in any spelling. A request to another origin carries no credentials.
func (c *call) header(tok *oauth2.Token) http.Header {
	var fields [4]field
	token := fields[:0]
	if tok != nil {
		for name, values := range c.t.auth.Header(tok) {
			token = append(token, field{name, values})
		}
	}
	h := make(http.Header, len(c.req.Header)+len(token)+1)
	anonymous := c.origin == nil
	for k, v := range c.req.Header {
		replaced := slices.ContainsFunc(token, func(f field) bool { return strings.EqualFold(f.name, k) })
		if !replaced && !(anonymous && c.isCredential(k)) {
			h[k] = v
		}
	}
	for i := range token {
		h[token[i].name] = token[i].values
	}
	if c.t.o.UserAgent != "" && !anonymous {
		if _, ok := h["User-Agent"]; !ok {
			h["User-Agent"] = []string{c.t.o.UserAgent}
		}
	}
	return h
}

// A field is a header field, spelled as it is sent.
type field struct {
	name   string
	values []string
}

// isCredential reports whether a header must not be sent to other origins.
func (c *call) isCredential(key string) bool {
	// An empty token is enough to learn the names of the token's headers.
	product := slices.Collect(maps.Keys(c.t.auth.Header(new(oauth2.Token))))
	return slices.ContainsFunc(append(product, "Authorization", "Cookie", "Cookie2", "Proxy-Authorization", "Referer", "access_token"),
		func(k string) bool { return strings.EqualFold(k, key) })
}

// logged are the response headers that may appear in a log.
var logged = []string{"Content-Type", "Date", "Retry-After", "Server", "X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Request-Id"}

func (c *call) log(resp *http.Response, err error, took time.Duration) {
	at := *c.req.URL
	at.RawQuery, at.Fragment, at.User = "", "", nil
	attrs := []slog.Attr{
		slog.String("connector", c.t.o.Connector), slog.String("method", c.req.Method),
		slog.String("url", at.String()), slog.Int("attempt", c.attempts), slog.Duration("took", took),
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	} else {
		attrs = append(attrs, slog.Int("status", resp.StatusCode))
		for _, k := range logged {
			if v := resp.Header.Get(k); v != "" {
				attrs = append(attrs, slog.String(strings.ToLower(k), v))
			}
		}
	}
	c.t.o.Logger.LogAttrs(c.current, slog.LevelDebug, "attempt", attrs...)
}
