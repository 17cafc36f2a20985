package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/config"
)

// A setting is one that init writes.
type setting struct {
	key         string
	value       string // the default
	placeholder string // written if there is no value and no terminal
	secret      bool   // written as a reference to an environment variable
	reference   string // the one to write, if it is secret, or ""
	literal     string // written as it is: the key with a list or a mapping
}

func (s setting) flag() string { return strings.ReplaceAll(s.key, "_", "-") }

func hasKey(settings []setting, key string) bool {
	return slices.ContainsFunc(settings, func(s setting) bool { return s.key == key })
}

var (
	baseURL      = setting{key: "base_url", placeholder: "https://support.example.com"}
	tokenURL     = setting{key: "token_url", placeholder: "https://login.example.com/oauth2/token"}
	ssoURL       = setting{key: "sso_url", placeholder: "https://sso.example.com/rsso"}
	clientID     = setting{key: "client_id", placeholder: "your-client-id"}
	clientSecret = setting{key: "client_secret", secret: true}
	redirectURI  = setting{key: "redirect_uri"}
	username     = setting{key: "username", placeholder: "your-username"}
	password     = setting{key: "password", secret: true}

	settingsWithFlag = []setting{baseURL, tokenURL, ssoURL, clientID, redirectURI, username}
)

// A firstConnector is what init writes.
type firstConnector struct {
	name     string
	settings []setting
	more     string // further lines
}

// starters are the first connectors of the providers that are not presets.
var starters = map[string]firstConnector{
	"beyondtrust": {"support", []setting{baseURL, clientID, clientSecret}, ""},
	"oauth2":      {"api", []setting{baseURL, tokenURL, clientID, clientSecret}, ""},
	"remedy": {"remedy", []setting{baseURL, ssoURL, clientID, clientSecret,
		{key: "redirect_uri", value: "http://127.0.0.1:8400/callback"}}, ""},
	"static": {"desk", []setting{baseURL, username, password}, `    # Or, in place of username and password, a key in a header of your own:
    # headers: {X-API-Key: "${env:ITSM_KEY}"}
`},
	"webcommander": {"shop", []setting{baseURL, clientID, clientSecret,
		{key: "redirect_uri", value: "https://api.webcommander.com/oauth-callback"}, username, password}, ""},
}

// firstOf is the first connector of a provider.
func firstOf(provider string) (first firstConnector, ok bool) {
	p, ok := presetOf(provider)
	if !ok {
		first, ok = starters[provider]
		return first, ok
	}
	first.name = provider
	for _, k := range slices.Concat(p.Keys, p.Usual().Keys) {
		var value map[string]any
		_ = yaml.Unmarshal([]byte(k.Example), &value) // it was made by package config
		text, isText := value[k.Key].(string)
		switch {
		case !isText:
			first.settings = append(first.settings, setting{key: k.Key, literal: k.Example})
		case strings.Contains(text, "${"):
			first.settings = append(first.settings, setting{key: k.Key, secret: true, reference: text})
		case k.Key == redirectURI.key:
			first.settings = append(first.settings, setting{key: k.Key, value: text})
		default:
			first.settings = append(first.settings, setting{key: k.Key, placeholder: text})
		}
	}
	return first, true
}

var (
	notInVariable   = regexp.MustCompile(`[^A-Z0-9]+`)
	secretReference = regexp.MustCompile(`\$\{env:([A-Z0-9_]+)\}`)
)

func (a *app) init() *cobra.Command {
	providers := strings.Join(providerNames(), ", ")
	force := false
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a configuration to begin with",
		Long: `Write a configuration of one connector, with comments, to the file that
--config names. Missing values are prompted for; without a terminal, placeholders
are written. For secrets, the file refers to environment variables.`,
		Example: `  itsmauth init
  itsmauth init --provider beyondtrust --base-url https://support.example.com --client-id sync`,
	}
	flags := cmd.Flags()
	flags.String("provider", "", "the product's `name`, as itsmauth providers lists it")
	_ = cmd.RegisterFlagCompletionFunc("provider", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return providerNames(), cobra.ShellCompDirectiveNoFileComp
	}) // there is this flag
	flags.String("name", "", "the connector's `name` (default depends on the provider)")
	for _, s := range settingsWithFlag {
		flags.String(s.flag(), "", "the connector's "+s.key)
	}
	flags.BoolVar(&force, "force", false, "replace an existing file")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := os.Lstat(a.path()); err == nil && !force {
			return a.exists()
		}
		st := &starter{app: a, cmd: cmd, stdin: bufio.NewReader(a.stdin), prompts: isTerminal(a.stdin), force: force}
		return st.write(providers)
	}
	return cmd
}

