package redisstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/itsmauth/itsmauth/internal/peererror"
)

var (
	errCredentials = errors.New("cannot read token_store.url")
	errForeign     = errors.New("was not written by itsmauth, or the same key with :lock, :window or :peers was not; rename that key, or set another token_store.key_prefix")
	errDamaged     = errors.New("is damaged; put a good copy back, or remove it to start anew")
	errNoReply     = errors.New("no answer from Redis")
	errNoHandshake = errors.New("no answer from Redis to the TLS handshake; if its port does not use TLS, begin token_store.url with redis://")
	errNoMaster    = errors.New("the Sentinels know no master of that name: correct master_name in token_store.url")
	errKeyMoving   = errors.New("the key is being moved to another node of the Cluster")
	errFailover    = errors.New("a failover of Redis is under way: the Sentinels name another master")
	errLocked      = errors.New("another process holds the lock")
	errBroken      = errors.New("the connection to Redis broke")
	errLongReply   = errors.New("the reply is longer than Redis can have stored for itsmauth: see which server token_store.url names")
	errNotRedis    = errors.New("the reply is not one of Redis: see which server token_store.url names")
)

// A meaning explains an error reply.
type meaning struct {
	prefix    string // of the reply
	text      string
	temporary bool // may go away without a repair
}

const unknownCommand = "ERR unknown command"

const noPermission = "the user of token_store.url lacks a permission in Redis: give it +@read +@write +@scripting +@connection +time on the keys of token_store.key_prefix"

var meanings = []meaning{
	{"OOM", "Redis is full: raise its maxmemory, or delete keys", false},
	{"READONLY", "Redis is read-only: it is a replica, or a failover is under way; token_store.url must name the master", true},
	{"MISCONF", "Redis refuses writes because it cannot save them to its disk: see the log of Redis", false},
	{"NOREPLICAS", "Redis refuses writes because it has too few replicas (min-replicas-to-write)", true},
	{"LOADING", "Redis is starting and loading its data", true},
	{"MASTERDOWN", "Redis is failing over: this replica has lost its master", true},
	{"CLUSTERDOWN", "Redis Cluster is down, or failing over", true},
	{"TRYAGAIN", "Redis Cluster is moving the key", true},
	{"BUSY", "Redis is busy running a script", true},
	{"NOAUTH", "Redis requires a password: put user and password into token_store.url", false},
	{"WRONGPASS", "Redis refuses the user or the password: correct them in token_store.url", false},
	{"ERR invalid password", "Redis refuses the password: correct it in token_store.url", false},
	{"ERR Client sent AUTH", "Redis has no password: remove the one in token_store.url", false},
	{"ERR AUTH", "Redis has no password: remove the one in token_store.url", false},
	{"NOPERM", noPermission, false},
	{"ERR The user executing the script", noPermission, false},
	{"DENIED", "Redis is in protected mode and only accepts connections from its own machine: give it a password, or set its protected-mode to no", false},
	{"NOPROTO", "Redis is too old: version 6 or newer is needed", false},
	{"ERR max number of clients", "Redis has too many connections: raise its maxclients", true},
	{"ERR This instance has cluster support disabled", "this Redis is not a Cluster: remove cluster=true, or the addr parameters, from token_store.url", false},
	{"ERR DB index is out of range", "Redis has no database with this number: correct the path of token_store.url", false},
	{unknownCommand, "this server does not know the commands of Redis: if it is a Sentinel, add master_name to token_store.url", false},
}

var sentinelMeanings = []meaning{
	{"NOAUTH", "the Sentinels require a password: put sentinel_username and sentinel_password into token_store.url", false},
	{"WRONGPASS", "the Sentinels refuse the user or the password: correct sentinel_username and sentinel_password in token_store.url", false},
	{"NOPERM", "the user sentinel_username of token_store.url may not ask the Sentinels for the master: give it +sentinel", false},
	{unknownCommand, "token_store.url has a master_name, but this server is not a Sentinel: give the addresses of the Sentinels, or remove master_name", false},
}

// inScript matches what Redis 6 and older put before the error of a command in a script, with the line once
// or twice.
var inScript = regexp.MustCompile(`^ERR Error (?:running|compiling) script .*?@user_script: ?\d+: (?:@user_script: ?\d+: )?-?`)

// isReply reports whether err is an error reply to the command, so that Redis did not carry it out.
func isReply(err error) bool {
	return !isConnectError(err) && (errors.As(err, new(redis.Error)) || errors.As(err, new(helloError)))
}

