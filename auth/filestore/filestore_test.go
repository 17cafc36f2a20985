package filestore

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
)

func open(t *testing.T, dir string) auth.Store {
	t.Helper()
	s, err := Open(Config{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func save(t *testing.T, s auth.Store, key string, version uint64, data string) {
	t.Helper()
	if err := s.Save(t.Context(), key, auth.Record{Version: version, Data: []byte(data)}); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, s auth.Store, key string, version uint64, data string) {
	t.Helper()
	r, err := s.Load(t.Context(), key)
	if err != nil || r.Version != version || string(r.Data) != data {
		t.Fatalf("Load of %q = version %d, %d bytes, %v; want version %d, %d bytes", key, r.Version, len(r.Data), err, version, len(data))
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestStore(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "[glob]*", "a b")
	authtest.TestStore(t, func(t *testing.T) auth.Store { return open(t, dir) })
}

func TestEncryptedStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, err := auth.ParseKey(auth.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	authtest.TestStore(t, func(t *testing.T) auth.Store { return auth.Encrypt(open(t, dir), key) })
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ path, want string }{
		"none":         {"", "no directory given"},
		"a file":       {file, file},
		"below a file": {filepath.Join(file, "dir"), file},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(Config{Path: tt.path})
			var key *auth.KeyError
			if !errors.Is(err, auth.ErrStore) || !errors.As(err, &key) || key.Key != "path" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open: %v, want a KeyError for path around ErrStore with %q", err, tt.want)
			}
		})
	}
}

func TestRelativePath(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	s := open(t, "here")
	t.Chdir(t.TempDir())
	save(t, s, "k", 0, "data")
	want(t, open(t, filepath.Join(dir, "here")), "k", 1, "data")
}

// Later versions must read what this version writes.
const golden = `{"format":"itsmauth token","version":1,` +
	`"record":{"key":"k","version":7,"expires":"2100-01-02T03:04:05Z","data":"cysvPSYlCg=="},` +
	`"sha256":"6c7aa00d54e68f2be4dd6e4784dbb28c34f8774473b393e8bc7d2636999307b0"}` + "\n"

var goldenRecord = auth.Record{Version: 7, Expires: time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC), Data: []byte("s+/=&%\n")}

func TestFormat(t *testing.T) {
	t.Parallel()
	b, err := encode("k", goldenRecord)
	if diff := cmp.Diff(golden, string(b)); err != nil || diff != "" {
		t.Errorf("encode: %v, (-want +got)\n%s", err, diff)
	}
	r, err := decode("k", []byte(golden))
	if err != nil || !cmp.Equal(r, goldenRecord) {
		t.Errorf("decode = %v, %v", r, err)
	}
}

