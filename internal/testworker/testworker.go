// Package testworker runs a test binary again, as further processes, for tests of what processes share.
package testworker

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const argument = "ITSMAUTH_TEST_WORKER"

// Main is the body of TestMain. In a process of [Start] it calls work, with the argument of Start, in place of the tests.
func Main(m *testing.M, work func(arg string) error) {
	arg := os.Getenv(argument)
	if arg == "" {
		os.Exit(m.Run())
	}
	if err := work(arg); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// Serve is for work that is ready: it calls do for each line of [Workers.Do], until the test ends or do fails.
func Serve(do func(line string) error) error {
	fmt.Println("ok")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); fmt.Println("ok") {
		if err := do(in.Text()); err != nil {
			return err
		}
	}
	return nil
}

// Workers are processes.
type Workers []worker

type worker struct {
	stdin  io.Writer
	stdout *bufio.Reader
}

// Start starts n processes, which end with the test, and waits until each is ready.
func Start(t *testing.T, n int, arg string) (all Workers) {
	t.Helper()
	for range n {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), argument+"="+arg, "GORACE=atexit_sleep_ms=0")
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			in.Close()
			if err := cmd.Wait(); err != nil && !t.Failed() {
				t.Error(err)
			}
		})
		all = append(all, worker{in, bufio.NewReader(out)})
	}
	all.await(t, "start")
	return all
}

// Do has each process do what the line says, all at once, and waits for them.
func (all Workers) Do(t *testing.T, line string) {
	t.Helper()
	for _, w := range all {
		fmt.Fprintln(w.stdin, line)
	}
	all.await(t, line)
}

func (all Workers) await(t *testing.T, what string) {
	t.Helper()
	for i, w := range all {
		if line, err := w.stdout.ReadString('\n'); line != "ok\n" {
			t.Fatalf("process %d, %q: %s %v", i, what, strings.TrimSpace(line), err)
		}
	}
}
