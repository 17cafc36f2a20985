package auth_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

// keyed is a product whose requests carry a second key beside the token.
type keyed struct {
	product
	key     auth.Secret
	headers int
}

func (p *keyed) Header(tok *oauth2.Token) http.Header {
	p.headers++
	h := p.product.Header(tok)
	if key, err := p.key.Value(); err == nil {
		h.Set("X-Key", key)
	}
	return h
}

// source is where a secret comes from. It is called by one goroutine at a time.
type source struct {
	value string
	err   error
	hang  chan struct{}
	reads int
}

func (s *source) secret() auth.Secret {
	return auth.SecretFunc(func() (string, error) {
		s.reads++
		if s.hang != nil {
			<-s.hang
		}
		return s.value, s.err
	})
}

// Header is called once a token, and again within a second of a change of a secret.
func TestHeaderFollowsSecrets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &source{value: "one"}
		p := &keyed{product: product{lifetime: time.Hour}, key: src.secret()}
		s := auth.New(p, &auth.Options{Secrets: []auth.Secret{p.key}})
		defer s.Close(t.Context())
		key := func() string {
			t.Helper()
			tok, err := s.Token(t.Context())
			if err != nil || tok.AccessToken != "T1" {
				t.Fatal(tok, err)
			}
			return s.Header(tok).Get("X-Key")
		}
		for _, step := range []struct {
			name  string
			value string
			err   error
			want  string
			made  int // how often Header was called
		}{
			{"the first", "one", nil, "one", 1},
			{"no change", "one", nil, "one", 1},
			{"a change", "two", nil, "two", 2},
			{"no change after it", "two", nil, "two", 2},
			{"unreadable", "", errors.New("gone"), "two", 2},
			{"readable again", "two", nil, "two", 2},
			{"back", "one", nil, "one", 3},
		} {
			src.value, src.err = step.value, step.err
			// A busy caller sees it within a second, whenever its calls come, and so does an idle one.
			for range 10 {
				time.Sleep(100*time.Millisecond - 1)
				key()
			}
			time.Sleep(10 * time.Nanosecond)
			if got := key(); got != step.want || p.headers != step.made {
				t.Errorf("%s: %s after %d calls, want %s after %d", step.name, got, p.headers, step.want, step.made)
			}
			if step.err != nil {
				continue
			}
			src.value = "idle"
			time.Sleep(time.Second)
			if got := key(); got != "idle" {
				t.Errorf("%s, idle: %s", step.name, got)
			}
			src.value = step.value
			time.Sleep(time.Second)
			key()
			p.headers = step.made
		}
		reads := src.reads
		for range 10_000 {
			time.Sleep(time.Millisecond)
			key()
		}
		if n := src.reads - reads; n > 12 {
			t.Errorf("%d reads in 10 s", n)
		}
	})
}

// A secret that cannot change is not read again. An idle session reads no secret.
func TestHeaderOfFixedSecrets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &keyed{product: product{lifetime: time.Hour}, key: auth.SecretString("x")}
		src := &source{value: "x"}
		fixed := auth.New(p, &auth.Options{Secrets: []auth.Secret{p.key}})
		defer fixed.Close(t.Context())
		idle := auth.New(&product{lifetime: time.Hour}, &auth.Options{Secrets: []auth.Secret{src.secret()}})
		defer idle.Close(t.Context())
		if _, err := idle.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		reads := src.reads
		for range 10 {
			if _, err := fixed.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if p.headers != 1 || src.reads != reads {
			t.Errorf("%d headers, %d reads", p.headers, src.reads-reads)
		}
	})
}

// bare is a product whose requests carry no headers of the token, because they are signed.
type bare struct{ keyed }

func (p *bare) Header(*oauth2.Token) http.Header { p.headers++; return nil }

// No headers at all are also made once a token.
func TestHeaderOfSigner(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &bare{keyed{product: product{lifetime: time.Hour}}}
		s := auth.New(p, &auth.Options{Secrets: []auth.Secret{(&source{value: "x"}).secret()}})
		defer s.Close(t.Context())
		for range 10 {
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if p.headers != 1 {
			t.Errorf("%d headers", p.headers)
		}
	})
}

// A read that hangs keeps the last value, and holds one call for 50 ms.
func TestHeaderWhileReadsHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &source{value: "one"}
		p := &keyed{product: product{lifetime: time.Hour}, key: src.secret()}
		s := auth.New(p, &auth.Options{Secrets: []auth.Secret{p.key}})
		defer s.Close(context.Background())
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		src.hang, src.value = make(chan struct{}), "two"
		time.Sleep(time.Minute)
		for _, want := range []time.Duration{50 * time.Millisecond, 0, 0} {
			start := time.Now()
			tok, err := s.Token(t.Context())
			if took := time.Since(start); err != nil || s.Header(tok).Get("X-Key") != "one" || took != want {
				t.Errorf("%v, %v after %s, want %s", s.Header(tok), err, took, want)
			}
			time.Sleep(100 * time.Millisecond) // or Token would not look
		}
		close(src.hang)
		time.Sleep(time.Second)
		tok, err := s.Token(t.Context())
		if err != nil || s.Header(tok).Get("X-Key") != "two" {
			t.Errorf("%v, %v", s.Header(tok), err)
		}
	})
}
