package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gopkg.in/yaml.v3"
)

func newTestKey(t *testing.T) Key {
	t.Helper()
	k, err := ParseKey(NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	good := NewKey()
	if b, err := base64.StdEncoding.DecodeString(good); err != nil || len(b) != 32 || good == NewKey() {
		t.Fatalf("NewKey is %d bytes, %v, or always the same", len(b), err)
	}
	k, err := ParseKey(good)
	if raw, _ := k.Value(); err != nil || base64.StdEncoding.EncodeToString([]byte(raw)) != good {
		t.Errorf("ParseKey of NewKey: %v, or another key", err)
	}
	for name, s := range map[string]string{
		"empty":        "",
		"31 bytes":     base64.StdEncoding.EncodeToString(make([]byte, 31)),
		"33 bytes":     base64.StdEncoding.EncodeToString(make([]byte, 33)),
		"AES-128":      base64.StdEncoding.EncodeToString(make([]byte, 16)),
		"raw":          "s+/=&%0123456789abcdefghijklmnop",
		"hex":          strings.Repeat("a1", 32),
		"URL alphabet": base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 32)),
		"no padding":   strings.TrimRight(good, "="),
		"space":        good + " ",
		"loose bits":   base64.StdEncoding.EncodeToString(make([]byte, 32))[:42] + "B=",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, err := ParseKey(s)
			if err == nil || !k.IsZero() {
				t.Fatal("accepted")
			}
			if want := "an encryption key must be base64 of 32 bytes; `itsmauth keygen` makes one"; err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("OFHmCmtzKHGkOxVYmZKbWXY2pJSXkPsaIo6/BCWEgn0=")
	f.Add("s+/=&%")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		if raw, _ := k.Value(); err == nil && len(raw) != 32 || err != nil && raw != "" {
			t.Fatalf("a key of %d bytes with %v", len(raw), err)
		}
	})
}

func TestKeyIsSilent(t *testing.T) {
	t.Parallel()
	raw := "s+/=&%0123456789abcdefghijklmnop"
	encoded := base64.StdEncoding.EncodeToString([]byte(raw))
	k, err := ParseKey(encoded)
	if err != nil {
		t.Fatal(err)
	}
	inside := struct{ hidden Key }{k}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t"} {
		if s := fmt.Sprintf(verb, k); s != redacted {
			t.Errorf("%s prints %s", verb, s)
		}
		fmt.Fprintf(&out, verb+verb+verb, &k, inside, []Key{k})
	}
	j, err := json.Marshal(map[string]any{"key": k, "keys": []Key{k}})
	if err != nil {
		t.Error(err)
	}
	y, err := yaml.Marshal(map[string]any{"key": k, "keys": []Key{k}})
	if err != nil {
		t.Error(err)
	}
	out.Write(append(j, y...))
	slog.New(slog.NewTextHandler(&out, nil)).Info("key", "key", k, "keys", []Key{k}, "inside", inside)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("key", "key", k, "keys", []Key{k}, "inside", inside)
	fmt.Fprintf(&out, "%v %+v %#v", Encrypt(&Memory{}, k), Encrypt(&Memory{}, k), Encrypt(&Memory{}, k))
	for _, s := range []string{raw, encoded, fmt.Sprintf("%x", raw), fmt.Sprintf("%X", raw), fmt.Sprint([]byte(raw)), raw[7:15]} {
		if strings.Contains(out.String(), s) {
			t.Errorf("%q is shown in\n%s", s, out.String())
		}
	}
}

func TestEncryptHides(t *testing.T) {
	t.Parallel()
	var m Memory
	s := Encrypt(&m, newTestKey(t))
	const data = "s+/=&% access and refresh"
	if err := s.Save(t.Context(), "a", Record{Data: []byte(data)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), "b", Record{Data: []byte(data)}); err != nil {
		t.Fatal(err)
	}
	a, b := m.records["a"].Data, m.records["b"].Data
	if !sealed(a) || !sealed(b) || sealed([]byte(data)) || sealed(nil) {
		t.Error("encrypted data is not known by its mark")
	}
	if bytes.Contains(a, []byte("access")) || bytes.Equal(a[len(sealMark)+8:][:12], b[len(sealMark)+8:][:12]) {
		t.Error("data is plain, or a nonce is used twice")
	}
}

