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
)

var (
	errForeign     = errors.New("holds something that is not of itsmauth, or the same key with :lock, :window or :peers does; rename that key, or set another token_store.key_prefix")
	errDamaged     = errors.New("is damaged; put a good copy back, or remove it to start anew")
	errNoAnswer    = errors.New("no answer from Redis")
	errNoHandshake = errors.New("no answer from Redis to the TLS handshake; if its port does not speak TLS, begin token_store.url with redis://")
	errNoMaster    = errors.New("the Sentinels know no master of that name: correct master_name in token_store.url")
	errMoving      = errors.New("the key is being moved to another node of the Cluster")
	errMoved       = errors.New("a failover of Redis is under way: the Sentinels name another master")
	errLocked      = errors.New("another process holds the lock")
)

// A keyError says what is wrong with the record at a key.
type keyError struct {
	key string
	err error
}

func (e *keyError) Error() string { return fmt.Sprintf("the key %s in Redis %s", e.key, e.err) }
func (e *keyError) Unwrap() error { return e.err }

// A credentialsError is why user and password cannot be read.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "cannot read token_store.url: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// A brokenError is a connection that ended, or had no answer for too long. It says less than anything
// that Redis has said before.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// A meaning is what an error reply says in plain words, and whether that may pass without anybody's
// help.
type meaning struct {
	code    string // with which the reply begins
	means   string
	passing bool
}

const unknownCommand = "ERR unknown command"

const denied = "Redis does not let this user do that: give the user of token_store.url +@read +@write +@scripting +@connection +time on the keys of token_store.key_prefix"

var meanings = []meaning{
	{"OOM", "Redis is full: raise its maxmemory, or delete keys that are not needed", false},
	{"READONLY", "Redis is read-only: it is a replica, or a failover is under way; token_store.url must lead to the master", true},
	{"MISCONF", "Redis refuses writes because it cannot save them to its disk: see Redis's log", false},
	{"NOREPLICAS", "Redis refuses writes because too few replicas follow it (min-replicas-to-write)", true},
	{"LOADING", "Redis is starting, and still loads its data", true},
	{"MASTERDOWN", "Redis is failing over: this replica has lost its master", true},
	{"CLUSTERDOWN", "Redis Cluster is down, or failing over", true},
	{"TRYAGAIN", "Redis Cluster is moving the key", true},
	{"BUSY", "Redis is busy with somebody's script", true},
	{"NOAUTH", "Redis wants a password: give user and password in token_store.url", false},
	{"WRONGPASS", "Redis refuses the user or the password: correct them in token_store.url", false},
	{"ERR invalid password", "Redis refuses the password: correct it in token_store.url", false},
	{"ERR Client sent AUTH", "Redis has no password: remove the one in token_store.url", false},
	{"ERR AUTH", "Redis has no password: remove the one in token_store.url", false},
	{"NOPERM", denied, false},
	{"ERR The user executing the script", denied, false},
	{"DENIED", "Redis is in protected mode, in which it serves its own machine alone: give it a password, or set its protected-mode to no", false},
	{"NOPROTO", "Redis is too old: version 6 is the oldest that works", false},
	{"ERR max number of clients", "Redis has no room for another connection: raise its maxclients", true},
	{"ERR This instance has cluster support disabled", "this Redis is not a Cluster: remove cluster=true, or the addr parameters, from token_store.url", false},
	{"ERR DB index is out of range", "Redis has no database of that number: correct the path of token_store.url", false},
	{unknownCommand, "this server does not know Redis's commands: if it is a Sentinel, add master_name to token_store.url", false},
}

var sentinelMeanings = []meaning{
	{"NOAUTH", "the Sentinels want a password: give sentinel_username and sentinel_password in token_store.url", false},
	{"WRONGPASS", "the Sentinels refuse the user or the password: correct sentinel_username and sentinel_password in token_store.url", false},
	{"NOPERM", "the Sentinels do not let this user ask for the master: allow sentinel_username of token_store.url +sentinel", false},
	{unknownCommand, "token_store.url has a master_name, but this server is no Sentinel: give the Sentinels' addresses, or remove master_name", false},
}

