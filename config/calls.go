package config

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/itsmauth/itsmauth/auth"
)

// calls passes the calls of a connector on, until the connector is removed.
type calls struct {
	connector *Connector
	next      http.RoundTripper
	state     atomic.Int64 // how many are under way, and removed if the connector is
	once      sync.Once
	ended     chan struct{} // closed when the connector is removed and no call is under way
}

const removed = 1 << 62

// Format prints the connector's name, for every verb.
func (c *calls) Format(f fmt.State, verb rune) { c.connector.Format(f, verb) }

// RoundTrip implements [http.RoundTripper].
func (c *calls) RoundTrip(req *http.Request) (*http.Response, error) {
	defer c.add(-1)
	if c.state.Add(1) > removed && req.Response == nil { // a redirect belongs to a call under way
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, &auth.Error{Connector: c.connector.Name, Provider: c.connector.Provider, Op: "request",
			Err: fmt.Errorf("%w: the connector was removed", auth.ErrClosed)}
	}
	return c.next.RoundTrip(req)
}

// CloseIdleConnections is called by [http.Client.CloseIdleConnections].
func (c *calls) CloseIdleConnections() {
	c.next.(interface{ CloseIdleConnections() }).CloseIdleConnections()
}

// end refuses new calls.
func (c *calls) end() {
	if c.state.Load() < removed {
		c.add(removed)
	}
}

func (c *calls) add(n int64) {
	if c.state.Add(n) == removed {
		c.once.Do(func() { close(c.ended) })
	}
}
