// Load runs the scenarios that a benchmark of one call cannot show, each contestant after the other
// against one server in a process of its own, and prints what it finds in the form of `go test
// -bench`, for benchstat and for the tables of docs/performance.md.
//
//	go run ./load [-count 1] [-run scenario] [-peer name]
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/filestore"
	"github.com/itsmauth/itsmauth/internal/bench"
)

var (
	count = flag.Int("count", 1, "rounds")
	only  = flag.String("run", "", "only this scenario")
	peer  = flag.String("peer", "", "only this contestant")
	serve = flag.Bool("serve", false, "be the server")
)

const (
	margined = "oauth2 " + bench.HandBuilt + " 401-hook prometheus" // these renew 10 s before the expiry, whatever the lifetime
	all      = "oauth2 oauth2-tuned " + bench.HandBuilt + " 401-hook cloud-auth azcore aws-cache prometheus " + bench.Ours
)

var scenarios = []struct {
	name  string
	peers string
	run   func(*server, []bench.Peer, func(bench.Peer, metrics))
}{
	{"Steady", "plain " + bench.Ours + " " + bench.HandBuilt + " oauth2 cloud-auth azcore aws-cache prometheus", steady},
	{"Expiry", "oauth2 oauth2-tuned cloud-auth azcore aws-cache prometheus " + bench.Ours, each(3, expiry)},
	{"Cancel", "oauth2 cloud-auth azcore aws-cache prometheus " + bench.Ours, each(1, cancellation)},
	{"Revocation", all, each(1, revocation)},
	{"Cap30", "oauth2 401-hook cloud-auth azcore prometheus " + bench.Ours, each(1, capped)},
	{"ShortTokens", "oauth2 oauth2-tuned cloud-auth azcore aws-cache prometheus " + bench.Ours, each(1, short)},
}

// each runs a scenario with one contestant after the other, so often.
func each(times int, run func(*server, bench.Peer) metrics) func(*server, []bench.Peer, func(bench.Peer, metrics)) {
	return func(s *server, peers []bench.Peer, report func(bench.Peer, metrics)) {
		for _, p := range slices.Repeat(peers, times) {
			report(p, run(s, p))
		}
	}
}

// metrics are values by their units, as benchmarks report them.
type metrics []metric

type metric struct {
	value float64
	unit  string
}

func main() {
	flag.Parse()
	if *serve {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(err)
		fmt.Println(l.Addr())
		go func() { io.Copy(io.Discard, os.Stdin); os.Exit(0) }() // ends with its parent
		must(http.Serve(l, new(bench.Server)))
	}
	s := start()
	for range *count {
		for _, sc := range scenarios {
			if *only != "" && sc.name != *only {
				continue
			}
			var peers []bench.Peer
			for name := range strings.FieldsSeq(sc.peers) {
				if *peer == "" || name == *peer {
					peers = append(peers, bench.Named(name))
				}
			}
			sc.run(s, peers, func(p bench.Peer, values metrics) {
				fmt.Printf("Benchmark%s/%s 1", sc.name, p.Name)
				for _, m := range values {
					fmt.Printf(" %.6g %s", m.value, m.unit)
				}
				fmt.Println()
			})
		}
	}
}

// server is the process that answers.
type server struct {
	url      string
	accounts int
	alive    io.Closer // it ends when this does
}

func start() *server {
	cmd := exec.Command(os.Args[0], "-serve")
	cmd.Stderr = os.Stderr
	alive, err := cmd.StdinPipe()
	must(err)
	out, err := cmd.StdoutPipe()
	must(err)
	must(cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(err)
	return &server{url: "http://" + strings.TrimSpace(line), alive: alive}
}

// setup is a new account, whose tokens live for so many seconds and take 200 ms to get.
func (s *server) setup(life int, query string) (bench.Setup, func(string) bench.Stats) {
	s.accounts++
	account := fmt.Sprintf("%s/a%d/", s.url, s.accounts)
	api, err := url.Parse(account + "api")
	must(err)
	token, err := url.Parse(fmt.Sprintf("%stoken?life=%d&%s", account, life, query))
	must(err)
	return bench.Setup{API: api, TokenURL: token, Lifetime: time.Duration(life) * time.Second}, func(what string) bench.Stats {
		var st bench.Stats
		resp, err := http.Get(account + what)
		must(err)
		defer resp.Body.Close()
		json.NewDecoder(resp.Body).Decode(&st)
		return st
	}
}

// call makes one request and reports how long it took and whether it succeeded.
func call(ctx context.Context, st bench.Stack, u *url.URL, anonymous bool) (time.Duration, bool) {
	req, err := http.NewRequestWithContext(ctx, "GET", u.String(), nil)
	must(err)
	req.Header.Set("Accept", "application/json")
	if anonymous {
		req.Header.Set("X-Anonymous", "1")
	}
	start := time.Now()
	resp, err := st.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return time.Since(start), false
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return time.Since(start), resp.StatusCode == 200
}

// warm is how long connections are made before anything counts.
const warm = 500 * time.Millisecond

// load is what so many callers of one stack met, each with a pause after each call.
type load struct {
	took   []time.Duration
	failed int
}

func drive(st bench.Stack, u *url.URL, callers int, pause, d time.Duration) load {
	var mu sync.Mutex
	var sum load
	var wg sync.WaitGroup
	begin := time.Now().Add(warm)
	end := begin.Add(d)
	for i := range callers {
		wg.Go(func() {
			time.Sleep(pause * time.Duration(i) / time.Duration(callers))
			var l load
			for now := time.Now(); now.Before(end); now = time.Now() {
				took, ok := call(context.Background(), st, u, false)
				if now.After(begin) {
					l.took = append(l.took, took)
					if !ok {
						l.failed++
					}
				}
				time.Sleep(pause)
			}
			mu.Lock()
			defer mu.Unlock()
			sum.took = append(sum.took, l.took...)
			sum.failed += l.failed
		})
	}
	wg.Wait()
	slices.Sort(sum.took)
	return sum
}

func (l load) quantile(q float64) float64 {
	return float64(l.took[min(int(q*float64(len(l.took))), len(l.took)-1)]) / 1e6
}

func (l load) lost() float64 { return 100 * float64(l.failed) / float64(len(l.took)) }

func cpu() time.Duration {
	var r syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// steady is 32 workers without a pause. The contestants take turns that are so short that whatever else
// slows the machine slows all of them alike. The server's CPU time is another process's.
func steady(s *server, peers []bench.Peer, report func(bench.Peer, metrics)) {
	const workers, turns, requests = 32, 100, 1_000
	turn := make([]func(), len(peers))
	for i, p := range peers {
		setup, _ := s.setup(3600, "")
		st := p.New(setup)
		defer st.Close()
		turn[i] = func() {
			var left atomic.Int64
			left.Store(requests)
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if _, ok := call(context.Background(), st, setup.API, p.Name == "plain"); !ok {
							panic(p.Name + ": a request failed")
						}
					}
				})
			}
			wg.Wait()
		}
		turn[i]() // makes the connections
	}
	for range turns {
		for i, p := range peers {
			start, used := time.Now(), cpu()
			turn[i]()
			used, took := cpu()-used, time.Since(start)
			report(p, metrics{{float64(used.Nanoseconds()) / requests, "cpu-ns/req"}, {requests / took.Seconds(), "req/s"}})
		}
	}
}

