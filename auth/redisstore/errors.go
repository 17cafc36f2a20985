package redisstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	errForeign = errors.New("holds something that is not of itsmauth, or its neighbours :lock, :window and :peers do; move it away, or set another key_prefix")
	errDamaged = errors.New("is damaged; put a good copy back, or remove it to start anew")
)

const denied = "Redis does not let this user do that: it needs +@read +@write +@scripting +@connection +time on the keys of key_prefix"

// replies says what Redis means by an error's first word.
var replies = []struct{ code, means string }{
	{"OOM", "Redis is full: raise its maxmemory, or let it evict keys of other prefixes"},
	{"READONLY", "Redis is read-only: it is a replica, or a failover is under way"},
	{"MISCONF", "Redis refuses writes because it cannot save them to disk"},
	{"NOREPLICAS", "Redis refuses writes because too few replicas follow it"},
	{"LOADING", "Redis is starting, and still loads its data"},
	{"MASTERDOWN", "Redis is failing over: this replica has lost its master"},
	{"CLUSTERDOWN", "Redis Cluster is down, or failing over"},
	{"TRYAGAIN", "Redis Cluster is moving the key"},
	{"BUSY", "Redis is busy with somebody's script"},
	{"NOAUTH", "Redis wants a user and password; give them in url"},
	{"WRONGPASS", "Redis refuses the user and password in url"},
	{"NOPERM", denied},
	{"ERR The user executing the script", denied},
	{"NOPROTO", "Redis is too old"},
	{"ERR max number of clients", "Redis has no room for another connection: raise its maxclients"},
	{"ERR DB index is out of range", "Redis has no database of that number"},
}

// explain tells what err means without what it quotes: Redis repeats the arguments of commands that
// it does not understand.
func explain(err error, patience time.Duration) error {
	var reply redis.Error
	var network net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, redis.ErrPoolTimeout),
		errors.As(err, &network) && network.Timeout():
		return fmt.Errorf("no answer from Redis within %s", patience)
	case errors.As(err, &reply):
		for _, r := range replies {
			if redis.HasErrorPrefix(err, r.code) || strings.HasPrefix(reply.Error(), r.code) {
				return errors.New(r.means)
			}
		}
		code, _, _ := strings.Cut(reply.Error(), " ")
		return fmt.Errorf("unexpected reply of Redis, %.20q", code)
	case errors.As(err, &network):
		return fmt.Errorf("cannot reach Redis: %w", err)
	}
	return fmt.Errorf("talking to Redis: %w", err)
}
