// Package retryafter parses the headers Retry-After and Date.
package retryafter

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// longest is the longest wait that is returned: a longer one is a mistake or an attack.
const longest = 24 * time.Hour

// Date returns when a response was sent, by the server's own clock (RFC 9110 section 6.6.1), or now if the
// response does not say it.
func Date(h http.Header, now time.Time) time.Time {
	if t, err := http.ParseTime(h.Get("Date")); err == nil {
		return t
	}
	return now
}

// Parse reads Retry-After (RFC 9110 section 10.2.3): seconds, which may have a fraction, as some products
// write them, or a date, which is compared with the response's own Date. A date in the past is no wait;
// more than a day is a day. ok is false if the header is absent or cannot be parsed.
func Parse(h http.Header, now time.Time) (wait time.Duration, ok bool) {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if digits := strings.TrimPrefix(v, "-"); digits != "" && strings.Trim(digits, "0123456789.") == "" {
		seconds, err := strconv.ParseFloat(v, 64)
		if err != nil && !math.IsInf(seconds, 0) {
			return 0, false
		}
		seconds = max(0, min(seconds, longest.Seconds()))
		return time.Duration(seconds * float64(time.Second)), true
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	return max(0, min(t.Sub(Date(h, now)), longest)), true
}
