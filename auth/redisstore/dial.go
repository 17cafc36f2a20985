package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// connectLimit is how long TCP may take. What takes longer is tried anew.
const connectLimit = 5 * time.Second

// A dialer makes connections to a server, to a Cluster's node, or to the master that Sentinels name.
//
// It does what redis.NewFailoverClient does with fewer round trips, and bears with a Sentinel that
// hangs.
type dialer struct {
	address
	tls         *tls.Config  // nil: none
	handshaking atomic.Int32 // TLS handshakes under way
	sentinels   sentinels

	life  context.Context // ends with close
	close context.CancelFunc
}

func newDialer(a address) *dialer {
	d := &dialer{address: a}
	d.life, d.close = context.WithCancel(context.Background())
	return d
}

// single reports whether there is one server, which nothing replaces when it is gone.
func (d *dialer) single() bool { return !d.cluster && d.masterName == "" }

// silence is why there is no answer. A Redis without TLS waits for the end of the handshake's line.
func (d *dialer) silence() error {
	if d.handshaking.Load() > 0 {
		return errNoHandshake
	}
	return errNoAnswer
}

// A connectError is why there is no connection.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

func isDial(err error) bool { return errors.As(err, new(*connectError)) }

// A sentinelError is what a Sentinel says, or why it says nothing.
type sentinelError struct{ err error }

func (e *sentinelError) Error() string { return e.err.Error() }
func (e *sentinelError) Unwrap() error { return e.err }

// A handshakeError is why there is no TLS connection.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// A dialFunc is go-redis's Dialer.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// dial gives the Dialer of a pool. go-redis's ctx knows nothing of close.
func (d *dialer) dial(p *pool) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(d.life, cancel)()
		conn, err := d.dialMaster(ctx, network, addr, p)
		if err != nil {
			return nil, &connectError{err}
		}
		return conn, nil
	}
}

func (d *dialer) dialMaster(ctx context.Context, network, addr string, p *pool) (net.Conn, error) {
	if d.masterName != "" {
		var err error
		if addr, err = d.master(ctx); err != nil {
			return nil, &sentinelError{err}
		}
		if !p.bind(addr) {
			return nil, errMoved
		}
	}
	return d.connect(ctx, network, addr)
}

func (d *dialer) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	to := net.Dialer{Timeout: connectLimit, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Count: 3}}
	conn, err := to.DialContext(ctx, network, addr)
	if err != nil || d.tls == nil {
		return conn, err
	}
	config := d.tls.Clone()
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(addr)
	}
	d.handshaking.Add(1)
	defer d.handshaking.Add(-1)
	encrypted := tls.Client(conn, config)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, &handshakeError{err}
	}
	return encrypted, nil
}

// A helloHook looks at the reply to HELLO, the first command of a connection. After a refusal go-redis
// would try AUTH, which makes a second wrong login of one, or finds the connection closed.
type helloHook struct{ encrypted bool }

// A helloError is a refusal of the connection. It is no redis.Error, for go-redis not to go on.
type helloError struct{ reply string }

func (e *helloError) Error() string { return e.reply }

// A closedError is a connection that ended before it had an answer.
type closedError struct {
	encrypted bool
	text      string
}

func (e *closedError) Error() string { return e.text }

func (h helloHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h helloHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (h helloHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err == nil || cmd.Name() != "hello" {
			return err
		}
		var reply redis.Error
		var network net.Error
		switch {
		case errors.As(err, &reply):
			if m := find(reply.Error(), false); m == nil || m.code == unknownCommand {
				return err // it does not know HELLO
			}
			return &helloError{reply.Error()}
		case errors.Is(err, io.EOF), errors.As(err, &network) && !network.Timeout() && !isAlert(err):
			return &closedError{h.encrypted, err.Error()}
		}
		return err
	}
}
