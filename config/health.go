package config

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/itsmauth/itsmauth/auth"
)

// atOnce is how many connectors Warm and Health ask at the same time.
const atOnce = 32

// Warm obtains a token for each connector that needs no person for it, so that the first calls do not wait. Its
// error joins the connectors' errors.
func (c *Connectors) Warm(ctx context.Context) error {
	return c.each(func(conn *Connector) error {
		if conn.session.CodeFlow() != nil {
			if st, _ := conn.Status(ctx); st.State == auth.StateConsentRequired {
				return nil
			}
		}
		_, err := conn.session.Token(ctx)
		return err
	})
}

// Health reports the connectors that cannot work now without a person or a repair: a login is required, the
// credentials are refused, or the token store fails and a login depends on it. It makes no token request, so that a
// connector that was never used is healthy. Its error joins the connectors' errors. Use it for alerts, not for a
// liveness probe: a restart repairs none of this.
func (c *Connectors) Health(ctx context.Context) error {
	return c.each(func(conn *Connector) error { return conn.health(ctx) })
}

func (c *Connector) health(ctx context.Context) error {
	st, err := c.Status(ctx)
	switch {
	case c.session.StaticCredentials() != nil && errors.Is(st.Failure, auth.ErrCredentials):
		return st.Failure
	case st.State == auth.StateFresh || st.State == auth.StateStale:
		return nil
	case errors.Is(st.Failure, auth.ErrConsentRequired):
		return st.Failure
	case st.State == auth.StateConsentRequired:
		return &auth.Error{Connector: c.Name, Provider: c.Provider, Op: "health", Err: auth.ErrConsentRequired}
	case err != nil && c.session.CodeFlow() != nil:
		return err
	}
	passes := []error{auth.ErrUnavailable, auth.ErrRateLimited, context.Canceled, context.DeadlineExceeded}
	if st.Failure == nil || slices.ContainsFunc(passes, func(target error) bool { return errors.Is(st.Failure, target) }) {
		return nil
	}
	return st.Failure
}

// each calls f for all connectors and joins the errors.
func (c *Connectors) each(f func(*Connector) error) error {
	conns := c.all()
	errs := make([]error, len(conns))
	slots := make(chan struct{}, atOnce)
	var running sync.WaitGroup
	for i, conn := range conns {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(conn)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}
