package transport

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// header returns the headers of an attempt: the caller's, with the token's replacing those of the same
// name in any spelling. A request to another origin has only plainHeaders.
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
		if !replaced && (!anonymous || slices.Contains(plainHeaders, http.CanonicalHeaderKey(k))) {
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

// plainHeaders are sent to other origins. Any other header may have a credential, such as X-Api-Key.
var plainHeaders = []string{"Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Cache-Control", "Content-Type", "If-Match",
	"If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Pragma", "Range", "User-Agent"}

// logged are the response headers that may appear in a log, in the shape that it gives them: a server may
// repeat in any of them what it was sent.
var logged = []struct {
	name  string
	shape func(string) string
}{
	{"Content-Type", mediaType}, {"Date", numberOrDate}, {"Retry-After", numberOrDate},
	{"X-Ratelimit-Limit", numberOrDate}, {"X-Ratelimit-Remaining", numberOrDate},
}

const otherShape = "unreadable"

// numberOrDate returns a number of at most 10 digits as it is, and a date made anew.
func numberOrDate(v string) string {
	if len(v) <= 10 && strings.Trim(v, "0123456789") == "" {
		return v
	}
	if t, err := http.ParseTime(v); err == nil {
		return t.UTC().Format(http.TimeFormat)
	}
	return otherShape
}

var mediaTypes = []string{"application/json", "application/problem+json", "application/xml", "application/octet-stream", "application/pdf",
	"application/x-www-form-urlencoded", "application/zip", "multipart/form-data", "multipart/mixed", "text/csv", "text/event-stream",
	"text/html", "text/plain", "text/xml"}

// mediaType returns a known media type without parameters.
func mediaType(v string) string {
	media, _, _ := strings.Cut(v, ";")
	if media = strings.ToLower(strings.TrimSpace(media)); slices.Contains(mediaTypes, media) {
		return media
	}
	return "other"
}

func (c *call) log(resp *http.Response, err error, took time.Duration) {
	asked, redirects := c.req, 0
	for asked.Response != nil && asked.Response.Request != nil {
		asked, redirects = asked.Response.Request, redirects+1
	}
	at := *asked.URL
	at.RawQuery, at.Fragment, at.User = "", "", nil
	attrs := []slog.Attr{
		slog.String("connector", c.t.o.Connector), slog.String("method", c.req.Method),
		slog.String("url", at.String()), slog.Int("attempt", c.attempts), slog.Duration("took", took),
	}
	if redirects > 0 { // the URL is now a server's
		attrs = append(attrs, slog.Int("redirects", redirects), slog.Bool("other_origin", c.origin == nil))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	} else {
		attrs = append(attrs, slog.Int("status", resp.StatusCode))
		for _, h := range logged {
			if v := resp.Header.Get(h.name); v != "" {
				attrs = append(attrs, slog.String(strings.ToLower(h.name), h.shape(v)))
			}
		}
	}
	c.t.o.Logger.LogAttrs(c.current, slog.LevelDebug, "attempt", attrs...)
}
