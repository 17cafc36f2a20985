package retryafter

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	for _, tt := range []struct {
		value string
		wait  time.Duration
		ok    bool
	}{
		{"0", 0, true},
		{"7", 7 * time.Second, true},
		{" 7 ", 7 * time.Second, true},
		{"007", 7 * time.Second, true},
		{"1.5", 1500 * time.Millisecond, true},
		{"0.25", 250 * time.Millisecond, true},
		{".5", 500 * time.Millisecond, true},
		{"2.", 2 * time.Second, true},
		{"-1", 0, true},
		{"-0.5", 0, true},
		{"86400", 24 * time.Hour, true},
		{"86401", 24 * time.Hour, true},
		{"9223372036854775808", 24 * time.Hour, true},
		{strings.Repeat("9", 400), 24 * time.Hour, true},
		{"-" + strings.Repeat("9", 400), 0, true},
		{in(90 * time.Second).Format(http.TimeFormat), 90 * time.Second, true},
		{in(90 * time.Second).Format(time.RFC850), 90 * time.Second, true},
		{in(90 * time.Second).Format(time.ANSIC), 90 * time.Second, true},
		{in(-time.Hour).Format(http.TimeFormat), 0, true},
		{in(1000 * time.Hour).Format(http.TimeFormat), 24 * time.Hour, true},
		{"Fri, 31 Dec 9999 23:59:59 GMT", 24 * time.Hour, true},
		{"Mon, 01 Jan 0001 00:00:00 GMT", 0, true},
		{"", 0, false},
		{"-", 0, false},
		{"--1", 0, false},
		{"+1", 0, false},
		{".", 0, false},
		{"1.2.3", 0, false},
		{"1e3", 0, false},
		{"0x10", 0, false},
		{"1_000", 0, false},
		{"NaN", 0, false},
		{"Inf", 0, false},
		{"7s", 0, false},
		{"7, 8", 0, false},
		{"soon", 0, false},
		{"2025-03-04T05:06:07Z", 0, false},
	} {
		wait, ok := Parse(http.Header{"Retry-After": {tt.value}}, now)
		if wait != tt.wait || ok != tt.ok {
			t.Errorf("Retry-After: %.40q: got %v, %v; want %v, %v", tt.value, wait, ok, tt.wait, tt.ok)
		}
	}
	for _, tt := range []struct {
		after, date string
		wait        time.Duration
	}{
		{in(90 * time.Second).Format(http.TimeFormat), in(80 * time.Second).Format(http.TimeFormat), 10 * time.Second},
		{in(90 * time.Second).Format(http.TimeFormat), in(-10 * time.Minute).Format(http.TimeFormat), 690 * time.Second},
		{in(-10 * time.Minute).Format(http.TimeFormat), in(-11 * time.Minute).Format(time.RFC850), time.Minute},
		{in(90 * time.Second).Format(http.TimeFormat), in(91 * time.Second).Format(http.TimeFormat), 0},
		{in(90 * time.Second).Format(http.TimeFormat), "yesterday", 90 * time.Second},
		{"7", in(-10 * time.Minute).Format(http.TimeFormat), 7 * time.Second},
	} {
		if wait, ok := Parse(http.Header{"Retry-After": {tt.after}, "Date": {tt.date}}, now); wait != tt.wait || !ok {
			t.Errorf("Retry-After: %s, Date: %s: got %v, %v; want %v", tt.after, tt.date, wait, ok, tt.wait)
		}
	}
	if wait, ok := Parse(nil, now); ok {
		t.Errorf("no header: got %v, true", wait)
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"120", "0.5", "-3", "1e309", "99999999999999999999", "Tue, 04 Mar 2025 05:07:37 GMT", "Tuesday, 04-Mar-25 05:07:37 GMT", "soon"} {
		f.Add(s, int64(1741064767))
	}
	f.Fuzz(func(t *testing.T, value string, unix int64) {
		wait, ok := Parse(http.Header{"Retry-After": {value}}, time.Unix(unix, 0))
		if wait < 0 || wait > 24*time.Hour || !ok && wait != 0 {
			t.Fatalf("%q at %d: %v, %v", value, unix, wait, ok)
		}
	})
}
