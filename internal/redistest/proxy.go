package redistest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy that behaves like a slow network in front of a server.
type Proxy struct {
	listener net.Listener
	target   string
	done     chan struct{} // closed when the test ends
	running  sync.WaitGroup

	mu        sync.Mutex
	roundTrip time.Duration
	conns     map[net.Conn]bool
	gate      *gate // of new connections
}

// A gate lets bytes pass while its channel is closed. Proxy.mu guards open.
type gate struct{ open chan struct{} }

func openGate() *gate {
	g := &gate{make(chan struct{})}
	close(g.open)
	return g
}

// Delay starts a proxy in front of the server at addr and stops it when the test ends. A byte takes half
// of roundTrip in each direction. Connections are accepted at once, but their first byte takes another
// round trip, like TCP's handshake.
func Delay(t testing.TB, addr string, roundTrip time.Duration) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		listener: l, target: addr, done: make(chan struct{}),
		roundTrip: roundTrip, conns: make(map[net.Conn]bool), gate: openGate(),
	}
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr is the address, host:port, that clients dial.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Hang holds back all bytes, also those of later connections. Connections stay open.
func (p *Proxy) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hangLocked()
}

func (p *Proxy) hangLocked() {
	select {
	case <-p.gate.open:
		p.gate.open = make(chan struct{})
	default: // hangs already
	}
}

// Resume ends Hang, and passes on the bytes that were held back.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate.open:
	default:
		close(p.gate.open)
	}
}

// Vanish drops all bytes of the existing connections from now on, but does not close them. Later
// connections work.
func (p *Proxy) Vanish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hangLocked()
	p.gate = openGate()
}

// SetRoundTrip changes the round trip of bytes that arrive from now on.
func (p *Proxy) SetRoundTrip(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roundTrip = d
}

func (p *Proxy) now() (g *gate, roundTrip time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gate, p.roundTrip
}

// wait returns when g is open, or when the test ends.
func (p *Proxy) wait(g *gate) {
	p.mu.Lock()
	open := g.open
	p.mu.Unlock()
	select {
	case <-open:
	case <-p.done:
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.connect(client.(*net.TCPConn)) })
	}
}

func (p *Proxy) connect(client *net.TCPConn) {
	p.add(client)
	defer p.remove(client)
	g, roundTrip := p.now()
	connected := time.Now().Add(roundTrip)
	conn, err := net.Dial("tcp", p.target)
	if err != nil {
		time.Sleep(time.Until(connected))
		p.wait(g)
		client.SetLinger(0) // a reset, because a proxy cannot refuse the connection
		return
	}
	server := conn.(*net.TCPConn)
	p.add(server)
	defer p.remove(server)
	var both sync.WaitGroup
	both.Go(func() { p.forward(g, server, client, connected) })
	both.Go(func() { p.forward(g, client, server, connected) })
	both.Wait()
}

// A chunk is the result of one read. nil data is the end.
type chunk struct {
	due  time.Time
	data []byte
}

// forward copies bytes. Bytes sent before connected count as sent at connected.
func (p *Proxy) forward(g *gate, to, from *net.TCPConn, connected time.Time) {
	chunks := make(chan chunk, 256)
	p.running.Go(func() {
		defer close(chunks)
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			sent := time.Now()
			if sent.Before(connected) {
				sent = connected
			}
			_, roundTrip := p.now()
			if n > 0 {
				chunks <- chunk{sent.Add(roundTrip / 2), append([]byte(nil), buf[:n]...)}
			}
			if err != nil {
				chunks <- chunk{due: sent.Add(roundTrip / 2)}
				return
			}
		}
	})
	for c := range chunks {
		time.Sleep(time.Until(c.due))
		p.wait(g)
		if c.data == nil {
			to.CloseWrite()
		} else if _, err := to.Write(c.data); err != nil {
			from.Close() // ends the reader
		}
	}
}

func (p *Proxy) add(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
	select {
	case <-p.done:
		c.Close()
	default:
	}
}

func (p *Proxy) remove(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	c.Close()
}

func (p *Proxy) close() {
	p.mu.Lock()
	close(p.done)
	p.listener.Close()
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.running.Wait()
}
