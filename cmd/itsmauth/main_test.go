package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/itsmauth/itsmauth/providers"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0") // otherwise each process takes a second longer
	testscript.Main(m, map[string]func(){"itsmauth": main})
}

var secrets = []string{
	beyondtrusttest.DefaultClientSecret,
	remedytest.DefaultClientSecret, remedytest.DefaultPassword,
	webcommandertest.DefaultClientSecret, webcommandertest.DefaultPassword,
}

// checkOutput fails if output shows a secret or has colours.
func checkOutput(t interface{ Fatalf(string, ...any) }, output string) {
	for _, s := range secrets {
		if strings.Contains(output, s) {
			t.Fatalf("the output shows a secret:\n%s", output)
		}
	}
	if strings.Contains(output, "\x1b") {
		t.Fatalf("the output is coloured:\n%q", output)
	}
}

// products are the emulated products of one test, by connector.
type products map[string]*product

// start starts all emulators and writes their configuration to dir/itsmauth.yaml.
func start(dir string) (products, error) {
	redirectURI, err := freeRedirectURI()
	if err != nil {
		return nil, err
	}
	p := products{}
	var list []*product
	for _, e := range emulators {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		started := e.start(l, redirectURI)
		p[started.connector] = started
		list = append(list, started)
	}
	return p, os.WriteFile(filepath.Join(dir, "itsmauth.yaml"), []byte(yamlFor(list)), 0o600)
}

func (p products) close() {
	for _, product := range p {
		product.Close()
	}
}

// Commands of the scripts:
//
//	emulators                       start all emulators and write itsmauth.yaml
//	run CODE ARG...                 run itsmauth; it must exit with CODE and show no secret
//	json VALUE                      stdout of the last run must be VALUE; "*" is any text
//	lines N                         stderr of the last run must have N lines
//	desk                            start a product that takes hunter2, as X-Api-Key or the password of me, and set $DESK
//	exchanges CONNECTOR N           the emulator must have counted N exchanges
//	requested CONNECTOR PATH        the last request to the emulator must have this path and query, on the wire
//	revoke CONNECTOR                make all access tokens invalid
//	down CONNECTOR                  let the product respond with 503 from now on
//	edit FROM TO OLD NEW            copy a file, replacing a regular expression
//	damage DIR                      overwrite every record with garbage
//	person allow|deny CODE ARG...   as run; open the URL on the first line of stdout
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
			env.Setenv("GORACE", os.Getenv("GORACE"))
			env.Values["products"] = products{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"emulators": func(ts *testscript.TestScript, _ bool, _ []string) {
				p, err := start(ts.MkAbs("."))
				ts.Check(err)
				for name, product := range p {
					ts.Value("products").(products)[name] = product
				}
				ts.Defer(p.close)
			},
			"run": func(ts *testscript.TestScript, _ bool, args []string) {
				exits(ts, args[0], ts.Exec("itsmauth", args[1:]...))
				checkOutput(ts, ts.ReadFile("stdout")+ts.ReadFile("stderr"))
			},
			"json": func(ts *testscript.TestScript, _ bool, args []string) {
				var got, want any
				ts.Check(json.Unmarshal([]byte(args[0]), &want))
				ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &got))
				anyText := cmp.FilterValues(func(x, y any) bool { return x == "*" || y == "*" },
					cmp.Comparer(func(x, y any) bool {
						a, _ := x.(string)
						b, _ := y.(string)
						return a != "" && b != ""
					}))
				if diff := cmp.Diff(want, got, anyText); diff != "" {
					ts.Fatalf("want -, got +\n%s", diff)
				}
			},
			"lines": func(ts *testscript.TestScript, _ bool, args []string) {
				if n := strings.Count(ts.ReadFile("stderr"), "\n"); strconv.Itoa(n) != args[0] {
					ts.Fatalf("%d lines, not %s", n, args[0])
				}
			},
			"desk": func(ts *testscript.TestScript, _ bool, _ []string) {
				s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					user, password, _ := r.BasicAuth()
					if user+":"+password != "me:hunter2" && r.Header.Get("X-Api-Key") != "hunter2" {
						w.WriteHeader(http.StatusUnauthorized)
					}
				}))
				ts.Defer(s.Close)
				ts.Setenv("DESK", s.URL)
			},
			"exchanges": func(ts *testscript.TestScript, _ bool, args []string) {
				if n := ts.Value("products").(products)[args[0]].Stats().Exchanges; strconv.Itoa(n) != args[1] {
					ts.Fatalf("%d exchanges, not %s", n, args[1])
				}
			},
			"requested": func(ts *testscript.TestScript, _ bool, args []string) {
				list := ts.Value("products").(products)[args[0]].Requests()
				line, _, _ := strings.Cut(string(list[len(list)-1].Wire), "\r\n")
				if got := strings.Fields(line)[1]; got != args[1] {
					ts.Fatalf("%s, not %s", got, args[1])
				}
			},
			"revoke": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Value("products").(products)[args[0]].revokeAll()
			},
			"down": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Value("products").(products)[args[0]].Break(func(w http.ResponseWriter, _ *http.Request) bool {
					w.WriteHeader(http.StatusServiceUnavailable)
					return true
				})
			},
			"edit": func(ts *testscript.TestScript, _ bool, args []string) {
				text := regexp.MustCompile("(?m)"+args[2]).ReplaceAllLiteralString(ts.ReadFile(args[0]), strings.ReplaceAll(args[3], `\n`, "\n"))
				ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
			},
			"damage": func(ts *testscript.TestScript, _ bool, args []string) {
				records, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*.json"))
				ts.Check(err)
				if len(records) == 0 {
					ts.Fatalf("there are none")
				}
				for _, r := range records {
					ts.Check(os.WriteFile(r, []byte("x"), 0o600))
				}
			},
			"person": func(ts *testscript.TestScript, _ bool, args []string) {
				cmd := exec.Command("itsmauth", args[2:]...)
				cmd.Dir = ts.MkAbs(".")
				cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+ts.Getenv("XDG_STATE_HOME"))
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				stdout, err := cmd.StdoutPipe()
				ts.Check(err)
				ts.Check(cmd.Start())
				out := bufio.NewReader(stdout)
				line, err := out.ReadString('\n')
				ts.Check(err)
				decide := ts.Value("products").(products)["remedy"].consent
				if args[0] == "deny" {
					decide = ts.Value("products").(products)["remedy"].deny
				}
				back, err := decide(strings.TrimSpace(line))
				ts.Check(err)
				resp, err := http.Get(back.String())
				ts.Check(err)
				resp.Body.Close()
				rest, err := io.ReadAll(out)
				ts.Check(err)
				exits(ts, args[1], cmd.Wait())
				checkOutput(ts, line+string(rest)+stderr.String())
				ts.Logf("%s%s", rest, &stderr)
			},
		},
	})
}

