//go:build soak && unix

package config

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// A file with four times as many things takes four times the processor time, and not sixteen times.
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
		worst := 0.0
		for range 3 { // other processes make time longer, seldom three times
			var took [2]time.Duration
			for i, n := range []int{4000, 16_000} {
				data := []byte(file(n))
				before := used()
				parseAndExplain(data)
				took[i] = used() - before
			}
			if worst = float64(took[1]) / float64(took[0]+30*time.Millisecond); worst < 9 {
				break
			}
		}
		if worst >= 9 {
			t.Errorf("%s: four times as many take %.0f times as long", kind, worst)
		}
	}
}
