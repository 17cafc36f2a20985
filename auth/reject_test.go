package auth_test

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

func TestRejected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, nil)
		old, _ := s.Token(t.Context())
		if s.Rejected(response(401, "wrong password"), old) || s.Rejected(response(200, ""), old) {
			t.Error("a response about the request drops the token")
		}
		resp := response(401, "token refused")
		if !s.Rejected(resp, old) {
			t.Error("a refused token stays")
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != "token refused" {
			t.Errorf("body is now %q", b)
		}
		if got := get(t, s); got != "T2" {
			t.Errorf("next token %s", got)
		}
		if !s.Rejected(response(401, "token"), old) || get(t, s) != "T2" {
			t.Error("a late refusal of the old token drops the new one")
		}
	})
}

// A product that refuses every token makes a handful of exchanges a minute.
func TestEndlessRefusal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, nil)
		for range 600 {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if s.Rejected(response(401, "token"), tok) {
				if tok, err = s.Token(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.Rejected(response(401, "token"), tok)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.calls.Load(); n < 4 || n > 8 {
			t.Errorf("%d exchanges in a minute", n)
		}
	})
}

// Tokens that work for a moment and are then killed elsewhere: three exchanges, then one in 5 s.
func TestKilledElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: time.Hour}
		s := newSession(t, p, nil)
		for range 600 {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(200, ""), tok)
			s.Rejected(response(401, "token"), tok)
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.calls.Load(); n < 12 || n > 16 {
			t.Errorf("%d exchanges in a minute, want 1 + 3 + one in 5 s", n)
		}
	})
}

// A long rest saves up no more than the row of three.
func TestKilledElsewhereAfterRest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{lifetime: 24 * time.Hour}
		s := newSession(t, p, nil)
		refuse := func() {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(200, ""), tok)
			s.Rejected(response(401, "token"), tok)
		}
		refuse()
		time.Sleep(time.Hour)
		for range 100 {
			refuse()
		}
		if n := p.calls.Load(); n != 5 {
			t.Errorf("%d exchanges, want 1 + 1 + 3", n)
		}
	})
}

// An incident that is long over does not lengthen the next one's back-off.
func TestForcedBackoffIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSession(t, &product{lifetime: time.Hour}, nil)
		refused := func() (dropped bool) {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s.Rejected(response(401, "token"), tok)
		}
		for range 3000 {
			refused()
			time.Sleep(100 * time.Millisecond)
		}
		for range 24 { // hours in which all is well
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(200, ""), tok)
			time.Sleep(time.Hour)
		}
		if !refused() || refused() {
			t.Fatal("want a drop, and then a back-off")
		}
		start := time.Now()
		for !refused() {
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(start); d > 1100*time.Millisecond {
			t.Errorf("the back-off begins with %s, want 1s", d)
		}
	})
}

// What a TokenSource hands out are copies.
func TestAcceptedByCopy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSession(t, &product{lifetime: time.Hour}, nil)
		src := auth.TokenSource(t.Context(), s)
		for i, status := range []int{401, 200, 401} {
			tok, err := src.Token()
			if err != nil {
				t.Fatal(err)
			}
			if dropped := s.Rejected(response(status, "token"), tok); dropped != (status == 401) {
				t.Errorf("response %d: dropped is %t", i, dropped)
			}
		}
	})
}

// counting counts for which tokens it was asked for headers.
type counting struct {
	*product
	headers map[string]int
}

func (c counting) Header(tok *oauth2.Token) http.Header {
	c.headers[tok.AccessToken]++
	return c.product.Header(tok)
}

func TestHeaderOnceAToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := new(auth.Memory)
		for _, who := range []string{"who obtained it", "who adopted it"} {
			c := counting{&product{lifetime: time.Hour}, map[string]int{}}
			s := newSession(t, c, &auth.Options{Store: store})
			if _, err := s.Status(t.Context()); err != nil || len(c.headers) > 0 && who == "who obtained it" {
				t.Errorf("Status: headers of %v, %v", c.headers, err)
			}
			clear(c.headers)
			for range 3 {
				tok, err := s.Token(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				s.Header(tok)
			}
			if c.headers["T1"] != 1 {
				t.Errorf("%s: headers of %v", who, c.headers)
			}
		}
	})
}

// A server that hands out the same token again does not end in a loop.
func TestSameTokenAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &product{answer: func(int) *oauth2.Token { return &oauth2.Token{AccessToken: "same", ExpiresIn: 3600} }}
		s := newSession(t, p, nil)
		for range 50 {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Rejected(response(401, "token"), tok)
		}
		if n := p.calls.Load(); n != 2 {
			t.Errorf("%d exchanges, want 2", n)
		}
	})
}