// seal makes a file with a valid checksum for any record.
func seal(t *testing.T, raw string) string {
	t.Helper()
	b, err := json.Marshal(envelope{format, formatVersion, json.RawMessage(raw), checksum([]byte(raw))})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRefusedFiles(t *testing.T) {
	t.Parallel()
	const (
		damaged = "is damaged"
		foreign = "was not written by itsmauth"
		newer   = "newer itsmauth (format 2, this one reads 1); upgrade"
	)
	for name, tt := range map[string]struct{ content, want string }{
		"empty":               {"", damaged},
		"zeros":               {strings.Repeat("\x00", len(golden)), damaged},
		"truncated":           {golden[:len(golden)/2], damaged},
		"without its brace":   {golden[:len(golden)-2], damaged},
		"two":                 {golden + golden, damaged},
		"changed data":        {strings.Replace(golden, "cysv", "cysw", 1), damaged},
		"changed expiry":      {strings.Replace(golden, "2100", "2101", 1), damaged},
		"changed version":     {strings.Replace(golden, `"version":7`, `"version":8`, 1), damaged},
		"changed checksum":    {strings.Replace(golden, `"6c`, `"6d`, 1), damaged},
		"version 0":           {seal(t, `{"key":"k","version":0,"data":""}`), damaged},
		"negative version":    {seal(t, `{"key":"k","version":-1,"data":""}`), damaged},
		"record of no object": {seal(t, `"s+/=&%"`), damaged},
		"format 0":            {strings.Replace(golden, `"version":1,`, `"version":0,`, 1), damaged},
		"text":                {"s+/=&%", damaged},
		"null":                {"null", foreign},
		"a list":              {"[]", foreign},
		"an object":           {`{"access_token":"s+/=&%"}`, foreign},
		"another format":      {strings.Replace(golden, "itsmauth token", "another token", 1), foreign},
		"newer":               {strings.Replace(golden, `"version":1,`, `"version":2,`, 1), newer},
		"newer, another shape": {
			`{"format":"itsmauth token","version":2,"record":["s+/=&%"],"sha256":5,"more":{}}`, newer,
		},
		"another identity": {seal(t, `{"key":"other","version":7,"data":"cysvPSYlCg=="}`),
			`is the record of another identity, "other"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "k.json")
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir)
			check := func(op string, err error) {
				t.Helper()
				if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), path+" ") || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: %v, want ErrStore with the path and %q", op, err, tt.want)
				} else if strings.Contains(err.Error(), "s+/") || strings.Contains(err.Error(), "cysv") {
					t.Errorf("%s shows data: %v", op, err)
				}
			}
			r, err := s.Load(t.Context(), "k")
			check("Load", err)
			if !cmp.Equal(r, auth.Record{}) {
				t.Errorf("Load gave %v", r)
			}
			for _, version := range []uint64{0, 7, 8} {
				check("Save", s.Save(t.Context(), "k", auth.Record{Version: version, Data: []byte("new")}))
				check("Delete", s.Delete(t.Context(), "k", version))
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != tt.content {
				t.Errorf("the file is now %q, %v", b, err)
			}
			if diff := cmp.Diff([]string{"k.json", "k.save.lock"}, files(t, dir)); diff != "" {
				t.Errorf("files (-want +got)\n%s", diff)
			}
		})
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	t.Parallel()
	for n := range len(golden) - 1 { // without the last byte, a newline, the file is valid
		if r, err := decode("k", []byte(golden[:n])); err == nil {
			t.Errorf("the first %d bytes are %v", n, r)
		}
	}
}

func TestEveryFlippedBitIsRefused(t *testing.T) {
	t.Parallel()
	for i := range golden {
		for bit := range 8 {
			b := []byte(golden)
			b[i] ^= 1 << bit
			if r, err := decode("k", b); err == nil && !cmp.Equal(r, goldenRecord) {
				t.Errorf("with byte %d as %q, the record is %v", i, b[i], r)
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(golden))
	f.Add([]byte(`{"format":"itsmauth token","version":2}`))
	f.Add([]byte(`{"format":"itsmauth token","version":1,"record":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode("k", b)
		if err != nil {
			if r.Version != 0 || r.Data != nil {
				t.Fatalf("%v beside %v", r, err)
			}
			return
		}
		if r.Version == 0 {
			t.Fatal("a file that is there passes for absent")
		}
		again, err := encode("k", r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decode("k", again); err != nil || !cmp.Equal(back, r) {
			t.Fatalf("%v comes back as %v, %v", r, back, err)
		}
	})
}

func TestCopiedOverAnother(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	save(t, s, "a", 0, "of a")
	save(t, s, "b", 0, "of b")
	b, err := os.ReadFile(filepath.Join(dir, "a.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), "b"); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), `another identity, "a"`) {
		t.Errorf("Load: %v", err)
	}
	want(t, s, "a", 1, "of a")
}

func TestDirectoryInPlaceOfTheRecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "k.json")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	for op, err := range map[string]error{
		"Save":   s.Save(t.Context(), "k", auth.Record{Data: []byte("new")}),
		"Delete": s.Delete(t.Context(), "k", 0),
	} {
		if !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

func TestVanishedDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	save(t, s, "k", 0, "data")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	_, load := s.Load(t.Context(), "k")
	_, lock := s.Lock(t.Context(), "k")
	for op, err := range map[string]error{
		"Load": load, "Lock": lock,
		"Save": s.Save(t.Context(), "k", auth.Record{Version: 1}), "Delete": s.Delete(t.Context(), "k", 0),
	} {
		if !errors.Is(err, auth.ErrStore) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

func TestEndedContext(t *testing.T) {
	t.Parallel()
	s := beating(t, t.TempDir(), beat)
	save(t, s, "k", 0, "data")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, load := s.Load(ctx, "k")
	_, lock := s.Lock(ctx, "k")
	_, _, tryLock := s.TryLock(ctx, "k", 1)
	_, _, take := windowOf(s, time.Second, auth.Limit{Requests: 1, Per: time.Second}).Take(ctx, "1")
	for op, err := range map[string]error{
		"Load": load, "Lock": lock, "TryLock": tryLock, "Take": take,
		"Save": s.Save(ctx, "k", auth.Record{Version: 1}), "Delete": s.Delete(ctx, "k", 1),
	} {
		if !errors.Is(err, auth.ErrStore) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), s.dir) {
			t.Errorf("%s: %v, want ErrStore and context.Canceled with the path", op, err)
		}
	}
	want(t, s, "k", 1, "data")
}

func TestTemporaryFilesAreRemoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	for _, name := range []string{"k.123.tmp", "k.4.tmp", "kk.5.tmp", "k.tar.gz"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(golden[:50]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save(t, s, "k", 0, "data")
	if diff := cmp.Diff([]string{"k.json", "k.save.lock", "k.tar.gz", "kk.5.tmp"}, files(t, dir)); diff != "" {
		t.Errorf("after Save (-want +got)\n%s", diff)
	}
	if err := s.Delete(t.Context(), "kk", 0); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"k.json", "k.save.lock", "k.tar.gz", "kk.save.lock"}, files(t, dir)); diff != "" {
		t.Errorf("after Delete (-want +got)\n%s", diff)
	}
}

func TestSaveThatCannotBeEncoded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	save(t, s, "k", 0, "old")
	err := s.Save(t.Context(), "k", auth.Record{Version: 1, Expires: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)})
	if !errors.Is(err, auth.ErrStore) {
		t.Errorf("Save: %v, want ErrStore", err)
	}
	want(t, s, "k", 1, "old")
}
