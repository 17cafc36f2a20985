//go:build soak

package auth_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

func TestSoakModel(t *testing.T) { runModel(t, 50, 2000) }

// Many callers on tokens that hardly live, from an endpoint that is well, fails, stalls and returns
// garbage by turns: they hear what it last did wrong and nothing else, and only while there is no
// token. It is not parallel, since it counts goroutines and memory.
func TestSoakErraticEndpoint(t *testing.T) {
	const callers, rounds = 256, 5
	before := runtime.NumGoroutine()
	synctest.Test(t, func(t *testing.T) {
		e := &erratic{t: t}
		s := newSession(t, e, nil)
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for range callers {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						e.call(s)
					}
				}
			})
		}
		var heap uint64
		for round := range rounds {
			time.Sleep(100 * time.Second)
			if n := runtime.NumGoroutine(); n > before+callers+20 {
				t.Errorf("%d goroutines after %d rounds", n, round+1)
			}
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			switch {
			case round == 1:
				heap = m.HeapAlloc
			case round > 1 && m.HeapAlloc > heap+1<<20:
				t.Errorf("%d bytes of heap after %d rounds, %d after 2", m.HeapAlloc, round+1, heap)
			}
		}
		close(stop)
		wg.Wait()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if n := runtime.NumGoroutine(); n > before+5 {
			t.Errorf("%d goroutines after Close", n)
		}
		t.Logf("%d calls, errors by turn %v, %d exchanges", e.calls, e.errors, e.exchanges)
		if e.calls < 100_000 || e.exchanges < 2*len(turns) || e.errors[well] > 0 || e.errors[down] == 0 || e.errors[stalled] == 0 || e.errors[garbled] == 0 {
			t.Error("not every turn was seen")
		}
	})
}

type turn int

const (
	well turn = iota
	down
	stalled
	garbled
)

// turns is what the exchanges meet, one after the other and over again.
var turns = func() (all []turn) {
	for i, exchanges := range []int{well: 40, down: 6, stalled: 1, garbled: 3} {
		for range exchanges {
			all = append(all, turn(i))
		}
	}
	return all
}()

// erratic is the Provider, and knows what callers may see.
type erratic struct {
	t  *testing.T
	mu sync.Mutex

	exchanges int
	running   bool
	begun     turn // what the last exchange met
	ended     turn // and the last that ended
	expires   time.Time
	calls     int
	errors    [4]int
}

func (e *erratic) call(s *auth.Session) {
	patience := 50*time.Millisecond + time.Duration(rand.Int64N(int64(time.Second)))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e.mu.Lock()
	start := time.Now()
	valid := start.Before(e.expires)
	e.mu.Unlock()
	tok, err := s.Token(ctx)
	took := time.Since(start)

	e.mu.Lock()
	e.calls++
	pause := 250 * time.Millisecond
	if err != nil {
		e.errors[e.begun]++
		pause = 4 * time.Second
	}
	switch {
	case valid && (err != nil || took != 0):
		e.t.Errorf("with a token at hand: %v after %s", err, took)
	case err == nil && !time.Now().Before(tok.Expiry):
		e.t.Errorf("a token %s past its expiry", time.Since(tok.Expiry))
	case err == nil:
	case errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, auth.ErrUnavailable):
		if took != patience || !e.running && e.ended != down { // down: between two tries
			e.t.Errorf("back after %s, not %s, in turn %d", took, patience, e.begun)
		}
	case errors.Is(err, auth.ErrUnavailable) && (e.ended == down || e.ended == stalled):
	case errors.Is(err, auth.ErrProtocol) && e.ended == garbled:
	default:
		e.t.Errorf("%v, after turn %d", err, e.ended)
	}
	e.mu.Unlock()
	time.Sleep(time.Duration(rand.Int64N(int64(pause))))
}

func (e *erratic) Exchange(ctx context.Context, _ *oauth2.Token) (*oauth2.Token, error) {
	e.mu.Lock()
	start := time.Now()
	if e.running {
		e.t.Error("two exchanges at once")
	}
	e.begun = turns[e.exchanges%len(turns)]
	e.exchanges++
	e.running = true
	delay := 20 * time.Millisecond
	if e.begun == stalled {
		delay = time.Hour
	}
	e.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running, e.ended = false, e.begun
	switch e.begun {
	case down:
		return nil, &auth.Error{Status: 503, Err: auth.ErrUnavailable}
	case stalled:
		return nil, ctx.Err()
	case garbled:
		return &oauth2.Token{TokenType: "<html>"}, nil
	}
	e.expires = start.Add(300 * time.Millisecond)
	return &oauth2.Token{AccessToken: fmt.Sprint("T", e.exchanges), Expiry: e.expires}, nil
}

func (e *erratic) Header(*oauth2.Token) http.Header { return nil }

func (e *erratic) Rejects(*http.Response, []byte) bool { return false }
