package emulator

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// A listener makes its connections record what they read, because net/http changes the spelling of
// header names, which matters to WebCommander.
type listener struct {
	net.Listener
	front *Front
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, front: l.front}, nil
}

type conn struct {
	net.Conn
	front *Front

	mu      sync.Mutex
	used    bool   // for an earlier request
	pending []byte // read, but not yet assigned to a request
	lost    bool   // where the next request begins is not known
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	if !c.lost {
		c.pending = append(c.pending, p[:n]...)
	}
	c.mu.Unlock()
	c.front.mu.Lock()
	defer c.front.mu.Unlock()
	if c.front.raw = append(c.front.raw, p[:n]...); len(c.front.raw) > 2*maxRaw {
		c.front.raw = bytes.Clone(c.front.raw[len(c.front.raw)-maxRaw:])
	}
	return n, err
}

// CloseWrite is called by net/http, so that a client that is still sending can read the response.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// take returns the request line and headers of the request that net/http has just read, with its body if
// whole is true, and whether the connection had an earlier request.
func (c *conn) take(whole bool) (head []byte, reused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reused, c.used = c.used, true
	if c.lost {
		return nil, reused
	}
	head = bytes.Clone(c.pending[:headLen(c.pending)])
	unread := bytes.NewReader(c.pending)
	br := bufio.NewReader(unread)
	r, err := http.ReadRequest(br)
	if err == nil && whole {
		_, err = io.Copy(io.Discard, r.Body)
	}
	if err != nil || !whole {
		c.pending, c.lost = nil, true
		return head, reused
	}
	c.pending = bytes.Clone(c.pending[len(c.pending)-unread.Len()-br.Buffered():])
	return head, reused
}

// headLen returns the length of an HTTP/1 request line and headers, including the empty line.
func headLen(b []byte) int {
	for i := 0; ; {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return len(b)
		}
		line := b[i : i+n]
		i += n + 1
		if len(line) == 0 || string(line) == "\r" {
			return i
		}
	}
}

// parseHead reads the headers of an HTTP/1 request (RFC 9112 section 5), without changing the spelling of
// their names.
func parseHead(head []byte) http.Header {
	h := make(http.Header)
	var last string
	lines := strings.Split(string(head), "\n")
	for _, line := range lines[1:] {
		line = strings.TrimSuffix(line, "\r")
		if folded := strings.TrimLeft(line, " \t"); folded != line && last != "" {
			values := h[last]
			values[len(values)-1] = strings.Trim(values[len(values)-1]+" "+folded, " \t")
			continue
		}
		if name, value, ok := strings.Cut(line, ":"); ok {
			last = name
			h[name] = append(h[name], strings.Trim(value, " \t"))
		}
	}
	return h
}

type connKey struct{}
