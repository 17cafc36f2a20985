package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/config"
)

func (a *app) login() *cobra.Command {
	var noBrowser bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "login NAME",
		Short: "Log a person in, once, in their browser",
		Long: `Log a person in, once, in their browser (the authorization-code grant). What
comes of it is stored and renewed from then on. Before the browser opens, the
token store is checked: if it cannot be written, the command fails at once.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return usage(errors.New("--timeout must be above 0"))
			}
			return a.connector(cmd.Context(), args[0], func(conns *config.Connectors, conn *config.Connector) error {
				if session(conn).CodeFlow() == nil {
					return usage(fmt.Errorf("%s needs no login: its grant is for programs", conn.Name))
				}
				if err := lasting(conns); err != nil {
					return err
				}
				return a.logIn(cmd.Context(), conn, noBrowser, timeout)
			})
		},
	}
	cmd.Flags().BoolVar(&noBrowser, "no-browser", false, "open none: print the URL alone on the first line of stdout")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for the login")
	return cmd
}

// lasting refuses a store in which a login would be gone with this process.
func lasting(conns *config.Connectors) error {
	if conns.Store() == "memory" {
		return usage(errors.New("token_store is memory, so a login would be gone when this command ends; set type: file, or leave token_store out"))
	}
	return nil
}

func (a *app) logIn(ctx context.Context, conn *config.Connector, noBrowser bool, timeout time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	o := &consent.LoginOptions{Timeout: timeout}
	var done func()
	o.Show = func(url string) {
		if noBrowser {
			if _, err := fmt.Fprintln(a.stdout, url); err != nil {
				cancel(err) // nobody will come
				return
			}
		} else {
			fmt.Fprintf(a.stderr, "Allow access in your browser. If it does not open by itself, go to\n\n  %s\n\n", url)
		}
		done = a.waiting(timeout)
	}
	if noBrowser {
		o.Open = func(string) error { return nil }
	}
	err := a.finishing(ctx, func() error {
		return consent.Login(ctx, consent.Connector{Name: conn.Name, Provider: conn.Provider, Session: session(conn)}, o)
	})
	if done != nil {
		done()
	}
	if err != nil {
		return err
	}
	st, _ := session(conn).Status(ctx) // at least what memory knows, which is this login
	until := ""
	if !st.ConsentExpiry.IsZero() {
		until = ", and stays so until " + st.ConsentExpiry.Local().Format("2 January 2006") + " or longer if it is used"
	}
	_, err = fmt.Fprintf(a.stdout, "%s is logged in%s\n", conn.Name, until)
	return err
}

// waiting says on stderr how long there is; on a terminal it counts down until done is called.
func (a *app) waiting(timeout time.Duration) (done func()) {
	if !redraws(a.stderr) {
		fmt.Fprintf(a.stderr, "waiting up to %s for the browser to come back\n", timeout)
		return func() {}
	}
	ends := time.Now().Add(timeout)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			left := max(0, time.Until(ends)).Round(time.Second)
			redraw(a.stderr, fmt.Sprintf("Waiting: %s left, Ctrl-C gives up", left))
			select {
			case <-tick.C:
			case <-stop:
				redraw(a.stderr, "")
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
	}
}

func (a *app) logout() *cobra.Command {
	return &cobra.Command{
		Use:   "logout NAME",
		Short: "Revoke the tokens where the product can, and forget them",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.connector(cmd.Context(), args[0], func(_ *config.Connectors, conn *config.Connector) error {
				err := session(conn).Revoke(cmd.Context())
				switch {
				case err == nil:
				case cmd.Context().Err() != nil || errors.Is(err, auth.ErrStore):
					return err
				default:
					says, _, _ := strings.Cut(err.Error(), "; ") // to try again, which cannot be done
					return reworded{err, says + "; the tokens are forgotten here, but may live on: revoke them in the product"}
				}
				_, err = fmt.Fprintf(a.stdout, "%s is logged out\n", conn.Name)
				return err
			})
		},
	}
}
