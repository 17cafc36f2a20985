//go:build !unix

package filestore

import "os"

// makeDir makes dir and its parents. It judges none of them, for the reason that private gives.
func makeDir(dir string, _ bool) error { return os.MkdirAll(dir, 0o700) }

// private has nothing to look at here: access lists decide, and a directory in the user's profile
// inherits the right ones.
func private(string, int) error { return nil }

// syncDir has no counterpart here.
func syncDir(string) error { return nil }
