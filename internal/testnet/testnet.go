// Package testnet serves bare TCP connections for tests.
package testnet

import (
	"net"
	"sync"
	"testing"
)

// Serve calls serve for each connection to address, and closes the connection after it. It ends with the test.
func Serve(t testing.TB, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	t.Cleanup(func() { l.Close(); accepting.Wait() })
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	})
	return l.Addr().String()
}
