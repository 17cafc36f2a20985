package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/config"
)

// beginnings are what a connector of each provider begins with: its usual name, then its keys, each
// with its default if it has one. Those that end in ! are secrets.
var beginnings = map[string][]string{
	"beyondtrust":  {"support", "base_url", "client_id", "client_secret!"},
	"oauth2":       {"api", "base_url", "token_url", "client_id", "client_secret!"},
	"remedy":       {"remedy", "base_url", "sso_url", "client_id", "client_secret!", "redirect_uri=http://127.0.0.1:8400/callback"},
	"webcommander": {"shop", "base_url", "client_id", "client_secret!", "redirect_uri=https://api.webcommander.com/oauth-callback", "username", "password!"},
}

// examples stand for what nobody said and nobody can be asked, by flag.
var examples = map[string]string{
	"provider": "beyondtrust", "base-url": "https://support.example.com", "client-id": "your-client-id",
	"token-url": "https://login.example.com/oauth2/token", "sso-url": "https://sso.example.com/rsso", "username": "your-username",
}

// initFlags are the flags that are a connector's.
var initFlags = []string{"base-url", "token-url", "sso-url", "client-id", "redirect-uri", "username"}

func (a *app) initialize() *cobra.Command {
	known := strings.Join(slices.Sorted(maps.Keys(beginnings)), ", ")
	force := false
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a configuration to begin with",
		Long: `Write a configuration of one connector, with comments, to the file that
--config names. What no flag says is asked for on a terminal, and elsewhere an
example to edit. Secrets are not: the file refers to environment variables.`,
		Example: `  itsmauth init
  itsmauth init --provider beyondtrust --base-url https://support.example.com --client-id sync`,
	}
	flags := cmd.Flags()
	flags.String("provider", "", known)
	flags.String("name", "", "the connector's `name` (default one that suits the product)")
	for _, name := range initFlags {
		flags.String(name, "", "the connector's "+strings.ReplaceAll(name, "-", "_"))
	}
	flags.BoolVar(&force, "force", false, "replace the file if there is one")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := os.Stat(a.path()); err == nil && !force {
			return usage(fmt.Errorf("%s is there already; --force replaces it, --config names another", a.path()))
		}
		lines := bufio.NewReader(a.stdin)
		in, ok := a.stdin.(io.Writer)
		asks := ok && isTerminal(in)
		return a.begin(func(flag, about, otherwise string) (value string, example bool, err error) {
			value, _ = flags.GetString(flag)
			for ; value == "" && err == nil && asks; value = cmp.Or(value, otherwise) {
				value, err = a.ask(cmd.Context(), lines, flag, about, otherwise)
			}
			value = cmp.Or(value, otherwise)
			if example = value == "" && !asks; example {
				value = examples[flag]
			}
			switch {
			case cmd.Context().Err() != nil:
				return "", false, errors.New("interrupted; nothing was written")
			case value == "":
				return "", false, usage(fmt.Errorf("--%s is missing: %s", flag, about))
			case strings.ContainsFunc(value, unicode.IsControl):
				return "", false, usage(fmt.Errorf("--%s must be text on one line", flag))
			}
			return value, example, nil
		}, flags.Changed, known)
	}
	return cmd
}

// ask asks on a terminal. Its error is the end of ctx or of the input.
func (a *app) ask(ctx context.Context, lines *bufio.Reader, flag, about, otherwise string) (string, error) {
	paint := painter(a.stderr)
	fmt.Fprintf(a.stderr, "%s\n%s", paint(dim, strings.Join(wrap(about, width), "\n")), paint(bold, flag))
	if otherwise != "" {
		fmt.Fprintf(a.stderr, " [%s]", otherwise)
	}
	fmt.Fprint(a.stderr, ": ")
	answer, err := await(ctx, func() (string, error) { return lines.ReadString('\n') })
	if ctx.Err() != nil {
		fmt.Fprintln(a.stderr)
	}
	return strings.TrimSpace(answer), err
}