func TestEncryptRotation(t *testing.T) {
	t.Parallel()
	var m Memory
	old, new := newTestKey(t), newTestKey(t)
	if err := Encrypt(&m, old).Save(t.Context(), "k", Record{Data: []byte("one")}); err != nil {
		t.Fatal(err)
	}
	both := Encrypt(&m, new, old)
	r, err := both.Load(t.Context(), "k")
	if err != nil || string(r.Data) != "one" {
		t.Fatalf("Load with both keys: %v", err)
	}
	if err := both.Save(t.Context(), "k", r); err != nil {
		t.Fatal(err)
	}
	if r, err = Encrypt(&m, new).Load(t.Context(), "k"); err != nil || string(r.Data) != "one" || r.Version != 2 {
		t.Errorf("Load with the new key alone: %v, %v", r, err)
	}
	if _, err := Encrypt(&m, old).Load(t.Context(), "k"); !errors.Is(err, ErrStore) {
		t.Errorf("Load with the old key alone: %v, want ErrStore", err)
	}
}

// A key that changes is used within a second. A value that is no key, or cannot be read, leaves the last in force.
func TestEncryptFollowsKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var m Memory
		one, two := NewKey(), NewKey()
		current, unreadable := one, error(nil)
		key, err := SecretKey(SecretFunc(func() (string, error) { return current + "\n", unreadable }))
		if err != nil {
			t.Fatal(err)
		}
		oldKey, err := SecretKey(SecretString(one))
		if err != nil {
			t.Fatal(err)
		}
		s := Encrypt(&m, key, oldKey)
		var r Record
		for _, step := range []struct {
			value string
			err   error
			want  string // the key that encrypts
		}{{one, nil, one}, {two, nil, two}, {"hunter2", nil, two}, {one, errors.New("gone"), two}, {one, nil, one}} {
			current, unreadable = step.value, step.err
			time.Sleep(time.Second)
			r.Data = []byte(step.value)
			if err := s.Save(t.Context(), "k", r); err != nil {
				t.Fatal(err)
			}
			want, err := ParseKey(step.want)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Encrypt(&m, want).Load(t.Context(), "k"); err != nil || string(got.Data) != step.value {
				t.Errorf("%+v: %v, %v", step, got, err)
			}
			if r, err = s.Load(t.Context(), "k"); err != nil || string(r.Data) != step.value {
				t.Errorf("%+v: %v, %v", step, r, err)
			}
		}
	})
	if _, err := SecretKey(SecretString("s+/=&%")); err == nil || strings.Contains(err.Error(), "s+/=&%") {
		t.Error(err)
	}
}

func TestEncryptRefuses(t *testing.T) {
	t.Parallel()
	key := newTestKey(t)
	const (
		plain   = `record "k" is not encrypted, though encryption_keys is set`
		foreign = `record "k" is encrypted with a key that is not among encryption_keys`
		changed = `record "k" was changed, or copied from another identity or time`
	)
	for name, tt := range map[string]struct {
		keys   []Key
		change func(m *Memory)
		want   string
	}{
		"another key":   {[]Key{newTestKey(t), newTestKey(t)}, nil, foreign},
		"no key":        {nil, nil, foreign},
		"zero key":      {[]Key{{}}, nil, foreign},
		"zero key more": {[]Key{key, {}}, nil, foreign},
		"plain":         {[]Key{key}, func(m *Memory) { m.records["k"] = &Record{Version: 2, Data: []byte("s+/=&%")} }, plain},
		"empty":         {[]Key{key}, func(m *Memory) { m.records["k"] = &Record{Version: 2} }, plain},
		"identity":      {[]Key{key}, func(m *Memory) { m.records["k"] = m.records["other"] }, changed},
		"older":         {[]Key{key}, func(m *Memory) { m.records["k"] = &Record{Version: 2, Data: m.records["first"].Data} }, changed},
		"version": {[]Key{key}, func(m *Memory) {
			m.records["k"].Version++
		}, changed},
		"mark alone": {[]Key{key}, func(m *Memory) {
			r := m.records["k"]
			r.Data = r.Data[:len(sealMark)]
		}, foreign},
		"no ciphertext": {[]Key{key}, func(m *Memory) {
			r := m.records["k"]
			r.Data = r.Data[:len(sealMark)+8]
		}, changed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := sealedTwice(t, key)
			if tt.change != nil {
				tt.change(m)
			}
			r, err := Encrypt(m, tt.keys...).Load(t.Context(), "k")
			if !errors.Is(err, ErrStore) || !strings.Contains(err.Error(), tt.want) || r.Version != 0 || r.Data != nil {
				t.Errorf("Load: %v, %v; want ErrStore with %q", r, err, tt.want)
			}
			if strings.Contains(err.Error(), "s+/") {
				t.Errorf("data shows in %v", err)
			}
		})
	}
}

