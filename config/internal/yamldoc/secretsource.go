package yamldoc

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/follow"
	"github.com/itsmauth/itsmauth/internal/textfile"
)

// A SecretSource reads what a reference such as ${vault:kv/itsm#secret} stands for: ref is what follows the colon.
type SecretSource = func(ctx context.Context, ref string) (string, error)

// A sourceRef is the scheme and the rest of ${scheme:rest}.
type sourceRef struct{ scheme, rest string }

func (r sourceRef) String() string { return r.scheme + ":" + r.rest }

// sourceTimeout limits each read.
const sourceTimeout = 10 * time.Second

// sourcePatience is how long a use of a value waits for a newer one.
const sourcePatience = 5 * time.Second

// fromSources are the secrets of a document that come from a [SecretSource].
type fromSources struct {
	sources map[string]SecretSource
	loading *textfile.Files // by the text of a reference; all have 10 s together
	known   map[sourceRef]*follow.Value[string]
}

func newFromSources(sources map[string]SecretSource) *fromSources {
	s := &fromSources{sources: sources, known: map[sourceRef]*follow.Value[string]{}}
	s.loading = textfile.NewFiles(func(text string) (string, error) {
		scheme, rest, _ := strings.Cut(text, ":")
		return s.read(sourceRef{scheme, rest})
	})
	return s
}

func (s *fromSources) read(r sourceRef) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sourceTimeout)
	defer cancel()
	text, err := s.sources[r.scheme](ctx, r.rest)
	switch {
	case err != nil && ctx.Err() != nil:
		return "", fmt.Errorf("%s does not answer", r)
	case err != nil:
		return "", fmt.Errorf("%s: %w", r, err)
	}
	if text, err = textfile.Secret(text); err != nil {
		return "", fmt.Errorf("%w: %s %w", auth.ErrSecret, r, err)
	}
	if text == "" {
		return "", fmt.Errorf("%s is empty", r)
	}
	return text, nil
}

// begin begins to read r.
func (s *fromSources) begin(r sourceRef) { s.loading.Begin(r.String()) }

// load waits for what begin began, and begins it if necessary.
func (s *fromSources) load(r sourceRef) (string, error) {
	text, err := s.loading.Read(r.String())
	if err == nil && s.known[r] == nil {
		s.known[r] = follow.New(0, sourcePatience, func() (string, error) { return s.read(r) }).Know(text)
	}
	return text, err
}

// within returns r's value, which was read at most maxAge ago, or is older because reading fails or hangs.
func (s *fromSources) within(r sourceRef, maxAge time.Duration) string {
	return s.known[r].GetEvery(context.Background(), maxAge)
}

func refuseSource(r sourceRef) (string, error) {
	return "", fmt.Errorf("${%s: } gives secrets, and this setting is none", r.scheme)
}
