package redisstore

import (
	"net"
	"sync/atomic"
	"syscall"
)

const (
	// maxReply is how much memory the replies to one command may take. A record takes a quarter of it at most: the
	// token response that it is made of has at most 1 MiB. So do the nodes of a Cluster of thousands of slot ranges.
	maxReply = 32 << 20
	// elementCost is what a line, or an element of an array, takes of it.
	elementCost = 64
)

// A replyConn fails if the replies to a command would take more than maxReply. go-redis allocates what a length
// announces, and reads arrays in arrays recursively, so a server could end the process with a few bytes.
type replyConn struct {
	net.Conn
	left atomic.Int64 // of maxReply

	// The place in the replies:
	kind    byte  // the first of the line; 0: at its beginning
	length  int64 // the number in the line
	signed  bool  // the number has a minus
	payload int64 // bytes of a string that are still to come
}

func newReplyConn(conn net.Conn) net.Conn {
	c := &replyConn{Conn: conn}
	c.left.Store(maxReply)
	if tcp, ok := conn.(syscall.Conn); ok {
		return tcpConn{c, tcp}
	}
	return c
}

// A tcpConn lets go-redis look whether Redis has closed an idle connection.
type tcpConn struct {
	*replyConn
	syscall.Conn
}

func (c *replyConn) Write(b []byte) (int, error) {
	c.left.Store(maxReply)
	return c.Conn.Write(b)
}

func (c *replyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.left.Add(-c.cost(b[:n])) < 0 {
		c.Conn.Close()
		return 0, errLongReply
	}
	return n, err
}

// cost returns what go-redis may allocate for b, which follows what was read before.
func (c *replyConn) cost(b []byte) int64 {
	cost := int64(len(b))
	for len(b) > 0 && cost <= maxReply {
		if c.payload > 0 {
			n := min(c.payload, int64(len(b)))
			c.payload, b = c.payload-n, b[n:]
			continue
		}
		switch char := b[0]; {
		case char == '\n':
			cost += elementCost + c.endLine()
		case c.kind == 0:
			c.kind = char
		case char == '-':
			c.signed = true
		case '0' <= char && char <= '9':
			c.length = min(10*c.length+int64(char-'0'), maxReply+1)
		}
		b = b[1:]
	}
	return cost
}

// endLine returns what the line announces, and makes ready for the next one. The length -1 stands for nothing.
func (c *replyConn) endLine() (cost int64) {
	switch none := c.signed && c.length == 1; {
	case none:
	case c.kind == '$' || c.kind == '=' || c.kind == '!':
		c.payload, cost = c.length+2, c.length
	case c.kind == '*' || c.kind == '~' || c.kind == '>' || c.kind == '%' || c.kind == '|':
		cost = elementCost * c.length
	}
	c.kind, c.length, c.signed = 0, 0, false
	return cost
}