func (a *app) exists() error {
	return usage(fmt.Errorf("%s exists already; --force replaces it, --config names another", a.path()))
}

// create writes the file. Without --force it follows no symbolic link, which another user may have put there.
func (st *starter) create(text string) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if st.force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	_, err := await(st.cmd.Context(), func() (any, error) { // a named pipe may never be opened
		f, err := os.OpenFile(st.path(), flags, 0o600)
		if err != nil {
			return nil, err
		}
		_, err = f.WriteString(text)
		return nil, errors.Join(err, f.Close())
	})
	return err
}

// A starter writes the configuration from flags, answers to prompts, defaults and placeholders.
type starter struct {
	*app
	cmd          *cobra.Command
	stdin        *bufio.Reader
	prompts      bool
	force        bool     // replace an existing file
	placeholders []string // keys that have one
}

// value returns the value of s. about describes it in the prompt.
func (st *starter) value(s setting, about string) (string, error) {
	value, _ := st.cmd.Flags().GetString(s.flag())
	var err error
	for value == "" && err == nil && st.prompts {
		value, err = st.prompt(s, about)
		value = cmp.Or(value, s.value)
	}
	value = cmp.Or(value, s.value)
	if value == "" && !st.prompts {
		value = s.placeholder
		st.placeholders = append(st.placeholders, s.key)
	}
	switch {
	case st.cmd.Context().Err() != nil:
		return "", errors.New("interrupted; nothing was written")
	case value == "":
		return "", usage(fmt.Errorf("--%s is missing: %s", s.flag(), about))
	case strings.ContainsFunc(value, unicode.IsControl):
		return "", usage(fmt.Errorf("--%s must be text on one line", s.flag()))
	}
	return value, nil
}

// prompt reads a value from the terminal. Its error is ctx's, or the end of the input.
func (st *starter) prompt(s setting, about string) (string, error) {
	paint := painter(st.stderr)
	fmt.Fprintf(st.stderr, "%s\n%s", paint(dim, strings.Join(wrap(about, width), "\n")), paint(bold, s.flag()))
	if s.value != "" {
		fmt.Fprintf(st.stderr, " [%s]", s.value)
	}
	fmt.Fprint(st.stderr, ": ")
	line, err := await(st.cmd.Context(), func() (string, error) { return st.stdin.ReadString('\n') })
	if err != nil {
		fmt.Fprintln(st.stderr)
	}
	return strings.TrimSpace(line), err
}

func (st *starter) write(providers string) error {
	provider, err := st.value(setting{key: "provider", placeholder: "beyondtrust"}, "The product: "+providers+".")
	if err != nil {
		return err
	}
	connector, ok := firstOf(provider)
	if !ok {
		return usage(fmt.Errorf("--provider must be one of %s", providers))
	}
	for _, s := range settingsWithFlag {
		if st.cmd.Flags().Changed(s.flag()) && !hasKey(connector.settings, s.key) {
			return usage(fmt.Errorf("--%s is not for provider %s", s.flag(), provider))
		}
	}
	name, err := st.value(setting{key: "name", value: connector.name}, "The name of the connector.")
	if err != nil {
		return err
	}
	describe := descriptions(provider)
	text := "# yaml-language-server: $schema=https://raw.githubusercontent.com/itsmauth/itsmauth/main/docs/itsmauth.schema.json\n" +
		"# Every key: https://github.com/itsmauth/itsmauth/blob/main/docs/yaml.md\nversion: 1\n\n" +
		storeAfterCheck + "\nconnectors:\n  " + scalar(name) + ":\n    provider: " + provider + "\n"
	exports := ""
	for _, s := range connector.settings {
		var value string
		about := "    # " + strings.Join(wrap(describe(s.key), width-6), "\n    # ") + "\n"
		if s.literal != "" {
			text += about + prefixed("    ", s.literal)
			continue
		}
		if s.secret {
			value = cmp.Or(s.reference, "${env:"+variableOf(name, s.key)+"}")
			for _, ref := range secretReference.FindAllStringSubmatch(value, -1) {
				exports += "  export " + ref[1] + "=...\n"
			}
		} else if value, err = st.value(s, describe(s.key)); err != nil {
			return err
		}
		text += about + "    " + s.key + ": " + scalar(value) + "\n"
	}
	if p, ok := presetOf(provider); ok {
		text += prefixed("    ", otherKeys(p))
	} else {
		text += connector.more + "    # A harmless path of the API, for itsmauth check --online:\n    # probe: /api/...\n"
	}
	needsLogin, err := checkFlags(st.path(), secretReference.ReplaceAllLiteralString(text, "c2VjcmV0"), connector.settings)
	if err != nil {
		return err
	}
	if err := st.create(strings.Replace(text, storeAfterCheck, tokenStore(needsLogin), 1)); errors.Is(err, fs.ErrExist) {
		return st.exists()
	} else if err != nil {
		return err
	}
	next := "check"
	if needsLogin {
		next = "login " + name
	}
	if st.file != "" {
		next = "--config " + st.file + " " + next
	}
	edit := ""
	if st.placeholders != nil {
		edit = "; edit " + strings.Join(st.placeholders, ", ") + ", which are examples"
	}
	_, err = fmt.Fprintf(st.stdout, "wrote %s%s; next:\n%s  itsmauth %s\n", st.path(), edit, exports, next)
	return err
}

