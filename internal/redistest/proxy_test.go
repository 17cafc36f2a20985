package redistest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/internal/testnet"
)

// echo starts a server that sends back each line.
func echo(t *testing.T) (addr string) {
	return testnet.Serve(t, func(c net.Conn) { io.Copy(c, c) })
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// trip sends a line and returns how long the echo took.
func trip(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	begun := time.Now()
	if _, err := io.WriteString(c, "line\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "line\n" || err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	return time.Since(begun)
}

func TestDelay(t *testing.T) {
	t.Parallel()
	const roundTrip = 100 * time.Millisecond
	p := Delay(t, echo(t), roundTrip)
	begun := time.Now()
	c := dial(t, p)
	trip(t, c)
	if took := time.Since(begun); took < 2*roundTrip {
		t.Errorf("dialing and the first line took %v, want %v", took, 2*roundTrip)
	}
	if took := trip(t, c); took < roundTrip {
		t.Errorf("the second line took %v, want %v", took, roundTrip)
	}
}

// silent reports whether no echo comes for a moment.
func silent(t *testing.T, c net.Conn) bool {
	t.Helper()
	io.WriteString(c, "line\n")
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	defer c.SetReadDeadline(time.Time{})
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func TestHangAndResume(t *testing.T) {
	t.Parallel()
	p := Delay(t, echo(t), 0)
	old := dial(t, p)
	trip(t, old)
	p.Hang()
	p.Hang()
	later := dial(t, p)
	if !silent(t, old) || !silent(t, later) {
		t.Error("bytes pass while it hangs")
	}
	p.Resume()
	p.Resume()
	trip(t, old)
	trip(t, later)
}

func TestVanish(t *testing.T) {
	t.Parallel()
	p := Delay(t, echo(t), 0)
	old := dial(t, p)
	trip(t, old)
	p.Vanish()
	if !silent(t, old) {
		t.Error("bytes of a connection that vanished still pass")
	}
	trip(t, dial(t, p))
	p.Resume()
	if !silent(t, old) {
		t.Error("Resume brought it back")
	}
}

// Closing is passed on, and without a server connections are reset.
func TestEnds(t *testing.T) {
	t.Parallel()
	p := Delay(t, echo(t), 0)
	c := dial(t, p)
	trip(t, c)
	c.(*net.TCPConn).CloseWrite()
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%d bytes, %v, want the echo server's end", n, err)
	}
	c, err := net.Dial("tcp", Delay(t, "127.0.0.1:1", 0).Addr())
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v from a server that is away, want a reset", err)
	}
}
