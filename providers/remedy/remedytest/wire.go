package remedytest

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxRequests = 1000
	maxRaw      = 1 << 20
	maxHeader   = 1 << 16
)

// A Request is the record of one that came in.
type Request struct {
	Time   time.Time
	Method string
	Path   string
	Query  string // raw
	// Header has the names as they were spelled on the wire, Host included. Look them up as map
	// keys: [http.Header.Get] canonicalises.
	Header http.Header
	Body   []byte
	// Status is that of the answer, 0 as long as there is none.
	Status int
}

// Requests returns the last 1,000 requests, oldest first.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Request, len(s.requests))
	for i, r := range s.requests {
		all[i] = *r
		all[i].Header = r.Header.Clone()
		all[i].Body = bytes.Clone(r.Body)
	}
	return all
}

// Raw returns the last 1 MiB that clients sent to the Server's own listener, byte for byte, in the
// order of arrival over all connections.
func (s *Server) Raw() []byte {
	s.wire.mu.Lock()
	defer s.wire.mu.Unlock()
	return slices.Clone(s.wire.raw)
}

// wire keeps what came in, since net/http canonicalises what it reads.
type wire struct {
	mu  sync.Mutex
	raw []byte
}

type wireListener struct {
	net.Listener
	wire *wire
}

func (l *wireListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wireConn{Conn: c, wire: l.wire}, nil
}

type wireConn struct {
	net.Conn
	wire *wire

	mu   sync.Mutex
	head []byte // of the request that is coming in
	used bool
}

func (c *wireConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	c.head = append(c.head, b[:min(n, maxHeader-len(c.head))]...)
	c.mu.Unlock()
	c.wire.mu.Lock()
	c.wire.raw = append(c.wire.raw, b[:n]...)
	c.wire.raw = c.wire.raw[max(0, len(c.wire.raw)-maxRaw):]
	c.wire.mu.Unlock()
	return n, err
}

type connKey struct{}

func connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// received returns the headers of r as they were spelled, and whether its connection had carried a
// request before. It is called once a request, after its body has been read and before it is
// answered: what the connection has read by then is this request, as clients do not pipeline.
func received(r *http.Request) (h http.Header, reused bool) {
	if c, ok := r.Context().Value(connKey{}).(*wireConn); ok {
		c.mu.Lock()
		h, reused = spelled(c.head), c.used
		c.head, c.used = nil, true
		c.mu.Unlock()
	}
	if h == nil {
		h = r.Header.Clone()
		h["Host"] = []string{r.Host}
	}
	return h, reused
}

// spelled reads the header lines of an HTTP/1 request without changing their names. It returns nil
// if raw does not hold all of them.
func spelled(raw []byte) http.Header {
	head, _, whole := bytes.Cut(raw, []byte("\r\n\r\n"))
	if !whole {
		return nil
	}
	h := make(http.Header)
	for _, line := range strings.Split(string(head), "\r\n")[1:] {
		if name, value, ok := strings.Cut(line, ":"); ok {
			h[name] = append(h[name], strings.Trim(value, " \t"))
		}
	}
	return h
}
