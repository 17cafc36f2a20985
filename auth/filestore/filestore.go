// Package filestore keeps tokens in files, which all processes of a user can share. Replacing a record is
// atomic, even if the process is killed or the power fails.
//
// Each credential has these files. Do not remove them while a process uses the directory.
//
//	KEY.json         the record
//	KEY.save.lock    locked while the record is changed
//	KEY.lock         locked by the process that requests a new token
//	KEY.alive        rewritten once a second by that process, which removes it at the end
//	KEY.next.lock    locked instead of KEY.lock if KEY.alive has not changed for 5 seconds
//	KEY.window       the requests that count for the rate limits; locked while it is used
//	KEY.window.lock  locked instead where a locked file cannot be read, such as on Windows
//
// The directory must be on a file system whose locks work between all processes that use it.
package filestore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// Config says where the files are.
type Config struct {
	// Path is the directory. If it does not exist, it is made, with its parents, with mode 0700.
	Path string `yaml:"path" required:"true" path:"true"`
	// AllowWritableParents accepts a directory whose parents other users can write to, such as a
	// directory in a Kubernetes emptyDir. Those users can then replace your tokens by their own. The
	// default is false.
	AllowWritableParents bool `yaml:"allow_writable_parents"`
}

// Open returns the store in a directory, which must belong to this process's user and must not be
// writable by others. Unless AllowWritableParents is set, the same is required of the directories above
// it, but these may also belong to root, be writable by a group that this process is in, or be sticky
// like /tmp. Symbolic links must belong to this user or root. A directory may be opened several times.
// The files have mode 0600.
//
// Open's error is an [auth.KeyError] that wraps [auth.ErrStore]. All errors name the file or the
// directory, and none shows what a file contains. A file that is damaged, newer than this code or not
// written by this package is an error, and is neither overwritten nor removed.
//
// A lock is free as soon as its holder has ended. If its holder is stopped, by SIGSTOP or Ctrl-Z,
// another process takes the lock after 5 seconds; the stopped one's save then fails with
// [auth.ErrConflict] when it continues.
//
// The store is an [auth.TryLocker], an [auth.Windower] for the processes of one machine, and an
// [io.Closer].
func Open(c Config) (auth.Store, error) {
	dir, err := prepare(c)
	if err != nil {
		return nil, &auth.KeyError{Key: "path", Err: fmt.Errorf("%w: %w", auth.ErrStore, err)}
	}
	s := &store{dir: dir, beat: beat, observed: map[string]observation{}}
	s.closing, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func prepare(c Config) (string, error) {
	if c.Path == "" {
		return "", errors.New("no directory given")
	}
	dir, err := filepath.Abs(c.Path)
	if err != nil {
		return "", err
	}
	if err := makeDir(dir, c.AllowWritableParents); err != nil {
		return "", err
	}
	return dir, checkPrivate(dir, os.Geteuid())
}

type store struct {
	dir  string
	beat time.Duration

	mu       sync.Mutex
	observed map[string]observation // by key
	closed   bool
	closing  context.Context // ends when Close does not wait any longer
	cancel   context.CancelFunc
	running  sync.WaitGroup // background functions
}

// Format prints the directory for every verb.
func (s *store) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "filestore(%s)", s.dir) }

// Close waits at most a second for the slots that are being released in the background.
func (s *store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
	s.cancel()
	return nil
}

// goBackground runs f, unless the store is closed. f's context ends after limit, or with closing.
func (s *store) goBackground(limit time.Duration, f func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.running.Go(func() {
		ctx, cancel := context.WithTimeout(s.closing, limit)
		defer cancel()
		f(ctx)
	})
}

func (s *store) Load(ctx context.Context, key string) (auth.Record, error) {
	path := s.path(key, ".json")
	if err := ctx.Err(); err != nil {
		return auth.Record{}, fmt.Errorf("%w: reading %s: %w", auth.ErrStore, path, err)
	}
	b, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		// If the directory is gone too, it is not known whether there was a record.
		if _, err = os.Stat(s.dir); err == nil {
			return auth.Record{}, nil
		}
	}
	if err != nil {
		return auth.Record{}, fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	r, err := decode(name(key), b)
	if err != nil {
		return auth.Record{}, fmt.Errorf("%w: %s %w", auth.ErrStore, path, err)
	}
	return r, nil
}

