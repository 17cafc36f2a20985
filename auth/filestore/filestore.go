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
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// Config says where the files are.
type Config struct {
	// Path is the directory. If it does not exist, it is made, with its parents, with mode 0700.
	Path string `yaml:"path" required:"true" path:"true"`
	// AllowWritableParents accepts a directory that other users could replace, because they can write to a
	// directory above it, such as a Kubernetes emptyDir. They can then remove the tokens, or put another
	// directory of this user in their place, but not read them or put in their own. The default is false.
	AllowWritableParents bool `yaml:"allow_writable_parents"`
	// Logger gets a warning for each directory that only AllowWritableParents accepts. nil logs nothing.
	Logger *slog.Logger `yaml:"-"`
}

// Open returns the store in a directory, which must belong to this process's user and must not be
// writable by others. The directories above it must belong to this user or root. They may be writable by
// a group that this process is in, and by others only if they are sticky, like /tmp. Symbolic links must
// belong to this user or root. AllowWritableParents makes an exception for the directories above and for
// links. Only modes are looked at, not access control lists, and on Windows nothing: there, put the
// directory into the user's profile.
//
// The directory stays open until Close. If another one is put in its place, the next operation makes all
// these checks again, and fails or uses the new one. A directory may be opened several times.
//
// The files have mode 0600 and at most 16 MiB. A file that another user may have made or written is an
// error: one that is no regular file, belongs to another user, has several hard links, or is writable by
// others, except for a group that this process is in.
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
	s := &store{beat: beat, observed: map[string]observation{}}
	if err := s.open(c); err != nil {
		return nil, &auth.KeyError{Key: "path", Err: fmt.Errorf("%w: %w", auth.ErrStore, err)}
	}
	s.closing, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func (s *store) open(c Config) (err error) {
	if c.Path == "" {
		return errors.New("no directory given")
	}
	if s.dir, err = filepath.Abs(c.Path); err != nil {
		return err
	}
	d, err := openDir(s.dir, true, c.acceptParent)
	s.opened.Store(d)
	c.Logger = nil // it is warned once
	s.acceptParent = c.acceptParent
	return err
}

// acceptParent decides about a directory above the store's, of which unsafe says why others could replace
// the store in it.
func (c Config) acceptParent(unsafe error) error {
	if !c.AllowWritableParents {
		return fmt.Errorf("%w, or, if you trust them, set token_store.allow_writable_parents: true", unsafe)
	}
	if c.Logger != nil {
		c.Logger.Warn("other users could replace the token store", "error", &auth.KeyError{Key: "path", Err: fmt.Errorf("%w: %w", auth.ErrStore, unsafe)})
	}
	return nil
}

type store struct {
	dir          string
	acceptParent func(unsafe error) error
	opened       atomic.Pointer[dir]
	beat         time.Duration

	mu       sync.Mutex
	observed map[string]observation // by key
	closed   bool
	closing  context.Context // ends when Close does not wait any longer
	cancel   context.CancelFunc
	running  sync.WaitGroup // background functions
}

// directory returns the directory that is at the path now. If it is not the one that Open opened, all of
// Open's checks are made again.
func (s *store) directory() (*dir, error) {
	info, err := os.Stat(s.dir)
	if err != nil {
		return nil, err
	}
	d := s.opened.Load()
	if !os.SameFile(info, d.info) {
		if d, err = openDir(s.dir, false, s.acceptParent); err != nil {
			return nil, fmt.Errorf("the token store was replaced: %w", err)
		}
		s.opened.Store(d)
		return d, nil
	}
	return d, d.me.checkDir(s.dir, info) // its mode may have changed
}

// Format prints the directory for every verb.
func (s *store) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "filestore(%s)", s.dir) }

// Close waits at most a second for the slots that are being released in the background, and closes the
// directory.
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
	if d := s.opened.Swap(new(dir)); d.Root != nil {
		return d.Root.Close()
	}
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
	d, err := s.directory()
	if err != nil {
		return auth.Record{}, fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	return d.load(ctx, key)
}

func (d *dir) load(ctx context.Context, key string) (auth.Record, error) {
	file := name(key) + ".json"
	if err := ctx.Err(); err != nil {
		return auth.Record{}, fmt.Errorf("%w: reading %s: %w", auth.ErrStore, d.join(file), err)
	}
	b, err := d.read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return auth.Record{}, nil
	}
	if err != nil {
		return auth.Record{}, fmt.Errorf("%w: %w", auth.ErrStore, err)
	}
	r, err := decode(name(key), b)
	if err != nil {
		return auth.Record{}, fmt.Errorf("%w: %s %w", auth.ErrStore, d.join(file), err)
	}
	return r, nil
}

func (s *store) Save(ctx context.Context, key string, r auth.Record) error {
	d, done, err := s.startChange(ctx, key, r.Version)
	if err != nil {
		return err
	}
	defer done()
	file := name(key) + ".json"
	r.Version++
	b, err := encode(name(key), r)
	if err == nil {
		err = d.replace(file, b)
	}
	if err != nil {
		return fmt.Errorf("%w: %s is unchanged: %w", auth.ErrStore, d.join(file), err)
	}
	return d.syncChange()
}

func (s *store) Delete(ctx context.Context, key string, version uint64) error {
	d, done, err := s.startChange(ctx, key, version)
	if err != nil {
		return err
	}
	defer done()
	if version == 0 {
		return nil
	}
	file := name(key) + ".json"
	if err := d.Remove(file); err != nil {
		return fmt.Errorf("%w: %w", auth.ErrStore, withPath(err, d.join(file)))
	}
	return d.syncChange()
}

// startChange locks key's record for a change, if it has that version. The caller calls done at the end.
func (s *store) startChange(ctx context.Context, key string, version uint64) (d *dir, done func(), err error) {
	lock := name(key) + ".save.lock"
	done, err = poll(ctx, s.join(lock), time.Millisecond, 50*time.Millisecond, func() (func(), error) {
		if d, err = s.directory(); err != nil {
			return nil, fmt.Errorf("%w: %w", auth.ErrStore, err)
		}
		return d.tryLock(lock)
	})
	if err != nil {
		return nil, nil, err
	}
	r, err := d.load(ctx, key)
	if err == nil && r.Version != version {
		err = fmt.Errorf("%w: %s", auth.ErrConflict, d.join(name(key)+".json"))
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	d.removeTemporary(name(key) + ".") // startChange excludes other writers of this key
	return d, done, nil
}

func (d *dir) syncChange() error {
	if err := d.sync(); err != nil {
		return fmt.Errorf("%w: the change was made, but may be lost in a power failure: %w", auth.ErrStore, err)
	}
	return nil
}

// join returns the path of a file, for errors.
func (s *store) join(file string) string { return filepath.Join(s.dir, file) }

var plainName = regexp.MustCompile(`^[a-z0-9_-]{1,128}$`)

// name returns key if it is a safe file name on every system, else a hash. It has no dot.
func name(key string) string {
	if plainName.MatchString(key) {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256=" + hex.EncodeToString(sum[:])
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