func exits(ts *testscript.TestScript, want string, err error) {
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != want {
		ts.Fatalf("exit code %d, not %s", code, want)
	}
}

// itsmauth runs the command line in this process.
func itsmauth(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(ctx, args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// withStore adds a token store to the configuration in dir.
func withStore(t *testing.T, dir string) (file string) {
	t.Helper()
	return withStoreAt(t, dir, filepath.Join(dir, "store"))
}

func withStoreAt(t *testing.T, dir, path string) (file string) {
	t.Helper()
	return withStoreBlock(t, dir, fmt.Sprintf("{type: file, path: %q}", path))
}

func withStoreBlock(t *testing.T, dir, block string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "itsmauth.yaml")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data = fmt.Appendf(data, "token_store: %s\n", block)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// The command is interrupted while the token endpoint handles the request.
func TestInterruptedExchangeIsSaved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	file := withStore(t, dir)

	ctx, interrupt := context.WithCancel(t.Context())
	p["support"].Break(func(http.ResponseWriter, *http.Request) bool {
		interrupt()
		return false
	})
	code, stdout, stderr := itsmauth(ctx, "--config", file, "token", "support")
	if code != 1 || stdout != "" || !strings.Contains(stderr, "support: token: context canceled") {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	if s := statusOf(t, file, "support"); s.State != "fresh" {
		t.Errorf("%+v", s)
	}
}

// statusOf returns one entry of the output of status.
func statusOf(t *testing.T, file, connector string) connectorStatus {
	t.Helper()
	_, stdout, _ := itsmauth(t.Context(), "--config", file, "--output", "json", "status")
	var list []connectorStatus
	if err := json.Unmarshal([]byte(stdout), &list); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(s connectorStatus) bool { return s.Connector == connector })
	return list[i]
}

// After a signal, or two at once, the command waits for the token request and says so. Another signal
// kills the process.
func TestSignals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		again bool
		state string // afterwards
	}{"one": {false, "fresh"}, "another": {true, "none"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			p, err := start(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			file := withStore(t, dir)
			asked, answered := make(chan struct{}), make(chan struct{})
			var once sync.Once
			p["support"].Break(func(http.ResponseWriter, *http.Request) bool {
				once.Do(func() { close(asked) })
				<-answered
				return false
			})
			cmd := exec.Command("itsmauth", "--config", file, "token", "support")
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-asked
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Process.Signal(syscall.SIGTERM)
			lines := bufio.NewReader(stderr)
			if line, err := lines.ReadString('\n'); !strings.HasPrefix(line, "itsmauth: finishing a token request; ") {
				t.Errorf("%v: %q", err, line)
			}
			if test.again {
				cmd.Process.Signal(syscall.SIGTERM)
				cmd.Wait()
			}
			close(answered)
			lines.ReadString(0)
			cmd.Wait()
			if exited := cmd.ProcessState.ExitCode() == 1; exited == test.again {
				t.Errorf("%v", cmd.ProcessState)
			}
			if state := statusOf(t, file, "support").State; string(state) != test.state {
				t.Errorf("the store has %q", state)
			}
		})
	}
}

