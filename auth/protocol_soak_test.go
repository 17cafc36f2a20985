//go:build soak

package auth

import "testing"

func TestSoakProtocol(t *testing.T) {
	t.Parallel()
	for _, c := range rows {
		if c.large {
			c.run(t)
		}
	}
}