func (s *store) Save(ctx context.Context, key string, r auth.Record) error {
	done, err := s.startChange(ctx, key, r.Version)
	if err != nil {
		return err
	}
	defer done()
	path := s.path(key, ".json")
	r.Version++
	b, err := encode(name(key), r)
	if err == nil {
		err = replace(path, b)
	}
	if err != nil {
		return fmt.Errorf("%w: %s is unchanged: %w", auth.ErrStore, path, err)
	}
	return s.sync()
}

func (s *store) Delete(ctx context.Context, key string, version uint64) error {
	done, err := s.startChange(ctx, key, version)
	if err != nil {
		return err
	}
	defer done()
	if version == 0 {
		return nil
	}
	if err := os.Remove(s.path(key, ".json")); err != nil {
		return fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	return s.sync()
}

// startChange locks key's record for a change, if it has that version. The caller calls done at the end.
func (s *store) startChange(ctx context.Context, key string, version uint64) (done func(), err error) {
	path := s.path(key, ".save.lock")
	done, err = poll(ctx, path, time.Millisecond, 50*time.Millisecond, func() (func(), error) { return tryLockFile(path) })
	if err != nil {
		return nil, err
	}
	r, err := s.Load(ctx, key)
	if err == nil && r.Version != version {
		err = fmt.Errorf("%w: %s", auth.ErrConflict, s.path(key, ".json"))
	}
	if err != nil {
		done()
		return nil, err
	}
	s.removeTemporary(key)
	return done, nil
}

// removeTemporary removes key's temporary files, which killed processes left: startChange excludes
// others.
func (s *store) removeTemporary(key string) {
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name(key)+".") && strings.HasSuffix(e.Name(), ".tmp") {
			os.Remove(filepath.Join(s.dir, e.Name()))
		}
	}
}

func (s *store) sync() error {
	if err := syncDir(s.dir); err != nil {
		return fmt.Errorf("%w: the change was made, but may be lost in a power failure: %w", auth.ErrStore, err)
	}
	return nil
}

func (s *store) path(key, suffix string) string {
	return filepath.Join(s.dir, name(key)+suffix)
}

var plainName = regexp.MustCompile(`^[a-z0-9_-]{1,128}$`)

// name returns key if it is a safe file name on every system, else a hash. It has no dot.
func name(key string) string {
	if plainName.MatchString(key) {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256=" + hex.EncodeToString(sum[:])
}

// replace writes b to the file at path, all or nothing: after an error the old content is there.
func replace(path string, b []byte) error {
	dir, file := filepath.Split(path)
	f, err := os.CreateTemp(dir, strings.TrimSuffix(file, ".json")+".*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

const (
	format        = "itsmauth token"
	formatVersion = 1
)

// An envelope is a file's content. Its record is decoded after its checksum was verified.
type envelope struct {
	Format  string          `json:"format"`
	Version int             `json:"version"`
	Record  json.RawMessage `json:"record"`
	SHA256  string          `json:"sha256"`
}

type record struct {
	Key     string    `json:"key"` // name(key), to detect a file that was copied over another
	Version uint64    `json:"version"`
	Expires time.Time `json:"expires,omitzero"`
	Data    []byte    `json:"data"`
}

func encode(name string, r auth.Record) ([]byte, error) {
	raw, err := json.Marshal(record{name, r.Version, r.Expires.UTC(), r.Data})
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(envelope{format, formatVersion, raw, checksum(raw)})
	return append(b, '\n'), err
}

// decode does not return the errors of package json, which quote the file.
func decode(name string, b []byte) (auth.Record, error) {
	var e envelope
	err := json.Unmarshal(b, &e)
	switch {
	case e.Format == format && e.Version > formatVersion:
		return auth.Record{}, fmt.Errorf("was written by a newer itsmauth (format %d, this one reads %d); upgrade", e.Version, formatVersion)
	case json.Valid(b) && e.Format != format:
		return auth.Record{}, errors.New("was not written by itsmauth; move it away")
	case err != nil || e.Version != formatVersion || e.SHA256 != checksum(e.Record):
		return auth.Record{}, errDamaged
	}
	var r record
	if json.Unmarshal(e.Record, &r) != nil || r.Version == 0 {
		return auth.Record{}, errDamaged
	}
	if r.Key != name {
		return auth.Record{}, fmt.Errorf("is the record of another identity, %q; put the right file back, or remove it to start anew", r.Key)
	}
	return auth.Record{Version: r.Version, Expires: r.Expires, Data: r.Data}, nil
}

var errDamaged = errors.New("is damaged; put a good copy back, or remove it to start anew")

func checksum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
