// Command itsmauth checks a configuration, prints tokens, makes requests, and logs people in. Run
// itsmauth help, or itsmauth demo for a tour. Each command is in the file of its name.
//
// Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 a person must log in first, 4 the
// product refused the credentials.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	// A signal or a closed stdout must not kill the process, which may be saving a refresh token.
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, syscall.SIGPIPE)
	log.SetOutput(io.Discard) // net/http logs text from servers
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup ignores it
		signals = append(signals, syscall.SIGHUP)
		signal.Notify(ignored, syscall.SIGHUP) // a closing terminal sends it several times
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	// A second signal kills the process. timeout(1) sends two at once, which count as one.
	context.AfterFunc(ctx, func() { time.AfterFunc(sameSignal, stop) })
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// sameSignal is how long after a signal another signal counts as the same.
const sameSignal = 250 * time.Millisecond

// run runs the command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	err := a.execute(ctx, args)
	a.report(err)
	return exitCode(err)
}

// app has what all commands share: input, output, and the global flags.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	file    string
	output  string
	verbose bool

	network  network
	printErr error // the first error of printf
}

func (a *app) execute(ctx context.Context, args []string) error {
	parsed := false // cobra's errors before that are about the command line
	root := &cobra.Command{
		Use:   "itsmauth",
		Short: "One authenticated HTTP client per ITSM product, from one YAML file",
		Long: `One authenticated HTTP client per ITSM product, from one YAML file.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 a person must
log in first, 4 the product refused the credentials.`,
		Example: `  itsmauth demo                         a tour, with nothing to set up
  itsmauth check                        is ./itsmauth.yaml right?
  itsmauth token support                a valid access token
  itsmauth call support /api/command?action=get_api_info`,
		Version:       thisBuild().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return errors.New("--output must be text or json")
			}
			parsed = true
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
	flags.StringVar(&a.output, "output", "text", "`FORMAT` of check, token, status, providers and version: text or json")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "log requests and token requests to stderr")
	root.AddCommand(
		a.check(), a.token(), a.call(), a.login(), a.logout(), a.status(), a.serve(),
		a.emulate(), a.demo(), a.keygen(), a.providers(), a.version(),
		a.init(), a.schema(),
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
	if err != nil && !parsed {
		message, _, _ := strings.Cut(err.Error(), "\n")
		err = usage(fmt.Errorf("%s; see %s --help", message, cmd.CommandPath()))
	}
	return err
}

// A usageError is a mistake in the command line or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usage(err error) error { return usageError{err} }

// A reworded error has a message of its own, and err's exit code.
type reworded struct {
	error
	message string
}

func (e reworded) Error() string { return e.message }
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

// report prints err on stderr, one line for each error. Problems of the configuration begin with
// FILE:LINE:COL, without our name.
func (a *app) report(err error) {
	prefix := "itsmauth: "
	var problems config.Problems
	if errors.As(err, &problems) {
		if prefix = ""; isTerminal(a.stderr) {
			a.printProblems(problems)
			return
		}
	}
	var output *fs.PathError
	if err == nil || errors.As(err, &output) && output.Err == syscall.EPIPE {
		return
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(a.stderr, visible(prefix+strings.TrimRight(line, "\n")))
	}
}