// inScript matches what Redis 6 and older put around the error of a command in a script.
var inScript = regexp.MustCompile(`^ERR Error (?:running|compiling) script .*?@user_script: ?\d+: -?`)

// isReply reports whether err is an error reply of the Redis that was asked, as opposed to one that
// was not reached.
func isReply(err error) bool {
	return !isDial(err) && (errors.As(err, new(redis.Error)) || errors.As(err, new(*helloError)))
}

// explain says what err means without what it quotes, since Redis repeats the arguments of commands
// that it does not understand. passing reports whether it may pass without anybody's help.
func (c *client) explain(err error, key string) (meaning error, passing bool) {
	var (
		reply      redis.Error
		refused    *helloError
		closed     *closedError
		network    net.Error
		handshake  *handshakeError
		atSentinel = errors.As(err, new(*sentinelError))
	)
	switch {
	case errors.As(err, new(*credentialsError)):
		return err, false
	case errors.Is(err, errMoved):
		return errMoved, true
	case atSentinel && errors.Is(err, redis.Nil):
		return errNoMaster, false
	case errors.Is(err, errDamaged), errors.Is(err, errForeign):
		return &keyError{key, err}, false
	case errors.As(err, &reply):
		return c.explainReply(inScript.ReplaceAllString(reply.Error(), ""), key, atSentinel)
	case errors.As(err, &refused):
		return c.explainReply(refused.reply, key, atSentinel)
	case errors.As(err, &handshake):
		return explainHandshake(handshake.err)
	case isAlert(err): // with TLS 1.3 it comes after the handshake
		return fmt.Errorf("the TLS connection is refused by Redis (%w): correct token_store.tls_config", err), false
	case isDial(err) && atSentinel:
		return fmt.Errorf("cannot reach a Sentinel: %w", err), true
	case isDial(err):
		return fmt.Errorf("cannot reach Redis: %w", err), true
	case errors.As(err, &closed) && closed.encrypted:
		return errors.New("the connection is closed before Redis answers; if it wants a client certificate, set token_store.tls_config.cert_file and key_file"), true
	case errors.As(err, &closed):
		return errors.New("the connection is closed before Redis answers; if its port wants TLS, begin token_store.url with rediss://"), true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, redis.ErrPoolTimeout),
		errors.As(err, &network) && network.Timeout():
		return &brokenError{errNoAnswer}, true
	}
	return &brokenError{fmt.Errorf("the connection to Redis broke: %w", err)}, true
}

func (c *client) explainReply(text, key string, atSentinel bool) (err error, passing bool) {
	if m := find(text, atSentinel); m != nil {
		return errors.New(m.means), m.passing
	}
	code, _, _ := strings.Cut(strings.TrimPrefix(text, "ERR "), " ")
	switch code {
	case "WRONGTYPE", "FOREIGN":
		return &keyError{key, errForeign}, false
	case "MOVED", "ASK":
		if c.dialer.cluster {
			return errMoving, true
		}
		return errors.New("this Redis is a Cluster node: add ?cluster=true to token_store.url"), false
	}
	return fmt.Errorf("unexpected reply of Redis, %.20q", code), false
}

// find looks a reply up, or returns nil.
func find(text string, atSentinel bool) *meaning {
	all := meanings
	if atSentinel {
		all = slices.Concat(sentinelMeanings, meanings)
	}
	for _, m := range all {
		if strings.HasPrefix(text, m.code) {
			return &m
		}
	}
	return nil
}

func explainHandshake(err error) (meaning error, passing bool) {
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, new(tls.RecordHeaderError)):
		return errors.New("this port of Redis does not speak TLS: begin token_store.url with redis://, or give Redis's TLS port"), false
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