// waiting is an input without data. It is closed when it is read.
type waiting chan struct{}

func (w waiting) Read([]byte) (int, error) {
	close(w)
	select {}
}

func TestInterruptedInput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	file := withStore(t, dir)
	ctx, interrupt := context.WithCancel(t.Context())
	stdin := make(waiting)
	go func() { <-stdin; interrupt() }()
	var stdout, stderr bytes.Buffer
	if code := run(ctx, []string{"--config", file, "call", "support", "/api", "-d", "@-"}, stdin, &stdout, &stderr); code != 1 || stderr.String() != "itsmauth: support: context canceled\n" {
		t.Errorf("exit %d, %s", code, &stderr)
	}
}

// The configuration is a pipe without a writer.
func TestInterruptedConfiguration(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "fifo")
	if out, err := exec.Command("mkfifo", file).CombinedOutput(); err != nil {
		t.Skipf("%v: %s", err, out)
	}
	ctx, interrupt := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer interrupt()
	if code, _, stderr := itsmauth(ctx, "--config", file, "token", "support"); code != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

// An error of net/http contains the URL.
func TestCallShowsNoQuery(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	file := withStore(t, dir)
	p["shop"].Break(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			http.Redirect(w, r, "/api?signature=x", http.StatusFound)
		}
		return r.Method == http.MethodGet
	})
	code, stdout, stderr := itsmauth(t.Context(), "--config", file, "call", "shop", "/api")
	if code != 1 || stdout != "" || !strings.Contains(stderr, "redirects") || strings.Contains(stderr, "signature") {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}

// A broken pipe of stdout needs no message. One of the network does: the server closed the connection.
func TestReportsBrokenConnection(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want string
	}{
		{&fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}, ""},
		{&net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}, "itsmauth: api: write tcp: write: broken pipe\n"},
	} {
		var stderr strings.Builder
		(&app{stderr: &stderr}).report(fmt.Errorf("api: %w", test.err))
		if stderr.String() != test.want {
			t.Errorf("%v: %q", test.err, &stderr)
		}
	}
}

// If stdout is closed, the command fails. It is not killed by a signal.
func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd := exec.Command("itsmauth", "keygen")
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	err = cmd.Run()
	w.Close()
	if cmd.ProcessState.ExitCode() != 1 || stderr.Len() > 0 {
		t.Errorf("%v: %s", err, &stderr)
	}
}

// If the URL cannot be printed, login fails at once.
func TestLoginWithoutReader(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"--config", withStore(t, dir), "login", "remedy", "--no-browser", "--timeout", "5s"}, nil, full{}, &stderr)
	if code != 1 || stderr.String() != "itsmauth: remedy: login: no space left on device\n" {
		t.Errorf("exit %d, %s", code, &stderr)
	}
}

// full is a writer on a full disk.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestDemo(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := itsmauth(t.Context(), "demo")
	if code != 0 || stderr != "" {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	checkOutput(t, stdout)
	for _, want := range []string{
		"POST /oauth2/token  200\n      Authorization: Basic c3Vw…\n",
		"GET /api/config/v1/jump-item  200\n      Authorization: Bearer ",
		"GET /api/config/v1/jump-item  401\n    POST /oauth2/token  200\n    GET /api/config/v1/jump-item  200\n",
		"      client_id=itsm… client_secret=c0rr… code=",
		"GET /api/arsys/v1/entry/HPD:IncidentInterface  401\n    POST /rsso/oauth2/token  200\n",
		"POST /api/v4/oauth2/token  201\n      Connection: close\n      Content-Type: application/json\n",
		"  200\n      access_token: ",
		"support    2      0       1              2\n",
		"remedy     2      0       1              2\n",
		"shop       65     0       1              2\n",
		"itsmauth emulate > itsmauth.yaml &",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	for line := range strings.Lines(stdout) {
		if n := len([]rune(line)); n > 81 {
			t.Errorf("%d columns: %s", n-1, line)
		}
	}
}

func TestProvidersAreDescribed(t *testing.T) {
	t.Parallel()
	for _, d := range providers.All() {
		if d.Preset() != nil {
			continue // it describes itself
		}
		about, ok := described[d.Name()]
		if !ok {
			t.Errorf("%s is not described", d.Name())
			continue
		}
		if name, ok := strings.CutPrefix(about[1], pages); ok {
			if _, err := os.Stat(filepath.Join("../../docs", name)); err != nil {
				t.Error(err)
			}
		}
	}
}
