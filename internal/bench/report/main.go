// Report writes the tables of a Markdown file: each follows a line <!-- bench: TABLE --> and ends
// with <!-- end -->, and is made of what `go test -bench` and load printed.
//
//	go run ./report -into ../../docs/performance.md bench.txt
package main

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

var into = flag.String("into", "", "the Markdown file")

// A table shows, for each contestant, some units of some benchmarks.
type table struct {
	head    string // of the contestants' column
	columns []column
}

type column struct {
	head      string
	benchmark string // with * for the contestant; the number of CPUs after it
	unit      string
	over      string // a contestant: show the ratio to it
}

var tables = map[string]table{
	"token": {"a fresh token", []column{
		{"serial, ns", "Token/serial/*", "ns/op", ""},
		{"parallel, 2 CPUs, ns", "Token/parallel/*-2", "ns/op", ""},
		{"parallel, -cpu 8, ns", "Token/parallel/*-8", "ns/op", ""},
		{"of x/oauth2's time, serial", "Token/serial/*", "ns/op", "oauth2"},
		{"of x/oauth2's time, -cpu 8", "Token/parallel/*-8", "ns/op", "oauth2"},
		{"allocations", "Token/serial/*", "allocs/op", ""},
	}},
	"roundtrip": {"a request over a stub", []column{
		{"GET, ns", "RoundTrip/GET/token=40/*", "ns/op", ""},
		{"of the hand-built stack's", "RoundTrip/GET/token=40/*", "ns/op", "oauth2+retryablehttp"},
		{"GET, allocations", "RoundTrip/GET/token=40/*", "allocs/op", ""},
		{"GET, token of 1 KiB, ns", "RoundTrip/GET/token=1024/*", "ns/op", ""},
		{"POST 1 KiB, ns", "RoundTrip/POST/token=40/*", "ns/op", ""},
		{"POST 1 KiB, allocations", "RoundTrip/POST/token=40/*", "allocs/op", ""},
	}},
	"steady": {"32 workers over loopback", []column{
		{"client CPU, ns a request", "Steady/*", "cpu-ns/req", ""},
		{"of plain's", "Steady/*", "cpu-ns/req", "plain"},
		{"requests a second", "Steady/*", "req/s", ""},
	}},
	"expiry": {"256 callers across an expiry", []column{
		{"longest, ms", "Expiry/*", "max-ms", ""},
		{"p99.9, ms", "Expiry/*", "p99.9-ms", ""},
		{"p99.9 without an expiry, ms", "Expiry/*", "steady-p99.9-ms", ""},
		{"ratio", "Expiry/*", "p99.9-ratio", ""},
		{"failed, %", "Expiry/*", "failed-%", ""},
		{"exchanges", "Expiry/*", "exchanges", ""},
	}},
	"cancel": {"a deadline of 50 ms", []column{
		{"who began the exchange, ms", "Cancel/*", "leader-ms", ""},
		{"who waits for it, ms", "Cancel/*", "waiter-ms", ""},
	}},
	"revocation": {"revocation under 256 callers", []column{
		{"failed, %", "Revocation/*", "failed-%", ""},
		{"exchanges", "Revocation/*", "exchanges", ""},
		{"longest, ms", "Revocation/*", "max-ms", ""},
	}},
	"cap": {"40 clients, room for 30 tokens", []column{
		{"failed, %", "Cap30/*", "failed-%", ""},
		{"exchanges", "Cap30/*", "exchanges", ""},
	}},
	"short": {"tokens of 2 s, 64 callers", []column{
		{"requests a second", "ShortTokens/*", "req/s", ""},
		{"exchanges a second", "ShortTokens/*", "exchanges/s", ""},
		{"p99.9, ms", "ShortTokens/*", "p99.9-ms", ""},
		{"longest, ms", "ShortTokens/*", "max-ms", ""},
	}},
}

// results are the values by benchmark and unit, in the order in which benchmarks came.
type results struct {
	names  []string
	values map[[2]string][]float64
	cpu    string
}