// sealedTwice gives records at "k" and "other", of version 2; "first" keeps what "k" was before.
func sealedTwice(t *testing.T, key Key) *Memory {
	t.Helper()
	m := new(Memory)
	s := Encrypt(m, key)
	for version := range uint64(2) {
		for _, k := range []string{"k", "other"} {
			if err := s.Save(t.Context(), k, Record{Version: version, Data: []byte("s+/=&%")}); err != nil {
				t.Fatal(err)
			}
		}
		if version == 0 {
			m.records["first"] = m.records["k"]
		}
	}
	return m
}

func TestEncryptSeesEveryFlippedBit(t *testing.T) {
	t.Parallel()
	key := newTestKey(t)
	m := sealedTwice(t, key)
	s := Encrypt(m, key)
	r := m.records["k"]
	for i := range r.Data {
		for bit := range 8 {
			r.Data[i] ^= 1 << bit
			if _, err := s.Load(t.Context(), "k"); !errors.Is(err, ErrStore) {
				t.Errorf("byte %d, bit %d flipped: %v, want ErrStore", i, bit, err)
			}
			r.Data[i] ^= 1 << bit
		}
	}
	if _, err := s.Load(t.Context(), "k"); err != nil {
		t.Error(err)
	}
}

// Without a key nothing is saved in the open.
func TestEncryptWithoutKey(t *testing.T) {
	t.Parallel()
	for name, keys := range map[string][]Key{"none": nil, "zero": {{}}, "zero first": {{}, newTestKey(t)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m Memory
			s := Encrypt(&m, keys...)
			if err := s.Save(t.Context(), "k", Record{Data: []byte("s+/=&%")}); !errors.Is(err, ErrStore) || len(m.records) != 0 {
				t.Errorf("Save: %v, %d records; want ErrStore and none", err, len(m.records))
			}
			if r, err := s.Load(t.Context(), "k"); err != nil || r.Version != 0 {
				t.Errorf("Load of the absent record: %v, %v", r, err)
			}
		})
	}
}

type failingStore struct {
	Memory
	err error
}

func (s *failingStore) Load(context.Context, string) (Record, error) {
	return Record{Version: 1, Data: []byte("s+/=&%")}, s.err
}
func (s *failingStore) Close() error { return s.err }

func TestEncryptForwards(t *testing.T) {
	t.Parallel()
	inner := &failingStore{err: errors.New("inner")}
	s := Encrypt(inner, newTestKey(t)).(*encrypted)
	if _, err := s.Load(t.Context(), "k"); err != inner.err {
		t.Errorf("Load: %v", err)
	}
	if err := s.Close(); err != inner.err {
		t.Errorf("Close: %v", err)
	}
	if err := Encrypt(&Memory{}).(*encrypted).Close(); err != nil {
		t.Errorf("Close over a store that has none: %v", err)
	}
}

func FuzzEncryptedLoad(f *testing.F) {
	key, err := ParseKey("OFHmCmtzKHGkOxVYmZKbWXY2pJSXkPsaIo6/BCWEgn0=")
	if err != nil {
		f.Fatal(err)
	}
	var m Memory
	if err := Encrypt(&m, key).Save(context.Background(), "another", Record{Data: []byte("data")}); err != nil {
		f.Fatal(err)
	}
	f.Add(m.records["another"].Data)
	f.Add([]byte(sealMark))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &Memory{records: map[string]*Record{"k": {Version: 1, Data: data}}}
		if r, err := Encrypt(m, key).Load(t.Context(), "k"); !errors.Is(err, ErrStore) {
			t.Fatalf("forged: %q, %v", r.Data, err)
		}
	})
}
