//go:build soak

package config

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

const linearConnector = "version: 1\nconnectors:\n  a:\n    provider: oauth2\n    base_url: https://h\n    token_url: https://h/t\n    client_id: a\n    client_secret: b\n"

// large are files with n things of one kind.
var large = map[string]func(n int) string{
	"static_headers": func(n int) string { return linearConnector + "    static_headers:\n" + repeat(n, "      X-%d: a\n") },
	"same headers": func(n int) string {
		return linearConnector + "    static_headers:\n" + repeat(n, "      X-%d: \"a\\nb\"\n")
	},
	"token_headers": func(n int) string {
		return linearConnector + "    token_headers:\n" + repeat(n, "      - {name: X-%d, template: '{access_token}'}\n")
	},
	"params": func(n int) string { return linearConnector + "    params:\n" + repeat(n, "      p%d: a\n") },
	"secret_params": func(n int) string {
		return linearConnector + "    secret_params:\n" + repeat(n, "      p%d: ${env:CFG_ID}\n")
	},
	"scopes": func(n int) string { return linearConnector + "    scopes:\n" + repeat(n, "      - s%d\n") },
	"rejected_when": func(n int) string {
		return linearConnector + "    rejected_when:\n" + repeat(n, "      - {status: 401, body_contains: a%d}\n")
	},
	"errors": func(n int) string {
		return linearConnector + "    response:\n      errors:\n" + repeat(n, "      - {status: 401, means: invalid_grant, equals: a%d, pointer: /a}\n")
	},
	"bad errors": func(n int) string {
		return linearConnector + "    response:\n      errors:\n" + repeat(n, "      - {status: %d0000, means: invalid_grant}\n")
	},
	"refresh.fields": func(n int) string {
		return linearConnector + "    refresh:\n      fields:\n" + repeat(n, "      - a%d\n")
	},
	"rate_limits": func(n int) string {
		return linearConnector + "    transport:\n      rate_limits:\n" + repeat(n, "      - {requests: %d1, per: 1s}\n")
	},
	"allowed_origins": func(n int) string {
		return linearConnector + "    transport:\n      allowed_origins:\n" + repeat(n, "      - https://h%d\n")
	},
	"plain origins": func(n int) string {
		return linearConnector + "    transport:\n      allowed_origins:\n" + repeat(n, "      - http://h%d\n")
	},
	"no_proxy": func(n int) string {
		return linearConnector + "    transport:\n      no_proxy: " + repeat(n, "h%d,") + "\n"
	},
	"unknown keys":     func(n int) string { return linearConnector + repeat(n, "    client_idd%d: a\n") },
	"unknown top keys": func(n int) string { return repeat(n, "connectorsx%d: a\n") },
	"unknown in flow":  func(n int) string { return "connectors: {a: {" + repeat(n, "k%d: a, ") + "}}\n" },
	"duplicate keys":   func(n int) string { return linearConnector + strings.Repeat("    client_id: a\n", n) },
	"x-":               func(n int) string { return linearConnector + repeat(n, "x-%d: {a: b}\n") },
	"anchors":          func(n int) string { return linearConnector + "x-a: &a0 a\n" + repeat(n, "x-%[1]d: &a%[1]d b\n") },
	"aliases": func(n int) string {
		return linearConnector + "    scopes: &s\n    - &a s\n" + strings.Repeat("    - *a\n", n)
	},
	"merges": func(n int) string {
		return linearConnector + "    <<: [&a {client_id: b}" + strings.Repeat(", *a", n) + "]\n"
	},
	"chain of merges": func(n int) string {
		return linearConnector + "x-0: &a0 {a: b}\n" + repeat(n/100, "x-%d: &a%[1]d {<<: *a0, k%[1]d: b}\n")
	},
	"connectors": func(n int) string {
		return "version: 1\nconnectors:\n" + repeat(n/6, "  c%[1]d: {provider: oauth2, base_url: 'https://h', token_url: 'https://h/t', client_id: a%[1]d, client_secret: b}\n")
	},
	"same connectors": func(n int) string {
		return "version: 1\nconnectors:\n" + repeat(n/6, "  c%[1]d: {provider: oauth2, base_url: 'https://h', token_url: 'https://h/t', client_id: a, client_secret: b}\n")
	},
	"other connectors": func(n int) string {
		return linearConnector + "    static_headers:\n" + repeat(n/2, "      X-%d: a\n") + repeat(n/12, "  c%[1]d: {provider: oauth2, base_url: 'https://h', token_url: 'https://h/t', client_id: a, client_secret: b}\n")
	},
	"empty connectors": func(n int) string { return "version: 1\nconnectors:\n" + repeat(n, "  c%d: {}\n") },
	"long name": func(n int) string {
		return "version: 1\nconnectors:\n  ? " + strings.Repeat("n", 10*n) + "\n  :\n    provider: oauth2\n    params:\n" + repeat(n, "      p%d: a\n")
	},
	"deep": func(n int) string {
		return linearConnector + "    params: " + strings.Repeat("{a: ", n) + strings.Repeat("}", n) + "\n"
	},
	"deep lists":     func(n int) string { return "x-a: " + strings.Repeat("[", n) + strings.Repeat("]", n) + "\n" },
	"deep, unclosed": func(n int) string { return "x-a: " + strings.Repeat("[", n) + "\n" },
	"deep and wide": func(n int) string {
		return "x-a: " + strings.Repeat("{a: ", min(n/4, 4900)) + "{" + repeat(n, "k%d: , ") + "}" + strings.Repeat("}", min(n/4, 4900)) + "\n"
	},
	"deep block": func(n int) string {
		d := min(n/20, 1300)
		var b strings.Builder
		for i := range d {
			fmt.Fprintf(&b, "%sa:\n", strings.Repeat(" ", i))
		}
		return b.String()
	},
	"dashes":      func(n int) string { return "x-a:\n" + strings.Repeat("- ", n) + "a\n" },
	"long scalar": func(n int) string { return linearConnector + "    username: " + strings.Repeat("abc ", 5*n) + "\n" },
	"long lines":  func(n int) string { return linearConnector + "    username: |\n" + strings.Repeat("      abc\n\n", n) },
	"folded": func(n int) string {
		return linearConnector + "    username: \"" + strings.Repeat("abc\n\n   ", n) + "\"\n"
	},
	"escapes": func(n int) string { return linearConnector + "    username: \"" + strings.Repeat(`\x41`, n) + "\"\n" },
	"long references": func(n int) string {
		return linearConnector + "    scopes:\n" + strings.Repeat("    - ${env:CFG_LONG}\n", n)
	},
	"references": func(n int) string {
		return linearConnector + "    username: \"" + strings.Repeat("${env:CFG_ID}", n) + "\"\n"
	},
	"nested refs": func(n int) string {
		return linearConnector + "    username: \"" + strings.Repeat("${env:A", n) + "\"\n"
	},
	"dollars": func(n int) string { return linearConnector + "    username: \"" + strings.Repeat("$${", 3*n) + "\"\n" },
	"files": func(n int) string {
		return linearConnector + "    secret_params:\n" + repeat(n, "      p%[1]d: ${file:no%[1]d}\n")
	},
	"comments":         func(n int) string { return linearConnector + strings.Repeat("# a\n", 5*n) },
	"line comments":    func(n int) string { return linearConnector + repeat(n, "x-%d: a # b\n") },
	"comments, broken": func(n int) string { return linearConnector + strings.Repeat("# a\n", 5*n) + "a: b: c\n" },
	"blank lines":      func(n int) string { return linearConnector + strings.Repeat("\n", 20*n) },
	"spaces":           func(n int) string { return linearConnector + strings.Repeat(" ", 20*n) + "\n" },
	"broken at end":    func(n int) string { return linearConnector + repeat(n, "x-%d: a\n") + "]\n" },
	"broken at once":   func(n int) string { return "]\n" + linearConnector + repeat(n, "x-%d: a\n") },
	"quote not closed": func(n int) string { return linearConnector + "x-a: '" + repeat(n, "x-%d: a\n") },
	"tags":             func(n int) string { return linearConnector + repeat(n, "x-%d: !a b\n") },
	"tag directives":   func(n int) string { return repeat(n, "%%TAG !%d! tag:a\n") + "---\n" + linearConnector },
	"documents":        func(n int) string { return linearConnector + strings.Repeat("---\na\n", n) },
	"question marks":   func(n int) string { return linearConnector + strings.Repeat("? a\n", n) },
	"long keys":        func(n int) string { return linearConnector + strings.Repeat("k", 10*n) + ": a\n" },
	"not UTF-8":        func(n int) string { return linearConnector + strings.Repeat("\xff\n", 10*n) },
	"flow line":        func(n int) string { return "{" + repeat(n, "k%d: a, ") + "}\n" },
	"base_url": func(n int) string {
		return strings.Replace(linearConnector, "https://h\n", "https://h"+strings.Repeat("/", 10*n)+"\n", 1)
	},
	"store keys": func(n int) string {
		return linearConnector + "token_store:\n  type: memory\n  encryption_keys:\n" + repeat(n, "  - AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%d=\n")
	},
}

