package filestore

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxFile is the largest file that is read or written as a whole, in bytes.
const maxFile = 16 << 20

// A dir is the store's directory, open. Nothing is done by path, because another directory may be put
// there.
type dir struct {
	*os.Root
	path string
	info fs.FileInfo
	me   user
}

// openDir checks the directory at path and opens it. create makes it, with its parents, if it does not
// exist. accept decides about each parent in which others could replace the directory.
func openDir(path string, create bool, accept func(unsafe error) error) (*dir, error) {
	me, err := thisUser()
	if err != nil {
		return nil, err
	}
	if err := checkParents(path, me, create, accept); err != nil {
		return nil, err
	}
	// With a separator at the end, a named pipe is an error and does not wait for a writer.
	root, err := os.OpenRoot(path + string(filepath.Separator))
	if err != nil {
		return nil, err
	}
	d := &dir{Root: root, path: path, me: me}
	if d.info, err = root.Stat("."); err == nil {
		err = me.checkDir(path, d.info)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return d, nil
}

// join returns the path of a file, for errors.
func (d *dir) join(name string) string { return filepath.Join(d.path, name) }

// open opens a file that only this process's user can have written.
func (d *dir) open(name string, flag int) (*os.File, fs.FileInfo, error) {
	path := d.join(name)
	// os.Root follows links within the directory, and to open a device may have effects.
	info, err := d.Lstat(name)
	if err == nil {
		err = d.me.checkFile(path, info)
	} else if flag&os.O_CREATE != 0 && errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	var f *os.File
	if err == nil {
		f, err = d.OpenFile(name, flag|nonblock, 0o600)
	}
	if err != nil {
		return nil, nil, withPath(err, path)
	}
	if info, err = f.Stat(); err == nil {
		err = d.me.checkFile(path, info)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// withPath replaces the file's name in an error of [os.Root].
func withPath(err error, path string) error {
	if e, ok := err.(*fs.PathError); ok {
		return &fs.PathError{Op: strings.TrimSuffix(e.Op, "at"), Path: path, Err: e.Err}
	}
	return err
}

// read returns a file's content.
func (d *dir) read(name string) ([]byte, error) {
	f, info, err := d.open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, but this store writes at most %d; move it away", f.Name(), info.Size(), maxFile)
	}
	b := make([]byte, info.Size()+1) // and one more, to read the end with the content
	n, err := io.ReadFull(f, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return b[:n], err
}

// replace writes b to a file, all or nothing: after an error the old content is there.
func (d *dir) replace(name string, b []byte) error {
	if len(b) > maxFile {
		return fmt.Errorf("the record needs %d bytes, more than %d", len(b), maxFile)
	}
	temporary := strings.TrimSuffix(name, ".json") + "." + rand.Text() + ".tmp"
	f, err := d.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	err = cmp.Or(err, f.Close())
	if err == nil {
		err = d.Rename(temporary, name)
	}
	if err != nil {
		_ = d.Remove(temporary)
	}
	return err
}

// removeTemporary removes the temporary files with that prefix, which killed processes left.
func (d *dir) removeTemporary(prefix string) {
	all, err := d.Open(".")
	if err != nil {
		return
	}
	defer all.Close()
	names, _ := all.Readdirnames(-1)
	for _, name := range names {
		if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, ".tmp") {
			_ = d.Remove(name)
		}
	}
}
