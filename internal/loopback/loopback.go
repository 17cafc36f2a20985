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

// Serve serves h on the listeners until stop is called. If a listener fails before that, failed
// receives its error. stop gives responses that are being sent up to 2 s.
func Serve(listeners []net.Listener, h http.Handler) (failed <-chan error, stop func()) {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
	}
	// Browsers open connections ahead of their requests. Shutdown would wait for these.
	var unused sync.Map
	srv.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			unused.Store(c, nil)
		} else {
			unused.Delete(c)
		}
	}
	errs := make(chan error, len(listeners))
	var serving sync.WaitGroup
	for _, l := range listeners {
		serving.Go(func() { errs <- srv.Serve(l) })
	}
	return errs, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		unused.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
		serving.Wait()
	}
}