// expiry is 256 callers across a renewal, after as long without one.
func expiry(s *server, p bench.Peer) metrics {
	const life = 4
	extra := 0
	if slices.Contains(strings.Fields(margined), p.Name) {
		extra = 10
	}
	setup, stats := s.setup(life+extra, "delay=200")
	setup.Lifetime = life * time.Second
	st := p.New(setup)
	defer st.Close()
	call(context.Background(), st, setup.API, false)
	calm := drive(st, setup.API, 256, 50*time.Millisecond, 2*time.Second)
	l := drive(st, setup.API, 256, 50*time.Millisecond, 2*time.Second) // from 3 s to 5 s of a life of 4 s
	return metrics{
		{l.quantile(1), "max-ms"}, {l.quantile(0.999), "p99.9-ms"}, {calm.quantile(0.999), "steady-p99.9-ms"},
		{l.quantile(0.999) / calm.quantile(0.999), "p99.9-ratio"},
		{l.quantile(0.5), "p50-ms"}, {l.lost(), "failed-%"}, {float64(stats("stats").Exchanges), "exchanges"},
	}
}

// cancellation is a caller with a deadline of 50 ms, who begins the exchange of 200 ms or joins it.
func cancellation(s *server, p bench.Peer) metrics {
	setup, _ := s.setup(3600, "delay=200")
	st := p.New(setup)
	defer st.Close()
	patient := func() time.Duration {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		took, _ := call(ctx, st, setup.API, false)
		return took
	}
	var leader, waiter time.Duration
	var wg sync.WaitGroup
	wg.Go(func() { leader = patient() })
	time.Sleep(20 * time.Millisecond)
	wg.Go(func() { waiter = patient() })
	wg.Wait()
	return metrics{{float64(leader) / 1e6, "leader-ms"}, {float64(waiter) / 1e6, "waiter-ms"}}
}

// revocation is a token that is killed under 256 callers.
func revocation(s *server, p bench.Peer) metrics {
	setup, stats := s.setup(3600, "delay=200")
	st := p.New(setup)
	defer st.Close()
	call(context.Background(), st, setup.API, false)
	before := stats("stats").Exchanges
	time.AfterFunc(time.Second, func() { stats("revoke") })
	l := drive(st, setup.API, 256, 50*time.Millisecond, 3*time.Second)
	return metrics{{l.lost(), "failed-%"}, {float64(stats("stats").Exchanges - before), "exchanges"}, {l.quantile(1), "max-ms"}}
}

// capped is 40 clients of an account with room for 30 tokens. Those that can share a store do.
func capped(s *server, p bench.Peer) metrics {
	setup, stats := s.setup(3600, "cap=30&delay=20")
	dir, err := os.MkdirTemp("", "bench")
	must(err)
	defer os.RemoveAll(dir)
	var mu sync.Mutex
	var sum load
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			own := setup
			own.Store = open(dir)
			st := p.New(own)
			defer st.Close()
			l := drive(st, setup.API, 1, 50*time.Millisecond, 4*time.Second)
			mu.Lock()
			defer mu.Unlock()
			sum.took = append(sum.took, l.took...)
			sum.failed += l.failed
		})
	}
	wg.Wait()
	return metrics{{sum.lost(), "failed-%"}, {float64(stats("stats").Exchanges), "exchanges"}}
}

func open(dir string) auth.Store {
	s, err := filestore.Open(filestore.Config{Path: dir})
	must(err)
	return s
}

// short is 64 callers on tokens of 2 s.
func short(s *server, p bench.Peer) metrics {
	setup, stats := s.setup(2, "delay=200")
	st := p.New(setup)
	defer st.Close()
	call(context.Background(), st, setup.API, false)
	const d = 6 * time.Second
	l := drive(st, setup.API, 64, 20*time.Millisecond, d)
	return metrics{
		{float64(len(l.took)-l.failed) / d.Seconds(), "req/s"}, {float64(stats("stats").Exchanges) / d.Seconds(), "exchanges/s"},
		{l.quantile(0.999), "p99.9-ms"}, {l.quantile(1), "max-ms"}, {l.lost(), "failed-%"},
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
