//go:build soak && unix

package config

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// A file with sixteen times as many things takes about sixteen times the processor time, and not 256 times.
func TestSoakTimeIsLinear(t *testing.T) {
	t.Setenv("CFG_LONG", strings.Repeat("a", 100_000))
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano())
	}
	for kind, file := range large {
		var took [2]time.Duration
		for i, n := range []int{1000, 16_000} {
			data := []byte(file(n))
			before := used()
			parseAndExplain(data)
			took[i] = used() - before
		}
		if ratio := float64(took[1]) / float64(took[0]+30*time.Millisecond); ratio > 64 {
			t.Errorf("%s: sixteen times as many take %.0f times as long", kind, ratio)
		}
	}
}
