// Command itsmauth is the command line of the library: it checks a configuration, prints tokens,
// makes calls, and logs people in. Run itsmauth help, or itsmauth demo for a tour.
//
// It exits with 0 when done, 1 when something failed, 2 for wrong usage or configuration, 3 when a
// person has to log in first, and 4 when the product refused the credentials.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
)

func main() {
	// A signal, or a reader of our output that leaves, ends the work and not the process, which
	// may be about to save a refresh token.
	unheard := make(chan os.Signal, 1)
	signal.Notify(unheard, syscall.SIGPIPE)
	log.SetOutput(io.Discard) // net/http's, which shows what servers send unasked
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		ends = append(ends, syscall.SIGHUP)
		signal.Notify(unheard, syscall.SIGHUP) // also the second: a terminal that goes away sends several
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	// The next one ends the process, but not if it comes with the first: timeout(1) sends two.
	context.AfterFunc(ctx, func() { time.AfterFunc(grace, stop) })
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// grace is how long after a signal another one is taken for the same.
const grace = 250 * time.Millisecond

// run is the whole program but for the process around it. It returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	err := a.execute(ctx, args)
	a.report(err)
	return exitCode(err)
}

// app is what the verbs share: where they read and write, and the flags of the root.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	file    string
	output  string
	verbose bool

	unwritten error // of printf
}

func (a *app) execute(ctx context.Context, args []string) error {
	understood := false
	root := &cobra.Command{
		Use:   "itsmauth",
		Short: "One authenticated HTTP client per ITSM product, from one YAML file",
		Long: `One authenticated HTTP client per ITSM product, from one YAML file.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 a person has to
log in first, 4 the product refused the credentials.`,
		Example: `  itsmauth demo                         a tour, with nothing to set up
  itsmauth check                        is ./itsmauth.yaml right?
  itsmauth token support                a valid token and nothing else
  itsmauth call support /api/command?action=get_api_info`,
		Version:       thisBuild().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return errors.New("--output must be text or json")
			}
			understood = true
			return nil
		},
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	flags := root.PersistentFlags()
	flags.StringVar(&a.file, "config", "", "`FILE` to read (default $ITSMAUTH_CONFIG or ./itsmauth.yaml)")
	flags.StringVar(&a.output, "output", "text", "`FORMAT`: text or json; of check, token, status, providers and version")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "log attempts and exchanges to stderr")
	root.AddCommand(
		a.check(), a.token(), a.call(), a.login(), a.logout(), a.status(), a.serve(),
		a.emulate(), a.demo(), a.keygen(), a.providers(), a.version(),
		a.initialize(), a.schema(),
	)
	for _, c := range root.Commands() {
		if c.Args == nil {
			c.Args, c.ValidArgsFunction = cobra.NoArgs, cobra.NoFileCompletions
		}
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	for _, c := range root.Commands() {
		switch c.Name() {
		case "completion":
			c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		case "help":
			c.Args = func(_ *cobra.Command, args []string) error {
				if _, rest, _ := root.Find(args); len(rest) > 0 {
					return fmt.Errorf("unknown command %q", rest[0])
				}
				return nil
			}
		}
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !understood {
		message, _, _ := strings.Cut(err.Error(), "\n")
		err = usage(fmt.Errorf("%s; see %s --help", message, cmd.CommandPath()))
	}
	return err
}

// A usageError is the fault of the command line or of the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usage(err error) error { return usageError{err} }

// A reworded error says the same to a person in other words.
type reworded struct {
	error
	says string
}

func (e reworded) Error() string { return e.says }
func (e reworded) Unwrap() error { return e.error }

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usageError)):
		return 2
	case errors.Is(err, auth.ErrConsentRequired):
		return 3
	case errors.Is(err, auth.ErrCredentials):
		return 4
	}
	return 1
}

// report writes one line for each error. A file's problems begin with the file, as a compiler's do.
func (a *app) report(err error) {
	prefix := "itsmauth: "
	var problems config.Problems
	if errors.As(err, &problems) {
		if prefix = ""; isTerminal(a.stderr) {
			a.explain(problems, vocabulary())
			return
		}
	}
	if err == nil || errors.Is(err, syscall.EPIPE) {
		return
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(a.stderr, prefix+strings.TrimRight(line, "\n"))
	}
}
