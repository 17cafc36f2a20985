package auth_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
)

func TestSecretFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	for content, want := range map[string]string{
		"": "", "x": "x", "x\n": "x", "x\r\n": "x", "x\n\n": "x\n", "x\r": "x\r", "x\r\r\n": "x\r", "\n": "", "\r": "\r",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := auth.SecretFile(file).Value(); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", content, got, err, want)
		}
	}
}
