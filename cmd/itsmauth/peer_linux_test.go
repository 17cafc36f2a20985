package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/itsmauth/itsmauth/internal/testnet"
)

// openTerminal returns a terminal, and a function that closes it and returns what was written to it.
func openTerminal(t *testing.T) (tty *os.File, written func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("there are no terminals here: ", err)
	}
	var n, unlock int32
	for request, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &n} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(unsafe.Pointer(arg))); errno != 0 {
			t.Fatal(errno)
		}
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Skip("there are no terminals here: ", err)
	}
	t.Cleanup(func() { master.Close() })
	read := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // ends with an error when tty is closed
		read <- strings.ReplaceAll(string(b), "\r\n", "\n")
	}()
	return tty, func() string { tty.Close(); return <-read }
}

// A server's status line and headers change no terminal. A pipe gets them as they came.
func TestCallOnATerminal(t *testing.T) {
	t.Parallel()
	const status, value = "200 \x1b[31mOK", "\u202e\x9b31mé \u0085b"
	server := testnet.Serve(t, func(conn net.Conn) {
		request := make([]byte, 4<<10)
		n, _ := conn.Read(request)
		if strings.HasPrefix(string(request[:n]), "POST") {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\n"+`{"access_token":"t"}`+" ")
			return
		}
		fmt.Fprintf(conn, "HTTP/1.1 %s\r\nX-A: %s\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbo\x1by", status, value)
	})
	file := onlineFile(t, lines("http://"+server))
	args := []string{"--config", file, "call", "target", "/x", "-i"}
	code, stdout, stderr := itsmauth(t.Context(), args...)
	if want := "HTTP/1.1 " + status + "\nContent-Length: 4\nX-A: " + value + "\n\nbo\x1by"; code != 0 || stdout != want {
		t.Errorf("exit %d, %q %s", code, stdout, stderr)
	}
	tty, written := openTerminal(t)
	var errs strings.Builder
	code = run(t.Context(), args, nil, tty, &errs)
	want := "HTTP/1.1 200 \\x1b[31mOK\nContent-Length: 4\nX-A: \\u202e\\x9b31mé \\u0085b\n\nbo\x1by"
	if got := written(); code != 0 || got != want {
		t.Errorf("exit %d, %q %s", code, got, &errs)
	}
}
