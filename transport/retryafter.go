package transport

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// longestRetryAfter is the most that a Retry-After is taken to ask for.
const longestRetryAfter = 24 * time.Hour

// retryAfter reads Retry-After (RFC 9110 section 10.2.3): seconds, also with a fraction as some
// products write them, or a date. One in the past asks for no wait.
func retryAfter(h http.Header, now time.Time) (wait time.Duration, ok bool) {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if digits := strings.TrimPrefix(v, "-"); digits != "" && strings.Trim(digits, "0123456789.") == "" {
		seconds, err := strconv.ParseFloat(v, 64)
		if err != nil && !math.IsInf(seconds, 0) {
			return 0, false
		}
		seconds = max(0, min(seconds, longestRetryAfter.Seconds()))
		return time.Duration(seconds * float64(time.Second)), true
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	return max(0, min(t.Sub(now), longestRetryAfter)), true
}