// storeAfterCheck is where the token store is written: checking one would make its directory.
const storeAfterCheck = "# token_store\n"

// tokenStore is the token store to write.
func tokenStore(needsLogin bool) string {
	path := cmp.Or(defaultPath(), "/var/lib/itsmauth")
	home, err := os.UserHomeDir()
	if below, ok := strings.CutPrefix(path, home+string(os.PathSeparator)); ok && err == nil {
		path = "~/" + below
	}
	store := "token_store: {type: file, path: " + scalar(path) + "}\n"
	if needsLogin {
		return "# The login is kept here. A service finds it if it uses this file; without token_store, a service uses memory.\n" + store
	}
	return "# By default, the command line keeps tokens in files, and a service in memory. To keep both in files:\n# " + store
}

// variableOf is the environment variable for the secret key of the connector name.
func variableOf(name, key string) string {
	return "ITSM_" + strings.Trim(notInVariable.ReplaceAllString(strings.ToUpper(name+"_"+key), "_"), "_")
}

// checkFlags validates a configuration, and reports whether somebody must log in. Its errors name the flags whose
// values are wrong.
func checkFlags(path, text string, settings []setting) (needsLogin bool, err error) {
	conns, err := config.Parse(path, []byte(text))
	if err == nil {
		for _, conn := range all(conns) {
			needsLogin = conn.Session().CodeFlow() != nil
		}
		return needsLogin, conns.Close()
	}
	var problems config.Problems
	errors.As(err, &problems)
	var errs []error
	for _, p := range problems {
		if errors.Is(p, fs.ErrNotExist) {
			continue // the example of a preset refers to a file
		}
		key := p.Path[strings.LastIndex(p.Path, ".")+1:]
		if !hasKey(settings, key) {
			key = "name" // it may contain dots
		}
		errs = append(errs, fmt.Errorf("--%s %s", setting{key: key}.flag(), p.Message))
	}
	if errs == nil {
		return false, nil
	}
	return false, usage(errors.Join(errs...))
}

// scalar returns s as a YAML scalar.
func scalar(s string) string {
	b, _ := yaml.Marshal(s) // a string always marshals
	return strings.TrimSpace(string(b))
}

// descriptions returns a function that describes a connector's key with the text of the schema.
func descriptions(provider string) func(key string) string {
	b, _ := jsonSchema()
	var root any
	_ = json.Unmarshal(b, &root) // without a schema, the comments are empty
	connector := dig(root, "properties", "connectors", "additionalProperties")
	common, own := dig(connector, "properties"), any(nil)
	cases, _ := dig(connector, "allOf").([]any)
	for _, c := range cases {
		if names, _ := dig(c, "if", "properties", "provider", "enum").([]any); slices.Contains(names, any(provider)) && dig(c, "then") != nil {
			own = dig(c, "then", "properties")
		}
	}
	return func(key string) string {
		n := dig(own, key)
		if ref, ok := dig(n, "$ref").(string); ok && dig(n, "description") == nil {
			n = dig(root, strings.Split(ref, "/")[1:]...)
		}
		text, ok := dig(n, "description").(string)
		if !ok {
			text, _ = dig(common, key, "description").(string)
		}
		return text
	}
}

// dig returns the value at a path of keys, or nil.
func dig(n any, path ...string) any {
	for _, key := range path {
		m, _ := n.(map[string]any)
		n = m[key]
	}
	return n
}
