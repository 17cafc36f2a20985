package auth

import (
	"context"
	"time"
)

// A Windower is a [Store] through which all processes of one identity share its rate limits. It is
// optional and found by type assertion.
type Windower interface {
	// Window returns the slots of limits at key. An unreleased slot (its process died) expires after
	// hold, as if its request had been received then.
	Window(key string, limits []Limit, hold time.Duration) Window
}

// A Window holds the slots of rate limits that processes share. It is safe for concurrent use.
type Window interface {
	// Take takes a slot in every limit, with an id that is unique among all processes. If a limit has
	// none left, Take takes nothing and wait is the least time until there can be one. processes is how
	// many have asked lately, this one included. An error wraps [ErrStore]; the slot may have been taken
	// all the same.
	Take(ctx context.Context, id string) (wait time.Duration, processes int, err error)
	// Release notes that the product has received id's request: each limit gets its slot back when its
	// window has passed. If sent is false the request was never sent: the slot is free at once. Release
	// does not block.
	Release(id string, sent bool)
}
