package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/config"
)

func (a *app) login() *cobra.Command {
	var noBrowser bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "login NAME",
		Short: "Log a person in, once, in their browser",
		Long: `Log a person in, once, in their browser (authorization code grant). The tokens
are stored, and renewed from then on. If the token store cannot be written, the
command fails before it opens the browser.

Only the browser that the command opens can complete the login. With --no-browser,
open the URL in any browser. If it runs on another machine, paste the address that
it ended at into the command.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return usage(errors.New("--timeout must be above 0"))
			}
			return a.withConnector(cmd.Context(), args[0], func(conns *config.Connectors, conn *config.Connector) error {
				if conn.Session().StaticCredentials() != nil {
					return usage(fmt.Errorf("%s needs no login: it sends credentials of the configuration", conn.Name))
				}
				if conn.Session().CodeFlow() == nil {
					return usage(fmt.Errorf("%s needs no login: its grant needs no person", conn.Name))
				}
				if err := requirePersistentStore(conns); err != nil {
					return err
				}
				return a.logIn(cmd.Context(), conn, noBrowser, timeout)
			})
		},
	}
	cmd.Flags().BoolVar(&noBrowser, "no-browser", false, "open no browser; print the URL alone on the first line of stdout")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for the login")
	return cmd
}

// requirePersistentStore refuses a store that loses a login when this process ends.
func requirePersistentStore(conns *config.Connectors) error {
	if conns.Store() == "memory" {
		return usage(errors.New("token_store is memory, so the login would be lost when this command ends; set type: file, or remove token_store"))
	}
	return nil
}

func (a *app) logIn(ctx context.Context, conn *config.Connector, noBrowser bool, timeout time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pasting := noBrowser && a.stdin != nil
	say, stopCountdown := func(text string) { fmt.Fprint(a.stderr, text) }, func() {}
	startCountdown := sync.OnceFunc(func() {
		moves := canRedraw(a.stderr) && !(pasting && isTerminal(a.stdin)) // it would overwrite what is being pasted
		say, stopCountdown = a.countdown(timeout, moves)
	})
	o := &consent.LoginOptions{
		Timeout: timeout,
		Opened: func() {
			say("Allow access in your browser.\n")
			startCountdown()
		},
		Show: func(url string) {
			say(fmt.Sprintf("If no browser has opened, go to\n\n  %s\n\nwith a browser on this machine, or use --no-browser.\n", url))
			startCountdown()
		},
	}
	if noBrowser {
		o.Open = func(string) error { return nil }
		o.Show = func(url string) {
			if _, err := fmt.Fprintln(a.stdout, url); err != nil {
				cancel(err) // the person cannot see the URL
				return
			}
			if pasting {
				say("Open this address in a browser. If the browser cannot come back to this machine, paste the address that it ended at here.\n")
			}
			startCountdown()
		}
	}
	if pasting {
		ignoreBackgroundReads()
		lines := bufio.NewScanner(a.stdin)
		o.Paste = func(ctx context.Context, problem error) (string, error) {
			if problem != nil {
				say(problem.Error() + "\n")
			}
			return await(ctx, func() (string, error) {
				if !lines.Scan() {
					return "", cmp.Or(lines.Err(), io.EOF)
				}
				return lines.Text(), nil
			})
		}
	}
	err := a.finish(ctx, func() error {
		return consent.Login(ctx, consent.Connector{Name: conn.Name, Provider: conn.Provider, Session: conn.Session()}, o)
	})
	stopCountdown()
	if err != nil {
		return err
	}
	st, _ := conn.Session().Status(ctx) // if the store fails, Status returns what the session knows
	until := ""
	switch {
	case !st.Refreshable:
		until = " for " + about(time.Until(st.Expiry)) + " only: the product gave no refresh token, usually because the scope offline_access is missing; then log in again"
	case !st.ConsentExpiry.IsZero():
		until = " until " + st.ConsentExpiry.Local().Format("2 January 2006") + ", or longer if it is used"
	}
	_, err = fmt.Fprintf(a.stdout, "%s is logged in%s\n", conn.Name, until)
	return err
}

// countdown shows how long login still waits: if it moves, on the current line of the terminal until stop
// is called. say writes above that line.
func (a *app) countdown(timeout time.Duration, moves bool) (say func(string), stop func()) {
	write := func(text string) { fmt.Fprint(a.stderr, text) }
	if !moves {
		write(fmt.Sprintf("waiting up to %s for the browser sign-in\n", strings.Replace(timeout.String(), "m0s", "m", 1)))
		return write, func() {}
	}
	end := time.Now().Add(timeout)
	var drawing sync.WaitGroup
	texts, stopping := make(chan string), make(chan struct{})
	drawing.Go(func() {
		defer redraw(a.stderr, "")
		for {
			left := max(0, time.Until(end)).Round(time.Second)
			redraw(a.stderr, fmt.Sprintf("Waiting for the browser sign-in: %s left, Ctrl-C cancels", left))
			select {
			case <-time.After(time.Second):
			case text := <-texts:
				redraw(a.stderr, "")
				write(text)
			case <-stopping:
				return
			}
		}
	})
	say = func(text string) {
		select {
		case texts <- text:
		case <-stopping:
		}
	}
	return say, func() {
		close(stopping)
		drawing.Wait()
	}
}

// ignoreBackgroundReads has a process in the background get an error if it reads the terminal, where it is
// otherwise stopped.
var ignoreBackgroundReads = func() {}
