//go:build soak && unix

package filestore

import (
	"testing"
	"time"
)

func TestSoakKilledProcesses(t *testing.T) {
	t.Parallel()
	killProcesses(t, 100)
}

func TestSoakWindowOfKilledSenders(t *testing.T) {
	t.Parallel()
	killSenders(t, 15)
}

// Processes at full speed use 90 % of what a limit allows.
func TestSoakWindowOfProcesses(t *testing.T) {
	const requests = 200
	took := sendAll(t, 8, requests)
	allowed := 20 * int(took/time.Second+1)
	t.Logf("%d requests in %v, of %d", requests, took.Round(time.Millisecond), allowed)
	if requests < allowed*9/10 {
		t.Errorf("%d requests in %v, want 90 %% of %d", requests, took, allowed)
	}
}
