package auth

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/itsmauth/itsmauth/internal/follow"
)

const keySize = 32

// A Key encrypts records, see [Encrypt]. It is always printed and marshalled as [redacted]. Keys come
// from [ParseKey]; the zero Key encrypts nothing.
type Key struct{ secret }

// Embedding Secret gives Key its redacted printing. The alias keeps the field unexported, so a Key can
// only come from ParseKey.
type secret = Secret

// NewKey makes a random key, in the form that [ParseKey] reads.
func NewKey() string {
	b := make([]byte, keySize)
	rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}

// ParseKey reads a key: base64 (RFC 4648 section 4) of 32 bytes. Its error does not show s.
func ParseKey(s string) (Key, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != keySize {
		return Key{}, errors.New("an encryption key must be base64 of 32 bytes; `itsmauth keygen` makes one")
	}
	key := SecretString(string(b))
	key.raw = true
	return Key{key}, nil
}

// SecretKey is the key in s, in the form that [ParseKey] reads. While it is used, [Encrypt] reads s again once a
// second. If the first value is not a key, that is an error; later, the last key stays in force.
func SecretKey(s Secret) (Key, error) {
	key := Key{Secret{fixed: s.fixed, raw: true, read: func() (string, error) {
		text, err := s.Value()
		if err != nil {
			return "", err
		}
		key, err := ParseKey(text)
		if err != nil {
			return "", err
		}
		return key.Value()
	}}}
	_, err := key.Value()
	return key, err
}

// sealMark begins the data of each encrypted record. It is followed by 8 bytes that identify the key,
// the nonce and the ciphertext.
const sealMark = "\x00itsmauth sealed 1\x00"

// sealed reports whether data was written through [Encrypt].
func sealed(data []byte) bool { return bytes.HasPrefix(data, []byte(sealMark)) }

// Encrypt encrypts the records in s with AES-256-GCM. Each is bound to its key in the store and its
// version, so that one cannot replace another. The first key encrypts and all keys decrypt: to rotate,
// put a new key first and remove the old one when every record has been saved again.
//
// Load fails with [ErrStore] for a record that is not encrypted, that no key decrypts, or that was
// changed or copied from another one. Without keys, or with a zero Key, only absent records can be
// loaded. The result is an [io.Closer], which closes s if s is one.
func Encrypt(s Store, keys ...Key) Store {
	read := func() ([]recordCipher, error) { return newCiphers(keys) }
	ciphers, _ := read()
	if !slices.ContainsFunc(keys, func(k Key) bool { return !k.fixed }) {
		return &encrypted{s, func(context.Context) []recordCipher { return ciphers }}
	}
	return &encrypted{s, follow.New(time.Second, follow.Patience, read).Know(ciphers).Get}
}

type encrypted struct {
	Store
	ciphers func(context.Context) []recordCipher
}

func newCiphers(keys []Key) (ciphers []recordCipher, _ error) {
	for _, k := range keys {
		raw, err := k.Value()
		if err != nil {
			return nil, err
		}
		block, err := aes.NewCipher([]byte(raw))
		if err != nil {
			return nil, err
		}
		gcm, _ := cipher.NewGCMWithRandomNonce(block) // cannot fail for AES
		id := sha256.Sum256([]byte("itsmauth key id\x00" + raw))
		ciphers = append(ciphers, recordCipher{gcm, append([]byte(sealMark), id[:8]...)})
	}
	return ciphers, nil
}

type recordCipher struct {
	cipher.AEAD
	header []byte // sealMark and what identifies the key
}

// Format does not show the ciphers, which hold the keys.
func (e *encrypted) Format(f fmt.State, _ rune) { io.WriteString(f, "auth.Encrypt") }

func (e *encrypted) Load(ctx context.Context, key string) (Record, error) {
	r, err := e.Store.Load(ctx, key)
	if err != nil {
		return r, err
	}
	return e.decrypted(ctx, key, r)
}

func (e *encrypted) decrypted(ctx context.Context, key string, r Record) (_ Record, err error) {
	if r.Version == 0 {
		return r, nil
	}
	if r.Data, err = open(e.ciphers(ctx), r.Data, additional(key, r.Version)); err != nil {
		return Record{}, fmt.Errorf("%w: record %q %w", ErrStore, key, err)
	}
	return r, nil
}

// TryLock implements [TryLocker], or returns [errors.ErrUnsupported] if the store has none.
func (e *encrypted) TryLock(ctx context.Context, key string, known uint64) (Record, func(), error) {
	l, ok := e.Store.(TryLocker)
	if !ok {
		return Record{}, nil, errors.ErrUnsupported
	}
	r, unlock, err := l.TryLock(ctx, key, known)
	if err != nil || r.Version == known {
		return r, unlock, err
	}
	r, err = e.decrypted(ctx, key, r)
	return r, nil, err
}

func (e *encrypted) Save(ctx context.Context, key string, r Record) error {
	ciphers := e.ciphers(ctx)
	if len(ciphers) == 0 {
		return fmt.Errorf("%w: record %q was not saved: there is no encryption key", ErrStore, key)
	}
	first := ciphers[0]
	r.Data = first.Seal(bytes.Clone(first.header), nil, r.Data, additional(key, r.Version+1))
	return e.Store.Save(ctx, key, r)
}

func (e *encrypted) Close() error { return closeStore(e.Store) }

func open(ciphers []recordCipher, data, additional []byte) ([]byte, error) {
	if !sealed(data) {
		return nil, errors.New("is not encrypted, though encryption_keys is set; remove it to start anew")
	}
	for _, c := range ciphers {
		if text, ok := bytes.CutPrefix(data, c.header); ok {
			plain, err := c.Open(nil, nil, text, additional)
			if err != nil {
				return nil, errors.New("was changed, or copied from another identity or time; put the right one back, or remove it to start anew")
			}
			return plain, nil
		}
	}
	return nil, errors.New("is encrypted with a key that is not among encryption_keys; add that key, or remove the record to start anew")
}

// additional returns the data to which a record is bound. The version has a fixed length, so no two
// records have the same data.
func additional(key string, version uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(key), version)
}