func repeat(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// parseAndExplain does what check does with a file.
func parseAndExplain(data []byte) {
	conns, err := Parse("testdata/large.yaml", data)
	if err == nil {
		conns.Close()
		return
	}
	for _, p := range err.(Problems) {
		p.Excerpt(data)
	}
}

// A file with twice as many things takes at most twice the allocations, and the memory for these.
func TestSoakAllocationsAreLinear(t *testing.T) {
	t.Setenv("CFG_LONG", strings.Repeat("a", 100_000))

	for kind, file := range large {
		var count, size [2]float64
		for i, n := range []int{400, 800} {
			data := []byte(file(n))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			parseAndExplain(data)
			runtime.ReadMemStats(&after)
			count[i], size[i] = float64(after.Mallocs-before.Mallocs), float64(after.TotalAlloc-before.TotalAlloc)
		}
		if count[1] > 2.7*count[0]+50_000 || size[1] > 2.7*size[0]+10<<20 {
			t.Errorf("%s: %.0f and %.0f allocations of %.0f and %.0f bytes", kind, count[0], count[1], size[0], size[1])
		}
	}
}

// A small file does not take all memory by naming a large variable many times, in many values or in one.
func TestSoakReferencesGiveTooMuch(t *testing.T) {
	t.Setenv("CFG_LONG", strings.Repeat("a", 100_000))
	for _, file := range []string{
		large["long references"](1000),
		linearConnector + "    username: " + strings.Repeat("${env:CFG_LONG}", 1000) + "\n",
		linearConnector + "    password: " + strings.Repeat("${env:CFG_LONG}", 1000) + "\n",
	} {
		_, err := Parse("t.yaml", []byte(file))
		if err == nil || !strings.Contains(err.Error(), "the references of this file give more than 64 MiB") {
			t.Errorf("%.200v", err)
		}
	}
}
