package config

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers"
)

// The type of a setting decides whether its value is shown, not its name.
func TestExcerpt(t *testing.T) {
	t.Parallel()
	type open struct {
		Count int           `yaml:"count"`
		Early time.Duration `yaml:"early"`
		Word  string        `yaml:"word" enum:"a,b"`
		Words []string      `yaml:"words" enum:"a,b"`
		Where *url.URL      `yaml:"where"`
		Limit int           `yaml:"timeout"`
		More  []int         `yaml:"params"`
	}
	type closed struct {
		Limit auth.Secret            `yaml:"timeout"`
		More  map[string]auth.Secret `yaml:"params"`
	}
	opts := []Option{
		WithProvider(providers.Define("open", func(open, auth.Env) (auth.Provider, error) { return nil, errors.New("no") })),
		WithProvider(providers.Define("closed", func(closed, auth.Env) (auth.Provider, error) { return nil, errors.New("no") })),
	}
	for _, tc := range slices.Repeat([]struct{ connector, want string }{
		{"provider: open, count: 1, early: 2s, word: a, words: [a, b], where: http://h", "provider: open, count: 1, early: 2s, word: a, words: [a, b], where: http://h"},
		// As long as one kind has a secret there, whatever the file says that the kind is.
		{"provider: open, timeout: 2, params: {a: b}, transport: {timeout: 3}", "provider: open, timeout: •••, params: {•••: •••, transport: {timeout: 3"},
		{"provider: closed, timeout: 2, params: [a], transport: {timeout: 3}", "provider: closed, timeout: •••, params: [•••, transport: {timeout: 3"},
		{"provider: neither, timeout: 2, transport: {timeout: 3}", "provider: neither, timeout: •••, transport: {timeout: 3"},
		// The unknown key that is the problem, and the same one elsewhere.
		{"transport: {odd: 1}, odd: 2", "transport: {odd: •••, •••: •••"},
		// A known key at another place.
		{"requests: 1, transport: {timeout: 3, count: 4}", "requests: •••, transport: {timeout: 3, count: •••"},
		{"count: {count: 1}, word: {word: a}", "count: {•••: •••, word: {•••: •••"},
		{"x: &count timeout, *count : 1, timout: 2", "•••: •••, •••, •••: •••"},
		{`"<<": {count: 1}, <<: {count: 2}`, `•••: •••: •••, <<: {count: 2`},
		{"<<: [{count: 1}], base_url: h", "<<: [{count: 1}], base_url: h"},
		{"count: !!int 1, early: 'a\tb', word: &a a, base_url: '${env:A}'", "count: •••, early: •••, word: •••, base_url: '${env:A}'"},
		{"provider: ten words, count: this is long, where: http://u:p@h", "provider: •••, count: •••, where: •••"},
	}, 8) { // kinds are looked at in random order
		data := []byte("version: 1\nconnectors:\n  a: {" + tc.connector + "}\n")
		_, err := Parse("t.yaml", data, opts...)
		var problems Problems
		if !errors.As(err, &problems) {
			t.Fatal(tc.connector, err)
		}
		got, caret, ok := problems[len(problems)-1].Excerpt(data, opts...)
		if diff := cmp.Diff("  a: {"+tc.want, got); diff != "" || !ok || caret < 0 || caret > len([]rune(got)) {
			t.Errorf("%s\n%s caret %d, %v", tc.connector, diff, caret, ok)
		}
	}
}

// The message ends with the advice.
func TestAdvice(t *testing.T) {
	t.Parallel()
	for lines, want := range map[string]string{
		"    sso_url: http://sso.example\n":             "use https, or set transport.allow_http: true",
		"    scops: [a]\n":                              "did you mean scopes?",
		"    redirect_uri: ${env:CFG_UNSET\n":           "write $${ for a literal ${",
		"    password: ${file:no; such file}\n":         "",
		"    level: ten\n":                              "",
		"    grant: code\n":                             "",
		"    extra: refused\n":                          "leave it out",
		"    debug: \"yes\"\n":                          "write true",
		"    extra: true\n":                             "put it in quotes",
		"    transport: {proxy_url: 'ftp://h'}\n":       "",
		"    extra: a: b\n":                             "check the indentation, or put the value in quotes",
		"  b: {provider: acmee, base_url: https://h}\n": "did you mean acme?",
	} {
		_, err := parse1(t, lines)
		var problems Problems
		if !errors.As(err, &problems) {
			t.Fatal(lines, err)
		}
		p := problems[len(problems)-1]
		if p.Advice() != want || want != "" && !strings.HasSuffix(p.Error(), "; "+want) {
			t.Errorf("%s advises %q, want %q", p.Error(), p.Advice(), want)
		}
	}
}
