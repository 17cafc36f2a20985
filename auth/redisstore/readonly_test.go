package redisstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/redistest"
	"github.com/itsmauth/itsmauth/internal/testnet"
)

// An address that leads to the master: existing connections stay with the server that was the master when
// they were made, as behind a name of ElastiCache. old rewrites the replies as Redis 6 sends them.
type masterAddress struct {
	addr   string
	master atomic.Pointer[redistest.Server]
	old    bool
}

func newMasterAddress(t *testing.T, master *redistest.Server, old bool) *masterAddress {
	t.Helper()
	m := &masterAddress{old: old}
	m.master.Store(master)
	m.addr = testnet.Serve(t, m.serve)
	return m
}

func (m *masterAddress) serve(client net.Conn) {
	server, err := net.Dial("tcp", m.master.Load().Addr())
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer server.Close()
		io.Copy(server, client)
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		reply := buf[:n]
		if m.old {
			reply = bytes.ReplaceAll(reply, []byte("-READONLY "), []byte("-ERR Error running script (call to f_1): @user_script:9: @user_script: 9: -READONLY "))
		}
		if _, err := client.Write(reply); err != nil {
			return
		}
	}
}

// After a failover, connections to the server that is a replica now are not used any longer.
func TestFailoverBehindOneAddress(t *testing.T) {
	t.Parallel()
	for name, old := range map[string]bool{"Redis 6": true, "Redis 7": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := redistest.Start(t)
			second := redistest.Start(t, "--replicaof", "127.0.0.1", strconv.Itoa(first.Port))
			m := newMasterAddress(t, first, old)
			s := opened(t, strings.Replace(first.URL(), first.Addr(), m.addr, 1))
			if err := s.Save(t.Context(), "k", auth.Record{Data: []byte("old")}); err != nil {
				t.Fatal(err)
			}
			if err := taken(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			redistest.Eventually(t, "the replica has the record", func() bool { return second.Do(t, "EXISTS itsmauth:{k}").(int64) == 1 })
			second.Do(t, "REPLICAOF NO ONE")
			first.Do(t, "REPLICAOF 127.0.0.1", second.Port)
			m.master.Store(second)
			for _, op := range methods(s) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				if err := op.run(ctx); err != nil && !errors.Is(err, auth.ErrConflict) { // Save has changed the version
					t.Errorf("%s: %v", op.name, err)
				}
				cancel()
			}
		})
	}
}