func read(text string) results {
	r := results{values: map[[2]string][]float64{}}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == "cpu:" {
			r.cpu = strings.Join(f[1:], " ")
		}
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(f[0], "Benchmark")
		if !slices.Contains(r.names, name) {
			r.names = append(r.names, name)
		}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				k := [2]string{name, f[i+1]}
				r.values[k] = append(r.values[k], v)
			}
		}
	}
	return r
}

// contestants lists who took part in a benchmark.
func (r results) contestants(pattern string) (names []string) {
	before, after, _ := strings.Cut(pattern, "*")
	for _, n := range r.names {
		if rest, ok := strings.CutPrefix(n, before); ok {
			if rest, ok = strings.CutSuffix(rest, after); ok && !(after == "" && suffixed.MatchString(rest)) {
				names = append(names, rest)
			}
		}
	}
	return names
}

var suffixed = regexp.MustCompile(`-[0-9]+$`) // of another number of CPUs

// show is the median, with the spread if there is one.
func show(v []float64) string {
	if len(v) == 0 {
		return "–"
	}
	least, most := slices.Min(v), slices.Max(v)
	if least == most {
		return number(least)
	}
	return fmt.Sprintf("%s (%s–%s)", number(median(v)), number(least), number(most))
}

func number(v float64) string {
	switch {
	case v == float64(int64(v)) || v >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func (t table) markdown(r results) string {
	var b strings.Builder
	rule := "| --- |"
	fmt.Fprintf(&b, "| %s |", t.head)
	for _, c := range t.columns {
		fmt.Fprintf(&b, " %s |", c.head)
		rule += " ---: |"
	}
	b.WriteString("\n" + rule + "\n")
	for _, who := range r.contestants(t.columns[0].benchmark) {
		fmt.Fprintf(&b, "| %s |", who)
		for _, c := range t.columns {
			fmt.Fprintf(&b, " %s |", show(r.column(c, who)))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// column is a contestant's values, or the median of their ratios to another's, turn by turn.
func (r results) column(c column, who string) []float64 {
	value := func(who string) []float64 {
		return r.values[[2]string{strings.Replace(c.benchmark, "*", who, 1), c.unit}]
	}
	v := value(who)
	other := value(c.over)
	switch {
	case c.over == "" || len(v) == 0 || len(other) == 0:
		return v
	}
	ratios := make([]float64, min(len(v), len(other)))
	for i := range ratios {
		ratios[i] = v[i] / other[i]
	}
	return []float64{median(ratios)}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// machine says what the figures were taken on and of which versions.
func machine(r results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d CPUs, %s/%s, %s. Medians, with the least and the most in brackets.\n\n",
		cmp.Or(r.cpu, "unknown processor"), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	out, err := exec.Command("go", "list", "-m", "-f", "{{if not (or .Main .Indirect .Replace)}}{{.Path}} {{.Version}}{{end}}", "all").Output()
	must(err)
	b.WriteString("| peer | version |\n| --- | --- |\n")
	for line := range strings.Lines(string(out)) {
		if path, version, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			fmt.Fprintf(&b, "| %s | %s |\n", path, version)
		}
	}
	return b.String()
}

var mark = regexp.MustCompile(`(?s)(<!-- bench: ([a-z]+) -->\n).*?(<!-- end -->)`)

func main() {
	flag.Parse()
	var text bytes.Buffer
	for _, name := range flag.Args() {
		b, err := os.ReadFile(name)
		must(err)
		text.Write(b)
	}
	r := read(text.String())
	doc, err := os.ReadFile(*into)
	must(err)
	doc = mark.ReplaceAllFunc(doc, func(old []byte) []byte {
		m := mark.FindSubmatch(old)
		name, content := string(m[2]), ""
		if t, ok := tables[name]; ok {
			content = t.markdown(r)
		} else if name == "machine" {
			content = machine(r)
		} else {
			must(fmt.Errorf("%s: no table is called %s", *into, name))
		}
		return fmt.Appendf(nil, "%s\n%s\n%s", m[1], content, m[3])
	})
	must(os.WriteFile(*into, doc, 0o644))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
