package providers_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/internal/testpki"
)

// A ca_file that is replaced takes effect without a restart, for calls and for token requests.
func TestCAFileChanges(t *testing.T) {
	t.Parallel()
	old, next := testpki.New(t), testpki.New(t)
	p := beyondtrust(t)
	srv := httptest.NewUnstartedServer(p.handler)
	serve := testpki.Serve(t, srv, old)
	file := old.File(t)
	c := behind(t, p, srv.URL, "connection: close, tls_config: {ca_file: "+file+"}")
	if status, body, err := call(t.Context(), c, "GET", p.path, ""); status != 200 {
		t.Fatal(status, body, err)
	}
	serve(next)
	if status, _, err := call(t.Context(), c, "GET", p.path, ""); !errors.As(err, new(*tls.CertificateVerificationError)) {
		t.Errorf("a certificate of another authority: %d %v", status, err)
	}
	text, err := os.ReadFile(next.File(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	p.revoke() // so that the call needs a token request too
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		status, body, err := call(ctx, c, "GET", p.path, "")
		if status == 200 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(status, body, err)
		}
		time.Sleep(100 * time.Millisecond) // real time: the file is read once a second
	}
	if n := p.exchanges(); n != 2 {
		t.Errorf("%d token requests, want 2", n)
	}
}
