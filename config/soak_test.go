//go:build soak

package config

import "testing"

func TestSoakSchemaAgrees(t *testing.T) { schemaAgrees(t, 3, 11) }

// Thousands of tenants come and go.
func TestSoakTenants(t *testing.T) { tenants(t, 3000) }
