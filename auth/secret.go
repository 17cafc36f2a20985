package auth

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
)

const redacted = "[redacted]"

// maxSecret is the largest file that is read as a secret.
const maxSecret = 1 << 20

// A Secret is read each time it is used, so a change of its file or environment variable takes effect
// without a restart. It is always printed and marshalled as [redacted]. The zero Secret is absent.
type Secret struct{ read func() (string, error) }

// SecretString is a secret that never changes.
func SecretString(s string) Secret {
	return SecretFunc(func() (string, error) { return s, nil })
}

// SecretFile is the content of a file of at most 1 MiB, without one trailing newline.
func SecretFile(path string) Secret {
	return SecretFunc(func() (string, error) {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
		switch {
		case err != nil:
			return "", err
		case len(b) > maxSecret:
			return "", fmt.Errorf("%s is larger than 1 MiB", path)
		}
		if line, ok := bytes.CutSuffix(b, []byte("\n")); ok {
			b = bytes.TrimSuffix(line, []byte("\r"))
		}
		return string(b), nil
	})
}

// SecretEnv is the value of an environment variable, which must be set.
func SecretEnv(name string) Secret {
	return SecretFunc(func() (string, error) {
		v, ok := os.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("environment variable %s is not set", name)
		}
		return v, nil
	})
}

// SecretFunc is what f returns, for example from a vault. f is called concurrently. Its errors are
// shown, so they must not contain the secret.
func SecretFunc(f func() (string, error)) Secret { return Secret{f} }

// Value reads the secret. The value of the zero Secret is "".
func (s Secret) Value() (string, error) {
	if s.read == nil {
		return "", nil
	}
	return s.read()
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
