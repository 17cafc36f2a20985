//go:build !unix

package filestore

import "os"

// makeDir makes dir and its parents. It does not check the parents, for the same reason as checkPrivate.
func makeDir(dir string, _ bool) error { return os.MkdirAll(dir, 0o700) }

// checkPrivate checks nothing: access control lists decide, and a directory in the user's profile inherits
// the right ones.
func checkPrivate(string, int) error { return nil }

// syncDir does nothing: directories cannot be synced here.
func syncDir(string) error { return nil }
