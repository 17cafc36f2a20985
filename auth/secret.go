package auth

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/itsmauth/itsmauth/internal/follow"
	"github.com/itsmauth/itsmauth/internal/textfile"
)

const redacted = "[redacted]"

// A Secret is read each time it is used, so a change of its file or environment variable takes effect
// without a restart. It is always printed and marshalled as [redacted]. The zero Secret is absent.
type Secret struct {
	read  func() (string, error)
	slow  *follow.Func[string] // calls read, if that may take long; else nil
	fresh *follow.Func[string] // as slow, of a value that the product may have refused; nil is slow
	fixed bool                 // read always returns the same
	raw   bool                 // the value is bytes, not text: a [Key]'s
}

// SecretString is a secret that never changes.
func SecretString(s string) Secret {
	return Secret{read: func() (string, error) { return s, nil }, fixed: true}
}

// SecretFile is the content of a file of at most 1 MiB. If reading it takes more than 50 ms, the last content is
// used; the new one, when it is there.
func SecretFile(path string) Secret {
	return SecretFunc(func() (string, error) {
		text, err := textfile.Read(path)
		if err != nil {
			return "", err
		}
		return clean(path, text)
	}).Within(follow.Patience)
}

// SecretEnv is the value of an environment variable, which must be set.
func SecretEnv(name string) Secret {
	return Secret{read: func() (string, error) {
		text, ok := os.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("environment variable %s is not set", name)
		}
		return clean("environment variable "+name, text)
	}}
}

// secretPatience is how long a use of a [SecretFunc] waits for it, if there is an earlier value.
const secretPatience = 5 * time.Second

// SecretFunc is what f returns, for example from a vault. f is called at each use, which is once a second or
// less while calls are made with it, and once at a time. If it does not return within 5 s, what it returned
// last is used. With a [Static] provider f is also called when the product refuses the credentials. Its errors are
// shown, so they must not contain the secret.
func SecretFunc(f func() (string, error)) Secret {
	return Secret{read: f}.Within(secretPatience)
}

// Within returns the same secret, but if there is an earlier value, a use waits for d, not for 50 ms or 5 s.
func (s Secret) Within(d time.Duration) Secret {
	s.slow = follow.NewFunc(d, s.read)
	return s
}

// SecretCached is [SecretFunc] for a source that is not to be asked at each use, such as a vault. read keeps the value
// that the source gave, and asks the source again if the value is older than maxAge: a minute or, while the product
// refuses the credentials, a second.
func SecretCached(read func(maxAge time.Duration) (string, error)) Secret {
	within := func(maxAge time.Duration) func() (string, error) {
		return func() (string, error) { return read(maxAge) }
	}
	s := SecretFunc(within(time.Minute))
	s.fresh = follow.NewFunc(secretPatience, within(time.Second))
	return s
}

// Value reads the secret, without a byte order mark and without newlines at its end. A secret in UTF-16, one
// with a control character, or one of several lines that is neither PEM nor JSON, is an [ErrSecret]. The
// value of the zero Secret is "".
func (s Secret) Value() (string, error) {
	switch {
	case s.slow != nil:
		return s.checked(s.slow.Call())
	case s.read != nil:
		return s.checked(s.read())
	}
	return "", nil
}

// freshValue is Value after the product has refused the credentials.
func (s Secret) freshValue() (string, error) {
	if s.fresh != nil {
		return s.checked(s.fresh.Call())
	}
	return s.Value()
}

// valueAfter is freshValue, read after valueAfter was called, for which it waits until ctx ends.
func (s Secret) valueAfter(ctx context.Context) (string, error) {
	if f := cmp.Or(s.fresh, s.slow); f != nil {
		return s.checked(f.Again(ctx))
	}
	return s.Value()
}

func (s Secret) checked(text string, err error) (string, error) {
	if err == nil && !s.raw {
		text, err = clean("it", text)
	}
	if err != nil {
		return text, &secretError{err}
	}
	return text, nil
}

// A secretError shows that nothing was sent, because a secret could not be read.
type secretError struct{ error }

func (e *secretError) Unwrap() error { return e.error }

// clean returns the text of the secret what, as it is sent.
func clean(what, text string) (string, error) {
	text, err := textfile.Secret(text)
	if err != nil {
		return "", fmt.Errorf("%w: %s %w", ErrSecret, what, err)
	}
	return text, nil
}

// IsZero reports whether the secret is absent.
func (s Secret) IsZero() bool { return s.read == nil }

// Format shows [redacted] for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// String is [redacted].
func (s Secret) String() string { return redacted }

// GoString is [redacted].
func (s Secret) GoString() string { return redacted }

// LogValue is [redacted].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON gives "[redacted]".
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(redacted)), nil }

// MarshalText gives [redacted].
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalYAML gives [redacted].
func (s Secret) MarshalYAML() (any, error) { return redacted, nil }
