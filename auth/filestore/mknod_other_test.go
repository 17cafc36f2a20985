//go:build unix && !linux

package filestore

import "io/fs"

func mknod(string) error { return fs.ErrPermission }
