package auth

import (
	"context"
	"time"
)

// A Windower is a [Store] that can hold all processes of one identity to its limits together. It is
// optional, and found by type assertion.
type Windower interface {
	// Window gives the slots of limits at key. A slot that is taken and never released counts for
	// hold, as if its request had then been received.
	Window(key string, limits []Limit, hold time.Duration) Window
}

// A Window is the slots of some limits, shared by many processes. It is safe for concurrent use.
type Window interface {
	// Take takes a slot in every limit, to be known as id, which is unique among all processes. If
	// there is none it takes nothing, and wait is how long it will be, at the least, until there can
	// be one. processes is how many have lately asked, this one included. An error wraps [ErrStore];
	// the slot may then have been taken or not.
	Take(ctx context.Context, id string) (wait time.Duration, processes int, err error)
	// Release notes that id's request has been received by now: its slot comes back one length of
	// each limit later. If sent is false it was never sent: its slot comes back at once. Release
	// does not wait.
	Release(id string, sent bool)
}