func (a *app) begin(ask func(flag, about, otherwise string) (value string, example bool, err error), given func(flag string) bool, known string) error {
	provider, example, err := ask("provider", "The product: "+known+".", "")
	if err != nil {
		return err
	}
	keys := beginnings[provider]
	if keys == nil {
		return usage(fmt.Errorf("--provider must be one of %s", known))
	}
	for _, flag := range initFlags {
		if given(flag) && !slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, strings.ReplaceAll(flag, "-", "_")) }) {
			return usage(fmt.Errorf("--%s is not for provider %s", flag, provider))
		}
	}
	var edit []string
	if example {
		edit = append(edit, "provider")
	}
	name, _, err := ask("name", "What to call the connector.", keys[0])
	if err != nil {
		return err
	}
	about := descriptions(provider)
	text := "# yaml-language-server: $schema=https://raw.githubusercontent.com/itsmauth/itsmauth/main/docs/itsmauth.schema.json\n" +
		"# Every key: https://github.com/itsmauth/itsmauth/blob/main/docs/yaml.md\nversion: 1\n\n" +
		"# Tokens are kept in files that only this user can read, unless this names another place.\n" +
		"# token_store: {type: file, path: /var/lib/itsmauth}\n\nconnectors:\n  " + scalar(name) + ":\n    provider: " + provider + "\n"
	trial, exports := text, ""
	for _, key := range keys[1:] {
		key, otherwise, _ := strings.Cut(key, "=")
		key, secret := strings.CutSuffix(key, "!")
		value, tried := "", "c2VjcmV0"
		if secret {
			variable := "ITSM_" + strings.Trim(regexp.MustCompile(`[^A-Z0-9]+`).ReplaceAllString(strings.ToUpper(name+"_"+key), "_"), "_")
			value, exports = "${env:"+variable+"}", exports+"  export "+variable+"=...\n"
		} else if value, example, err = ask(strings.ReplaceAll(key, "_", "-"), about(key), otherwise); err != nil {
			return err
		} else if tried = value; example {
			edit = append(edit, key)
		}
		line := "    # " + strings.Join(wrap(about(key), width-6), "\n    # ") + "\n    " + key + ": "
		text, trial = text+line+scalar(value)+"\n", trial+line+scalar(tried)+"\n"
	}
	text += "    # A harmless path of the API, for itsmauth check --online.\n    # probe: /api/...\n"
	if conns, err := config.Parse(a.path(), []byte(trial)); err == nil {
		conns.Close()
	} else if problems := (config.Problems{}); errors.As(err, &problems) {
		var errs []error
		for _, p := range problems {
			flag := strings.ReplaceAll(p.Path[strings.LastIndex(p.Path, ".")+1:], "_", "-")
			if !slices.Contains(initFlags, flag) {
				flag = "name" // in which anything may be
			}
			errs = append(errs, fmt.Errorf("--%s %s", flag, p.Message))
		}
		return usage(errors.Join(errs...))
	}
	if err := os.WriteFile(a.path(), []byte(text), 0o600); err != nil {
		return err
	}
	next := "check"
	if provider == "remedy" {
		next = "login " + name
	}
	if a.file != "" {
		next = "--config " + a.file + " " + next
	}
	todo := ""
	if edit != nil {
		todo = "; edit " + strings.Join(edit, ", ") + ", which are examples"
	}
	_, err = fmt.Fprintf(a.stdout, "wrote %s%s; next:\n%s  itsmauth %s\n", a.path(), todo, exports, next)
	return err
}

// scalar is s in YAML.
func scalar(s string) string {
	b, _ := yaml.Marshal(s) // strings always marshal
	return strings.TrimSpace(string(b))
}

// descriptions give what the schema says of a key of a connector.
func descriptions(provider string) func(key string) string {
	b, _ := jsonSchema()
	var root any
	_ = json.Unmarshal(b, &root) // tests look at it; without it there are no comments
	of := dig(root, "properties", "connectors", "additionalProperties")
	common, own := dig(of, "properties"), any(nil)
	cases, _ := dig(of, "allOf").([]any)
	for _, c := range cases {
		if dig(c, "if", "properties", "provider", "const") == provider {
			own = dig(c, "then", "properties")
		}
	}
	return func(key string) string {
		text, ok := dig(own, key, "description").(string)
		if !ok {
			text, _ = dig(common, key, "description").(string)
		}
		return text
	}
}

func dig(n any, path ...string) any {
	for _, key := range path {
		m, _ := n.(map[string]any)
		n = m[key]
	}
	return n
}