// classify returns what err means, and whether it may go away without a repair. It does not quote Redis,
// which repeats the arguments of commands that it does not know.
func (c *client) classify(err error, key string) (meaning error, temporary bool) {
	var (
		reply      redis.Error
		refused    helloError
		network    net.Error
		handshake  *handshakeError
		atSentinel = errors.As(err, new(*sentinelError))
	)
	switch {
	case errors.Is(err, errCredentials):
		return err, false
	case errors.Is(err, errLongReply):
		return errLongReply, false
	case errors.Is(err, errNotRedis):
		return errNotRedis, false
	case errors.Is(err, errFailover):
		return errFailover, true
	case atSentinel && errors.Is(err, redis.Nil):
		return errNoMaster, false
	case errors.Is(err, errDamaged), errors.Is(err, errForeign):
		return keyError(key, err), false
	case errors.As(err, &reply):
		return c.classifyReply(inScript.ReplaceAllString(reply.Error(), ""), key, atSentinel)
	case errors.As(err, &refused):
		return c.classifyReply(string(refused), key, atSentinel)
	case errors.As(err, &handshake):
		return classifyHandshake(c.dialer.clean(handshake.error))
	case isAlert(err): // with TLS 1.3 it comes after the handshake
		return classifyHandshake(c.dialer.clean(err))
	case isConnectError(err) && atSentinel:
		return fmt.Errorf("cannot reach a Sentinel: %w", c.dialer.clean(err)), true
	case isConnectError(err):
		return fmt.Errorf("cannot reach Redis: %w", c.dialer.clean(err)), true
	case errors.As(err, new(closedError)) && c.dialer.tls != nil:
		return errors.New("the connection was closed by Redis; if it requires a client certificate, set token_store.tls_config.cert_file and key_file"), true
	case errors.As(err, new(closedError)):
		return errors.New("the connection was closed by Redis; if its port uses TLS, begin token_store.url with rediss://"), true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, redis.ErrPoolTimeout),
		errors.As(err, &network) && network.Timeout():
		return errNoReply, true
	}
	return fmt.Errorf("%w: %w", errBroken, c.dialer.clean(err)), true
}

// clean returns err without text that a server chose, such as the name of another node.
func (d *dialer) clean(err error) error {
	var names []string
	for _, addr := range d.addrs {
		host, _, _ := net.SplitHostPort(addr)
		names = append(names, host)
	}
	if d.tls != nil {
		names = append(names, d.tls.ServerName)
	}
	clean := peererror.Clean(err, names...)
	if errors.Is(clean, peererror.ErrBroken) || errors.Is(clean, peererror.ErrNotHTTP) {
		return errNotRedis
	}
	return clean
}

func keyError(key string, err error) error { return fmt.Errorf("the key %s in Redis %w", key, err) }

func (c *client) classifyReply(text, key string, atSentinel bool) (err error, temporary bool) {
	if m := findMeaning(text, atSentinel); m != nil {
		return errors.New(m.text), m.temporary
	}
	code, _, _ := strings.Cut(strings.TrimPrefix(text, "ERR "), " ")
	switch code {
	case "WRONGTYPE", "FOREIGN":
		return keyError(key, errForeign), false
	case "MOVED", "ASK":
		if c.dialer.cluster {
			return errKeyMoving, true
		}
		return errors.New("this Redis is a Cluster node: add ?cluster=true to token_store.url"), false
	}
	return errors.New("unexpected reply from Redis: see its log"), false
}

// findMeaning returns nil for an unknown reply.
func findMeaning(text string, atSentinel bool) *meaning {
	all := meanings
	if atSentinel {
		all = slices.Concat(sentinelMeanings, meanings)
	}
	for _, m := range all {
		if strings.HasPrefix(text, m.prefix) {
			return &m
		}
	}
	return nil
}

func classifyHandshake(err error) (meaning error, temporary bool) {
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, new(tls.RecordHeaderError)):
		return errors.New("this port of Redis does not use TLS: begin token_store.url with redis://, or give the TLS port"), false
	case errors.As(err, &certificate):
		if errors.As(err, new(x509.UnknownAuthorityError)) {
			return fmt.Errorf("the certificate of Redis is not trusted (%w): set token_store.tls_config.ca_file", err), false
		}
		return fmt.Errorf("the certificate of Redis is not valid (%w): see token_store.tls_config", err), false
	case isAlert(err):
		return fmt.Errorf("the TLS connection is refused by Redis (%w): correct token_store.tls_config", err), false
	case errors.Is(err, context.DeadlineExceeded):
		return errNoHandshake, true
	}
	return fmt.Errorf("no TLS connection to Redis: %w", err), true
}

// isAlert reports whether err is a TLS alert that the server sent.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
