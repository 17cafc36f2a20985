package main

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/itsmauth/itsmauth/config"
)

// TestProducts writes docs/products.md.
func TestProducts(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString(productsIntro)
	list := config.Presets()
	slices.SortFunc(list, func(a, b config.Preset) int {
		return strings.Compare(strings.ToLower(a.Product+a.Name), strings.ToLower(b.Product+b.Name))
	})
	for _, p := range list {
		fmt.Fprintf(&b, "| %s | [`%s`](#%[2]s) | `%s` | %s | %s |\n", p.Product, p.Name, p.Engine, p.Evidence, p.Read)
	}
	for _, p := range list {
		fmt.Fprintf(&b, "\n## %s\n\n%s, by [this page](%s) (%s).\n\n```yaml\nversion: 1\nconnectors:\n%s```\n", p.Name, p.Product, p.Page, p.Evidence, prefixed("  ", connectorOf(p)))
		for _, n := range p.Notes {
			b.WriteString("\n" + strings.Join(wrap(n, 117), "\n") + "\n")
		}
		for i, u := range p.Unverified {
			b.WriteString([]string{"\nNot verified:\n\n", ""}[min(i, 1)] + "- " + strings.Join(wrap(u, 115), "\n  ") + "\n")
		}
	}
	current(t, "../../docs/products.md", b.String())
}

const productsIntro = "# Products\n\n" +
	"To connect to one of these products, copy its block, or run `itsmauth init --provider NAME`. To see what a preset sets,\n" +
	"run `itsmauth providers NAME`. A connector may have every key of the [engine](yaml.md), `oauth2` or `static`, and its own\n" +
	"keys win.\n\n" +
	"[BeyondTrust](providers/beyondtrust.md), [Remedy](providers/remedy.md) and [WebCommander](providers/webcommander.md) are\n" +
	"not presets: they have code and tests of their own. For any other product, describe its\n" +
	"[token endpoint](providers/oauth2.md), or [the header with its key](providers/static.md).\n\n" +
	"A preset follows one page, which was read on the day in the table: the vendor's documentation, or the source of a working\n" +
	"client. Our tests have a server that behaves as the page says. Nobody tried the product itself.\n\n" +
	"| product | provider | engine | evidence | read |\n| --- | --- | --- | --- | --- |\n"

// What providers NAME prints is right below connectors:, for each provider and each way to authenticate.
func TestProvidersPrintConnectors(t *testing.T) {
	t.Parallel()
	for _, name := range providerNames() {
		code, stdout, stderr := itsmauth(t.Context(), "providers", name)
		if code != 0 || stderr != "" {
			t.Errorf("%s: exit %d, %s", name, code, stderr)
		}
		if err := parseExample(stdout); err != nil {
			t.Errorf("%v\n%s", err, stdout)
		}
		for line := range strings.Lines(stdout) {
			if n := len([]rune(line)); n > 81 && !strings.Contains(line, "://") && !strings.HasPrefix(line, "  #   ") {
				t.Errorf("%d columns: %s", n-1, line)
			}
		}
	}
	for _, p := range config.Presets() {
		for i, way := range p.Ways {
			p.Ways = p.Ways[:1:1]
			p.Ways[0] = way
			if err := parseExample(prefixed("  ", connectorOf(p))); err != nil {
				t.Errorf("way %d: %v\n%s", i, err, connectorOf(p))
			}
		}
	}
}

var aVariable = regexp.MustCompile(`\$\{env:([A-Z0-9_]+)\}`)

// parseExample parses an example of a connector, with its variables set. Its files need not be there.
func parseExample(connector string) error {
	text := aVariable.ReplaceAllString("version: 1\nconnectors:\n"+connector, "$${env:$1:-c2VjcmV0}")
	conns, err := config.Parse("example.yaml", []byte(text))
	var problems config.Problems
	if errors.As(err, &problems) && !slices.ContainsFunc(problems, func(p config.Problem) bool { return !errors.Is(p, fs.ErrNotExist) }) {
		return nil
	}
	if err == nil {
		err = conns.Close()
	}
	return err
}

func TestProvidersListed(t *testing.T) {
	t.Parallel()
	_, text, _ := itsmauth(t.Context(), "providers")
	_, list, _ := itsmauth(t.Context(), "--output", "json", "providers")
	for _, want := range []string{"\nservicenow                  oauth2  ServiceNow\n", "\noauth2       any other", "\nremedy       BMC"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, want := range []string{`"kind": "preset"`, `"engine": "oauth2"`, `products.md#servicenow"`, `"kind": "engine"`, `"kind": "product"`} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in\n%s", want, list)
		}
	}
	if code, _, stderr := itsmauth(t.Context(), "providers", "nosuch"); code != 2 || !strings.Contains(stderr, "itsmauth providers lists them") {
		t.Error(code, stderr)
	}
	_, names, _ := itsmauth(t.Context(), "__complete", "providers", "service")
	_, flag, _ := itsmauth(t.Context(), "__complete", "init", "--provider", "service")
	if !strings.Contains(names, "\nservicenow\n") || !strings.Contains(flag, "\nservicenow\n") {
		t.Errorf("completion: %s, %s", names, flag)
	}
	_, block, _ := itsmauth(t.Context(), "--output", "json", "providers", "servicenow")
	if !strings.Contains(block, `"about": "a user's name and password"`) {
		t.Error(block)
	}
}
