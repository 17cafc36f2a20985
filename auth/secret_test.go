package auth_test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// The same text is the same secret, from wherever it comes.
func TestSecretText(t *testing.T) {
	const (
		pem   = "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----"
		crlf  = "-----BEGIN PRIVATE KEY-----\r\nMC4C\r\n-----END PRIVATE KEY-----"
		lines = " has several lines, which only a key or a certificate may have"
		ctrl  = " holds a control character (U+0000 to U+001F, or U+007F)"
		utf16 = " is UTF-16, which PowerShell's > writes; save it as UTF-8"
	)
	for text, want := range map[string]struct{ value, err string }{
		"": {}, "x": {"x", ""}, "x\n": {"x", ""}, "x\r\n": {"x", ""}, "x\n\n": {"x", ""}, "x\r": {"x", ""}, "x\r\n\n\r\n": {"x", ""}, "\n": {}, "\r\n": {},
		" x ": {" x ", ""}, "pä s€\n": {"pä s€", ""}, "\xe4": {"\xe4", ""}, // Latin-1 is sent as it is
		"\ufeffx\n": {"x", ""}, "\ufeff": {}, "x\ufeff": {"x\ufeff", ""}, "\ufeff\ufeffx": {"x", ""},
		"\xff\xfex\x00y\x00": {"", utf16}, "\xfe\xff\x00x\x00y": {"", utf16}, "\xff\xfe": {"", utf16},
		"x\x00y\x00\n\x00": {"", utf16}, "\x00x\x00y": {"", utf16}, "\xff\xfe\x00\x00x\x00\x00\x00": {"", utf16},
		"x\ny": {"", lines}, "x\r\ny\r\n": {"", lines}, "\nx": {"", lines},
		"x\ry": {"", ctrl}, "x\ty": {"", ctrl}, "x\t": {"", ctrl}, "\x1b[31mx": {"", ctrl}, "x\x7f": {"", ctrl}, "xy\x00": {"", ctrl}, "x\n\x1a": {"", lines}, "x\x1a": {"", ctrl},
		pem + "\n": {pem, ""}, crlf + "\r\n": {crlf, ""}, "\ufeff" + pem: {pem, ""}, "Subject: x\n" + pem: {"Subject: x\n" + pem, ""},
		pem + "\t": {"", ctrl}, "-----BEGIN PRIVATE KEY-----\rMC4C": {"", ctrl},
		"{\n  \"kty\": \"EC\"\r\n}\n": {"{\n  \"kty\": \"EC\"\r\n}", ""}, "{\t}": {"", ctrl},
	} {
		file := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		sources := map[string]auth.Secret{
			file:  auth.SecretFile(file),
			"it":  auth.SecretString(text),
			"it ": auth.SecretFunc(func() (string, error) { return text, nil }),
		}
		if !strings.Contains(text, "\x00") {
			t.Setenv("ITSMAUTH_TEST_SECRET", text)
			sources["environment variable ITSMAUTH_TEST_SECRET"] = auth.SecretEnv("ITSMAUTH_TEST_SECRET")
		}
		for source, s := range sources {
			wantErr := want.err
			if wantErr != "" {
				wantErr = "unusable secret: " + strings.TrimSpace(source) + wantErr
			}
			got, err := s.Value()
			if got != want.value || fmt.Sprint(err) != cmp.Or(wantErr, "<nil>") {
				t.Errorf("%q from %s: %q, %v, want %q, %s", text, source, got, err, want.value, wantErr)
			}
		}
	}
}

// While reading a secret hangs, its last value is used.
func TestSecretHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		reads := 0
		s := auth.SecretFunc(func() (string, error) {
			if reads++; reads == 2 {
				<-hang
			}
			return strconv.Itoa(reads), nil
		})
		for _, want := range []struct {
			value string
			took  time.Duration
		}{{"1", 0}, {"1", 5 * time.Second}, {"1", 0}} {
			start := time.Now()
			if got, err := s.Value(); got != want.value || err != nil || time.Since(start) != want.took {
				t.Errorf("%s, %v after %s, want %v", got, err, time.Since(start), want)
			}
		}
		close(hang)
		synctest.Wait()
		if got, err := s.Value(); got != "3" || err != nil {
			t.Error(got, err)
		}
	})
}
