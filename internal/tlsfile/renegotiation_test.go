package tlsfile

import (
	"bufio"
	"crypto/tls"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/internal/testpki"
	"github.com/itsmauth/itsmauth/internal/textfile"
)

// A server such as IIS asks for the client's certificate when it has read the request.
func TestCertificateAfterTheHandshake(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("openssl is missing; install the package openssl")
	} else if err != nil {
		t.Skip("openssl is missing; install the package openssl to run this test")
	}
	ca := testpki.New(t)
	cert, key := testpki.Files(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	s := exec.CommandContext(t.Context(), openssl, "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-tls1_2",
		"-cert", cert, "-key", key, "-CAfile", ca.File(t), "-verify_return_error")
	commands, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	defer s.Wait()
	defer s.Process.Kill()
	lines := bufio.NewReader(out)
	seen := func(prefix string) string {
		t.Helper()
		for {
			line, err := lines.ReadString('\n')
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return strings.TrimSpace(rest)
			} else if err != nil {
				t.Fatalf("openssl ended before it printed %q: %v", prefix, err)
			}
		}
	}
	command := func(line string) {
		t.Helper()
		if _, err := io.WriteString(commands, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}

	config, _, err := Config{CAFile: ca.File(t), CertFile: cert, KeyFile: key}.Client(textfile.NewFiles(textfile.Read))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", seen("ACCEPT "), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "request\n"); err != nil {
		t.Fatal(err)
	}
	answer := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			line = err.Error()
		}
		answer <- line
	}()
	seen("request")
	command("R") // asks for the certificate
	seen("SSL_do_handshake -> 1")
	command("answer")
	if got := <-answer; got != "answer\n" {
		t.Errorf("the answer is %q", got)
	}
}
