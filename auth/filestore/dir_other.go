//go:build !unix

package filestore

// private has nothing to look at here: access lists decide, and a directory in the user's profile
// inherits the right ones.
func private(string, int) error { return nil }

// syncDir has no counterpart here.
func syncDir(string) error { return nil }
