//go:build unix

package tlsfile_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/internal/textfile"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
)

// pair writes a new certificate and its key to dir, each after prefix.
func pair(t *testing.T, dir, name, prefix string) (c tlsfile.Config) {
	t.Helper()
	cert, key := testpki.Files(t, testpki.New(t).Issue(t, name, time.Now().Add(time.Hour)))
	c = tlsfile.Config{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	for from, to := range map[string]string{cert: c.CertFile, key: c.KeyFile} {
		pem, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, append([]byte(prefix), pem...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func files() *textfile.Files { return textfile.NewFiles(textfile.Read) }

func client(t *testing.T, c tlsfile.Config) func() []byte {
	t.Helper()
	config, _, err := c.Client(files())
	if err != nil {
		t.Fatal(err)
	}
	return func() []byte {
		t.Helper()
		cert, err := config.GetClientCertificate(new(tls.CertificateRequestInfo))
		if err != nil {
			t.Fatal(err)
		}
		return cert.Certificate[0]
	}
}

// A renewed certificate is used at once, and the one before it until both files are there.
func TestRenewedCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := pair(t, dir, "first", "")
	current := client(t, c)
	first := current()
	pair(t, dir, "second", "\ufeff")
	second := next(t, current, first)
	other := pair(t, t.TempDir(), "third", "")
	if err := os.Rename(other.CertFile, c.CertFile); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(current(), second) {
		t.Error("half of the third is used")
	}
	if err := os.Rename(other.KeyFile, c.KeyFile); err != nil {
		t.Fatal(err)
	}
	next(t, current, second)
}

// next returns the certificate that is used after last. A read that takes long is used later.
func next(t *testing.T, current func() []byte, last []byte) []byte {
	for range 1000 {
		if cert := current(); !bytes.Equal(cert, last) {
			return cert
		}
	}
	t.Fatal("the next certificate is not used")
	return nil
}

// While reading the certificate hangs, the last one is used.
func TestCertificateHangs(t *testing.T) {
	t.Parallel()
	c := pair(t, t.TempDir(), "first", "")
	current := client(t, c)
	first := current()
	if err := os.Remove(c.KeyFile); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(c.KeyFile, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if !bytes.Equal(current(), first) {
			t.Error("another certificate")
		}
	}
	f, err := os.OpenFile(c.KeyFile, os.O_RDWR, 0) // the read ends
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// The certificate authorities are those that were read first until they are read again: no call waits for a file.
func TestAuthoritiesHang(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	c := tlsfile.Config{CAFile: ca.File(t)}
	_, cas, err := c.Client(files())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.CAFile); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(c.CAFile, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if !ca.Pool().Equal(cas(ctx)) {
		t.Error("other authorities")
	}
}

// Of files that do not answer, each is an error of its own, after 10 s together; the others are read.
func TestFilesHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		start := time.Now()
		_, _, err := tlsfile.Config{CAFile: "ca", CertFile: "none", KeyFile: "key"}.Client(textfile.NewFiles(func(path string) (string, error) {
			if path == "none" {
				time.Sleep(9 * time.Second)
				return "", os.ErrNotExist
			}
			<-hang
			return "", nil
		}))
		const want = "ca_file: ca does not answer\ncert_file: file does not exist\nkey_file: key does not answer"
		if err == nil || err.Error() != want || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		close(hang)
	})
}

// Files with a byte order mark are read; of UTF-16 the error says so.
func TestEncodings(t *testing.T) {
	t.Parallel()
	c := pair(t, t.TempDir(), "x", "\ufeff")
	c.CAFile = c.CertFile
	if _, _, err := c.Client(files()); err != nil {
		t.Error(err)
	}
	utf16 := filepath.Join(t.TempDir(), "utf16")
	if err := os.WriteFile(utf16, []byte("\xff\xfe-\x00-\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := tlsfile.Config{CAFile: utf16, CertFile: utf16, KeyFile: utf16}.Client(files())
	for _, key := range []string{"ca_file", "cert_file", "key_file"} {
		if want := key + ": " + utf16 + " is UTF-16"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}
