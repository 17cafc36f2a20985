package auth_test

import (
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	var m auth.Memory
	authtest.TestStore(t, func(*testing.T) auth.Store { return &m })
}

func TestEncryptedMemory(t *testing.T) {
	t.Parallel()
	var m auth.Memory
	key, err := auth.ParseKey(auth.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	authtest.TestStore(t, func(*testing.T) auth.Store { return auth.Encrypt(&m, key) })
}
