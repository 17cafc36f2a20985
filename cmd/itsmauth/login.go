package main

import (
	"context"
	"errors"
	"fmt"
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
command fails before it opens the browser.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return usage(errors.New("--timeout must be above 0"))
			}
			return a.withConnector(cmd.Context(), args[0], func(conns *config.Connectors, conn *config.Connector) error {
				if session(conn).CodeFlow() == nil {
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
	stopCountdown := func() {}
	o := &consent.LoginOptions{Timeout: timeout, Show: func(url string) {
		if !noBrowser {
			fmt.Fprintf(a.stderr, "Allow access in your browser. If it does not open, go to\n\n  %s\n\n", url)
		} else if _, err := fmt.Fprintln(a.stdout, url); err != nil {
			cancel(err) // the person cannot see the URL
			return
		}
		stopCountdown = a.countdown(timeout)
	}}
	if noBrowser {
		o.Open = func(string) error { return nil }
	}
	err := a.finish(ctx, func() error {
		return consent.Login(ctx, consent.Connector{Name: conn.Name, Provider: conn.Provider, Session: session(conn)}, o)
	})
	stopCountdown()
	if err != nil {
		return err
	}
	st, _ := session(conn).Status(ctx) // if the store fails, Status returns what the session knows
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

// countdown shows how long login still waits. On a terminal it counts down until stop is called.
func (a *app) countdown(timeout time.Duration) (stop func()) {
	if !canRedraw(a.stderr) {
		fmt.Fprintf(a.stderr, "waiting up to %s for the browser sign-in\n", strings.Replace(timeout.String(), "m0s", "m", 1))
		return func() {}
	}
	end := time.Now().Add(timeout)
	var drawing sync.WaitGroup
	stopping := make(chan struct{})
	drawing.Go(func() {
		defer redraw(a.stderr, "")
		for {
			left := max(0, time.Until(end)).Round(time.Second)
			redraw(a.stderr, fmt.Sprintf("Waiting for the browser sign-in: %s left, Ctrl-C cancels", left))
			select {
			case <-time.After(time.Second):
			case <-stopping:
				return
			}
		}
	})
	return func() {
		close(stopping)
		drawing.Wait()
	}
}
