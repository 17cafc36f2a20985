package redisstore

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// connectTimeout is how long TCP may take to connect.
const connectTimeout = 5 * time.Second

// A dialer makes connections to a server, to a node of a Cluster, or to the master that Sentinels name.
// Unlike redis.NewFailoverClient it needs one round trip for the Sentinels, and copes with a Sentinel
// that hangs.
type dialer struct {
	address
	tls         *tls.Config                          // nil without TLS
	rootCAs     func(context.Context) *x509.CertPool // those of tls, which may have changed; or nil
	handshaking atomic.Int32                         // running TLS handshakes
	sentinels   sentinels

	ctx   context.Context // ends with close
	close context.CancelFunc
}

func newDialer(a address) *dialer {
	d := &dialer{address: a}
	d.ctx, d.close = context.WithCancel(context.Background())
	return d
}

// A connectError is why there is no connection.
type connectError struct{ error }

func (e *connectError) Unwrap() error { return e.error }

func isConnectError(err error) bool { return errors.As(err, new(*connectError)) }

// A sentinelError is a Sentinel's error reply, or why there is no reply.
type sentinelError struct{ error }

func (e *sentinelError) Unwrap() error { return e.error }

// A handshakeError is why there is no TLS connection.
type handshakeError struct{ error }

func (e *handshakeError) Unwrap() error { return e.error }

// A dialFunc is the Dialer of go-redis.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// dial returns the Dialer of a pool. It also ends with close, which go-redis's ctx does not.
func (d *dialer) dial(p *pool) dialFunc {
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(d.ctx, cancel)()
		if d.masterName != "" {
			if addr, err = d.findMaster(ctx); err != nil {
				err = &sentinelError{err}
			} else if !p.bind(addr) {
				err = errFailover
			}
		}
		if err == nil {
			conn, err = d.connect(ctx, network, addr)
		}
		if err != nil {
			return nil, &connectError{err}
		}
		return conn, nil
	}
}

func (d *dialer) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	netDialer := net.Dialer{Timeout: connectTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Count: 3}}
	conn, err := netDialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if d.tls == nil {
		return newReplyConn(conn), nil
	}
	config := d.tls.Clone()
	if d.rootCAs != nil {
		config.RootCAs = cmp.Or(d.rootCAs(ctx), config.RootCAs)
	}
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
	return newReplyConn(encrypted), nil
}

// A helloHook stops go-redis after an error reply to HELLO, the first command of a connection. go-redis
// would go on with AUTH, which counts as a second wrong login, or finds the connection closed.
type helloHook struct{}

// A helloError is an error reply to HELLO. It is not a redis.Error, so that go-redis does not go on.
type helloError string

func (e helloError) Error() string { return string(e) }

// A closedError is a connection that Redis closed before its first reply.
type closedError string

func (e closedError) Error() string { return string(e) }

func (helloHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (helloHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (helloHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err == nil || cmd.Name() != "hello" {
			return err
		}
		var reply redis.Error
		var network net.Error
		switch {
		case errors.As(err, &reply):
			if m := findMeaning(reply.Error(), false); m == nil || m.prefix == unknownCommand {
				return err // this Redis is too old for HELLO
			}
			return helloError(reply.Error())
		case errors.Is(err, io.EOF), errors.As(err, &network) && !network.Timeout() && !isAlert(err):
			return closedError(err.Error())
		}
		return err
	}
}
