//go:build unix

package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/internal/testpki"
)

// Files that do not answer stop Load for 10 s together, unless they are of connectors that are left out.
func TestFilesThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 6 {
		if err := syscall.Mkfifo(filepath.Join(dir, fmt.Sprint("fifo", i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "good"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "t.yaml")
	data := []byte(`
version: 1
x-acme: &acme {provider: acme, base_url: https://h, client_id: "${file:fifo0}"}
defaults: {transport: {user_agent: "${file:fifo1}", tls_config: {ca_file: fifo4}}}
connectors:
  a: {<<: *acme, client_secret: "${file:fifo2}"}
  b: {<<: *acme, client_id: b, client_secret: "${file:good}", transport: {tls_config: {cert_file: good, key_file: fifo5}}}
  left: {<<: *acme, client_id: b, client_secret: "${file:fifo3}"}
`)
	start := time.Now()
	_, err := Parse(name, data, append(testOptions(), WithOnly("a", "b"))...)
	took := time.Since(start)
	want := fmt.Sprintf(`%[1]s/t.yaml:3:64: connectors.a.client_id: %[1]s/fifo0 does not answer
%[1]s/t.yaml:4:36: defaults.transport.user_agent: %[1]s/fifo1 does not answer
%[1]s/t.yaml:4:75: defaults.transport.tls_config.ca_file: %[1]s/fifo4 does not answer
%[1]s/t.yaml:6:33: connectors.a.client_secret: %[1]s/fifo2 does not answer
%[1]s/t.yaml:7:115: connectors.b.transport.tls_config.key_file: %[1]s/fifo5 does not answer`, dir)
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if took > 19*time.Second { // two files one after the other
		t.Errorf("took %s", took)
	}
	for i := range 6 {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint("fifo", i)), os.O_RDWR|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Close() // the read ends
	}
}

// A file that does not answer after it was loaded holds no call: what was read last is used.
func TestFilesThatDoNotAnswerLater(t *testing.T) {
	t.Parallel()
	ca := testpki.New(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"access_token": "t", "expires_in": 3600}`)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour))}, ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	cert, key := testpki.Files(t, ca.Issue(t, "client", time.Now().Add(time.Hour)))
	dir := t.TempDir()
	files := map[string]string{"ca": ca.File(t), "cert": cert, "key": key, "proxy": "", "header": ""}
	for name, from := range files {
		b := []byte("http://127.0.0.1:1")
		if from != "" {
			var err error
			if b, err = os.ReadFile(from); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conns, err := Parse(filepath.Join(dir, "t.yaml"), fmt.Appendf(nil, `
version: 1
connectors:
  a:
    provider: oauth2
    base_url: %[1]s
    token_url: %[1]s
    client_id: a
    client_secret: a
    static_headers: {X-A: "${file:header}"}
    transport:
      proxy_url: ${file:proxy}
      no_proxy: 127.0.0.1
      tls_config: {ca_file: ca, cert_file: cert, key_file: key}
      connection: close
`, srv.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	a, err := conns.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan *os.File) // a pipe that is being read
	delete(files, "key")        // it is read after cert
	for name := range files {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600)); err != nil {
			t.Fatal(err)
		}
		go func() {
			f, err := os.OpenFile(name, os.O_WRONLY, 0) // waits for a reader
			if err != nil {
				t.Error(err)
			}
			read <- f
		}()
	}
	// Each file is read after a second at most, and the reads do not end.
	for left := len(files); left > 0; {
		resp, err := a.Client().Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		proxy, err := a.proxy(&http.Request{URL: &url.URL{Scheme: "https", Host: "h"}})
		if err != nil || proxy.Host != "127.0.0.1:1" {
			t.Fatal(proxy, err)
		}
		select {
		case f := <-read:
			defer f.Close()
			left--
		case <-time.After(10 * time.Millisecond):
		}
	}
	if resp, err := a.Client().Get(srv.URL); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
}
