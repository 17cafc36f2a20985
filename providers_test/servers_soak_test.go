//go:build soak

package providers_test

import "testing"

func TestSoakNginxEndsConnections(t *testing.T) { testNginxEndsConnections(t, 2000) }
