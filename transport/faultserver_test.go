package transport_test

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// faultServer runs play on each connection.
type faultServer struct {
	addr  string
	play  func(s *faultServer, c *peer)
	tls   *tls.Config
	acted atomic.Int64 // complete requests that it has processed
	conns atomic.Int64

	gone chan struct{} // closed when the test is over
	seen chan struct{} // closed when the client has the response headers
	idle chan struct{} // closed when the client has closed an idle connection
}

// peer is one connection of a faultServer.
type peer struct {
	net.Conn
	tcp *net.TCPConn // nil in memory
	r   *bufio.Reader
	s   *faultServer
	n   int64 // counts connections, from 1
}

// serveFaults serves on loopback.
func serveFaults(t testing.TB, config *tls.Config, play func(s *faultServer, c *peer)) *faultServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveFaultsOn(t, l, config, play)
}

func serveFaultsOn(t testing.TB, l net.Listener, config *tls.Config, play func(s *faultServer, c *peer)) *faultServer {
	s := &faultServer{addr: l.Addr().String(), play: play, tls: config, gone: make(chan struct{}), seen: make(chan struct{}), idle: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c := &peer{Conn: conn, s: s, n: s.conns.Add(1)}
			c.tcp, _ = conn.(*net.TCPConn)
			wg.Go(func() {
				defer conn.Close()
				stop := make(chan struct{})
				defer close(stop)
				wg.Go(func() { // a stuck peer ends with the test
					select {
					case <-s.gone:
						conn.Close()
					case <-stop:
					}
				})
				if s.tls != nil {
					c.Conn = tls.Server(conn, s.tls)
				}
				c.r = bufio.NewReader(c.Conn)
				s.play(s, c)
			})
		}
	})
	t.Cleanup(func() {
		close(s.gone)
		l.Close()
		wg.Wait()
	})
	return s
}

// read reads a whole request without processing it.
func (c *peer) read() bool {
	r, err := http.ReadRequest(c.r)
	if err != nil {
		return false
	}
	n, err := io.Copy(io.Discard, r.Body)
	return err == nil && (r.ContentLength < 0 || n == r.ContentLength)
}

// act reads a whole request and processes it.
func (c *peer) act() bool {
	if !c.read() {
		return false
	}
	c.s.acted.Add(1)
	return true
}

func (c *peer) say(s string) { io.WriteString(c.Conn, s) }

// reset ends the connection with a RST.
func (c *peer) reset() {
	c.tcp.SetLinger(0)
	c.tcp.Close()
}

// half closes the sending side and reads until the client closes. In memory it only reads.
func (c *peer) half() {
	if c.tcp != nil {
		c.tcp.CloseWrite()
	}
	io.Copy(io.Discard, c.r)
}

// stall sends nothing until the client gives up.
func (c *peer) stall() { io.Copy(io.Discard, c.r) }

// answered waits until the client has the response headers.
func (c *peer) answered() {
	select {
	case <-c.s.seen:
	case <-c.s.gone:
	}
}

// drip sends s a byte at a time, with a pause before each.
func (c *peer) drip(s string, every time.Duration) {
	for i := range len(s) {
		select {
		case <-time.After(every):
		case <-c.s.gone:
			return
		}
		if _, err := io.WriteString(c.Conn, s[i:i+1]); err != nil {
			return
		}
	}
}

// http2 serves HTTP/2 (RFC 9113). It sends the frames that respond returns for each complete request.
func (c *peer) http2(respond func(stream string) (frames string)) {
	frames := make(chan string, 16) // reads on while it writes: a connection in memory has no buffer
	defer close(frames)
	go func() {
		for f := range frames {
			c.say(f)
		}
	}()
	c.r.Discard(24) // the preface
	frames <- frame(4, 0, noStream, "")
	for head := make([]byte, 9); ; {
		if _, err := io.ReadFull(c.r, head); err != nil {
			return
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		io.ReadFull(c.r, payload)
		kind, flags, stream := head[3], head[4], string(head[5:])
		switch endStream := flags&1 != 0; {
		case kind == 6 && flags == 0:
			frames <- frame(6, 1, stream, string(payload)) // PING
		case kind <= 1 && endStream: // DATA or HEADERS
			frames <- respond(stream)
		}
	}
}

const noStream = "\x00\x00\x00\x00"

func frame(kind, flags byte, stream, payload string) string {
	return string([]byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}) + stream + payload
}

// ok2 is ok over HTTP/2.
func ok2(stream string) string { return frame(1, 4, stream, "\x88") + frame(0, 1, stream, "done") }

// refusedStream refuses a stream before it is processed.
func refusedStream(stream string) string { return frame(3, 0, stream, "\x00\x00\x00\x07") }

// goAway ends the connection. The server has processed no stream.
func goAway(code byte) string {
	return frame(7, 0, noStream, noStream+"\x00\x00\x00"+string(rune(code)))
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
