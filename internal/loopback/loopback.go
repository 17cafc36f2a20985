// Package loopback serves HTTP on this machine's loopback addresses, which other machines cannot reach.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Listen listens on each of the addresses, HOST:PORT. If it fails, it leaves no listener open.
//
// For localhost it listens on 127.0.0.1 and, if the machine has it, on ::1. Browsers use either one,
// and a program that listens on the other would receive their authorization codes.
func Listen(addresses ...string) (listeners []net.Listener, err error) {
	defer func() {
		for i := 0; err != nil && i < len(listeners); i++ {
			listeners[i].Close()
		}
	}()
	for _, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return listeners, err
		}
		for _, ip := range ips(host) {
			at := net.JoinHostPort(ip, port)
			if slices.ContainsFunc(listeners, func(l net.Listener) bool { return l.Addr().String() == at }) {
				continue
			}
			l, err := net.Listen("tcp", at)
			if err != nil {
				return listeners, fmt.Errorf("cannot listen on %s: %w", address, errors.Unwrap(err))
			}
			listeners = append(listeners, l)
			_, port, _ = net.SplitHostPort(l.Addr().String()) // if port was 0, ::1 takes the same one
		}
	}
	return listeners, nil
}

// ips returns the addresses to listen on for host.
func ips(host string) []string {
	if net.ParseIP(host) != nil {
		return []string{host}
	}
	interfaces, err := net.InterfaceAddrs()
	if err == nil && !slices.ContainsFunc(interfaces, func(a net.Addr) bool { return a.String() == "::1/128" }) {
		return []string{"127.0.0.1"}
	}
	return []string{"127.0.0.1", "::1"}
}

// maxConns is how many connections a server has open at once. Every user of the machine can open some,
// and a browser needs at most about ten.
const maxConns = 64

// ioTimeout limits the reading of a request, each write of a response, and the time between requests.
const ioTimeout = 10 * time.Second

// Serve serves h on the listeners until stop is called. If a listener fails before that, failed
// receives its error. stop gives responses that are being sent up to 2 s.
//
// Connections that are held open do not keep others out: if there are too many, the one that has waited
// longest is closed. h may take longer than the timeouts to respond.
func Serve(listeners []net.Listener, h http.Handler) (failed <-chan error, stop func()) {
	var open conns
	srv := &http.Server{
		Handler:        h,
		ReadTimeout:    ioTimeout,
		MaxHeaderBytes: 64 << 10,
		ConnState:      open.changed,
	}
	errs := make(chan error, len(listeners))
	var serving sync.WaitGroup
	for _, l := range listeners {
		serving.Go(func() { errs <- srv.Serve(timedListener{l}) })
	}
	return errs, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		open.closeUnused()
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
		serving.Wait()
	}
}

// conns are the open connections of a server.
type conns struct {
	mu   sync.Mutex
	list []conn // the one whose state changed last is the last
}

type conn struct {
	net.Conn
	state http.ConnState
}

// changed is the server's ConnState.
func (cs *conns) changed(c net.Conn, state http.ConnState) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	i := slices.IndexFunc(cs.list, func(other conn) bool { return other.Conn == c })
	switch {
	case state == http.StateNew && len(cs.list) == maxConns:
		// A connection whose request is being handled is closed only if all others are, too.
		i = max(0, slices.IndexFunc(cs.list, func(c conn) bool { return c.state != http.StateActive }))
		cs.list[i].Close()
	case state != http.StateNew && i < 0: // it was closed here
		return
	}
	if i >= 0 {
		cs.list = slices.Delete(cs.list, i, i+1)
	}
	if state != http.StateClosed && state != http.StateHijacked {
		cs.list = append(cs.list, conn{c, state})
	}
}

// closeUnused closes the connections without a request. Browsers open some ahead of their requests, and
// Shutdown would wait for these.
func (cs *conns) closeUnused() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.list {
		if c.state == http.StateNew {
			c.Close()
		}
	}
}

// timedListener limits each write. A WriteTimeout of the server would also limit the time until the first one.
type timedListener struct{ net.Listener }

func (l timedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return timedConn{c}, nil
}

type timedConn struct{ net.Conn }

func (c timedConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
