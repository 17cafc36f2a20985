package redisstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/testnet"
)

// A server can end no operation with a panic, and takes no more memory than a reply may. A number of times of -1 is
// without an end.
func TestHostileReplies(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		reply string
		times int
	}{
		"string longer than memory": {"$9223372036854775800\r\n", 1},
		"string":                    {"$99999999999\r\n", 1},
		"array longer than memory":  {"*99999999999999\r\n", 1},
		"array":                     {"*9999999999\r\n", 1},
		"map":                       {"%9999999999\r\n", 1},
		"error":                     {"!9999999999\r\n", 1},
		"behind an empty string":    {"*2\r\n$-0\r\nxx$9999999999\r\n", 1},
		"behind nothing":            {"*2\r\n$-1\r\n$9999999999\r\n", 1},
		"arrays in arrays":          {"*1\r\n", -1},
		"attributes":                {"|0\r\n", -1},
		"endless line":              {"+" + strings.Repeat("a", 1<<10), -1},
		"endless array":             {"*9999\r\n" + strings.Repeat("$1\r\na\r\n", 9999), 1000},
		"one number":                {"*1\r\n:1\r\n", 1},
		"no number":                 {"*0\r\n", 1},
		"numbers":                   {"*4\r\n:1\r\n:1\r\n:1\r\n:1\r\n", 1},
		"odd record":                {"*3\r\n$1\r\na\r\n$1\r\nb\r\n$6\r\nformat\r\n", 1},
		"nothing in a record":       {"*2\r\n$-1\r\n$-1\r\n", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := testnet.Serve(t, func(conn net.Conn) {
				for commands := bufio.NewReader(conn); ; {
					command, err := readCommand(commands)
					switch {
					case err != nil:
						return
					case command == "hello":
						io.WriteString(conn, "*2\r\n$6\r\nserver\r\n$5\r\nredis\r\n")
						continue
					case command != "eval" && command != "hgetall":
						io.WriteString(conn, "+OK\r\n")
						continue
					}
					for n := 0; n != tt.times && err == nil; n++ {
						_, err = io.WriteString(conn, tt.reply)
					}
				}
			})
			s := opened(t, "redis://"+address)
			for what, f := range map[string]func(context.Context) error{
				"load": func(ctx context.Context) error { _, err := s.Load(ctx, "k"); return err },
				"save": func(ctx context.Context) error { return s.Save(ctx, "k", auth.Record{Data: []byte("data")}) },
				"lock": func(ctx context.Context) error { _, _, err := s.TryLock(ctx, "k", 1); return err },
				"take": func(ctx context.Context) error {
					_, _, err := s.Window("k", []auth.Limit{{Requests: 1, Per: time.Second}}, time.Second).Take(ctx, "id")
					return err
				},
			} {
				endless, limit := tt.times == -1 && what != "load", 200*time.Millisecond
				if endless {
					limit = time.Minute
				}
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				err := f(ctx)
				cancel()
				if err != nil && !errors.Is(err, auth.ErrStore) {
					t.Errorf("%s: %v", what, err)
				}
				if endless && !errors.Is(err, errLongReply) {
					t.Errorf("%s: %v; want %v", what, err, errLongReply)
				}
			}
		})
	}
}

// readCommand returns the name of the next command in lower case.
func readCommand(r *bufio.Reader) (name string, err error) {
	var words, length int
	if _, err = fmt.Fscanf(r, "*%d\r\n", &words); err != nil {
		return "", err
	}
	for i := range words {
		if _, err = fmt.Fscanf(r, "$%d\r\n", &length); err != nil {
			return "", err
		}
		word := make([]byte, length+2)
		if _, err = io.ReadFull(r, word); err != nil {
			return "", err
		}
		if i == 0 {
			name = strings.ToLower(string(word[:length]))
		}
	}
	return name, nil
}

// The cost of a reply does not depend on how it is cut into pieces, and no payload counts as lines.
func TestReplyCost(t *testing.T) {
	t.Parallel()
	const reply = "*3\r\n$12\r\n$99999999\r\nx\r\n:5\r\n$-1\r\n%1\r\n$-0\r\n\r\n!2\r\n*9\r\n+OK 12\r\n"
	const want = int64(len(reply)) + 8*elementCost + 4*elementCost + 12 + 2
	for size := 1; size <= len(reply); size++ {
		var c replyConn
		var cost int64
		for rest := reply; rest != ""; {
			n := min(size, len(rest))
			cost, rest = cost+c.cost([]byte(rest[:n])), rest[n:]
		}
		if cost != want {
			t.Errorf("in pieces of %d: %d; want %d", size, cost, want)
		}
	}
}
