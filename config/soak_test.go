//go:build soak

package config

import "testing"

func TestSoakSchemaAgrees(t *testing.T) { schemaAgrees(t, 3, 11) }
