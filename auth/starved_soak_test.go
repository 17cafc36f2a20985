//go:build soak && unix

package auth_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// untilLine is a Store whose Load answers once a line came on stdin.
type untilLine struct{ auth.Memory }

func (s *untilLine) Load(ctx context.Context, key string) (auth.Record, error) {
	fmt.Println("begun")
	line := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(os.Stdin).ReadString('\n')
		line <- err
	}()
	select {
	case err := <-line:
		return auth.Record{}, err
	case <-ctx.Done():
		return auth.Record{}, ctx.Err()
	}
}

// A process that does not run for longer than a store's silence may last hears the answer that came
// meanwhile.
func TestSoakStoppedProcessIsNoSilence(t *testing.T) {
	const child, timeout = "ITSMAUTH_STOPPED", 2 * time.Second
	if os.Getenv(child) != "" {
		_, err := auth.Monitor(new(untilLine), &auth.MonitorOptions{Timeout: timeout}).Load(context.Background(), "it")
		fmt.Println(err)
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), child+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	out := bufio.NewReader(stdout)
	next := func(want string) {
		t.Helper()
		if line, err := out.ReadString('\n'); line != want+"\n" {
			t.Fatalf("the process says %q, %v; want %q", line, err, want)
		}
	}
	next("begun")
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * timeout)
	fmt.Fprintln(stdin)
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	next("<nil>")
}
