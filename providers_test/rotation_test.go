package providers_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

// A volume has a secret's file, and a way to change it.
type volume struct {
	path  string
	write func(secret string) error
}

// kubernetes writes a secret like a kubelet: the file is a link into ..data, which is a link to a directory
// named after the time, and is replaced by rename.
func kubernetes(dir string) volume {
	n := 0
	return volume{filepath.Join(dir, "client_secret"), func(secret string) error {
		n++
		version := fmt.Sprintf("..2026_11_21_%d", n)
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, version, "client_secret"), []byte(secret), 0o600); err != nil {
			return err
		}
		if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			return err
		}
		if n == 1 {
			return os.Symlink(filepath.Join("..data", "client_secret"), filepath.Join(dir, "client_secret"))
		}
		return os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..2026_11_21_%d", n-1)))
	}}
}

func plain(dir string) volume {
	path := filepath.Join(dir, "client_secret")
	return volume{path, func(secret string) error { return os.WriteFile(path, []byte(secret+"\n"), 0o600) }}
}

// TestRotation changes the secret 20 times under traffic, in the file first or at the product first. The
// product then invalidates all tokens. Calls may fail while the two secrets differ, and for a second more,
// until the file is read again. No other call fails. The wrong secret is tried once.
func TestRotation(t *testing.T) {
	t.Parallel()
	for name, lay := range map[string]func(string) volume{"kubernetes": kubernetes, "overwritten": plain} {
		for _, productFirst := range []bool{false, true} {
			for _, oauth2 := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, product first %t, oauth2 %t", name, productFirst, oauth2), func(t *testing.T) {
					t.Parallel()
					v := lay(t.TempDir())
					if err := v.write(beyondtrusttest.DefaultClientSecret); err != nil {
						t.Fatal(err)
					}
					synctest.Test(t, func(t *testing.T) { rotate(t, v, productFirst, oauth2) })
				})
			}
		}
	}
}

func rotate(t *testing.T, v volume, productFirst, oauth2 bool) {
	s := beyondtrusttest.NewServer(&beyondtrusttest.Options{
		PerSecond: -1, PerHour: -1, TokenLifetime: 24 * time.Hour, Listener: &silence{closed: make(chan struct{})},
	})
	defer s.Close()
	const (
		times = 20
		apart = 12 * time.Second
		gap   = 5 * time.Second // how long file and product differ, if the product is first
		look  = time.Second     // the longest time until a new secret is read
	)
	p := &product{name: "beyondtrust", oauth2: oauth2, url: s.URL, handler: s,
		settings: map[string]string{"client_id": beyondtrusttest.DefaultClientID, "client_secret": "${file:" + v.path + "}"}}
	conns := parse(t, p.yaml("test", "transport: {rate_limits: []}"), config.WithWrap(func(string, http.RoundTripper) http.RoundTripper { return inMemory{s} }))
	c, err := conns.Get("test")
	if err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	var excused time.Time // earlier calls may fail
	var calls, failed int
	var workers sync.WaitGroup
	for i := range 2 {
		workers.Go(func() {
			time.Sleep(time.Duration(i) * 200 * time.Millisecond)
			for ; ctx.Err() == nil; time.Sleep(400 * time.Millisecond) {
				status, _, err := call(context.Background(), c, "GET", "/api/config/v1/jump-item", "")
				mu.Lock()
				calls++
				if err != nil || status != http.StatusOK {
					if failed++; time.Now().After(excused) {
						t.Errorf("a call failed that need not: HTTP %d, %v", status, err)
					}
					if err != nil && !errors.Is(err, auth.ErrCredentials) {
						t.Errorf("not for the credentials: %v", err)
					}
				}
				mu.Unlock()
			}
		})
	}
	change := func(secret string) {
		if err := v.write(secret); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(apart)
	for i := range times {
		secret := fmt.Sprintf("n%d+w/%%=&", i)
		if productFirst {
			mu.Lock()
			excused = time.Now().Add(gap + look)
			mu.Unlock()
			s.SetSecret(secret)
			time.Sleep(gap)
			change(secret)
		} else {
			change(secret)
			time.Sleep(gap)
			s.SetSecret(secret)
		}
		time.Sleep(apart)
	}
	stop()
	workers.Wait()
	st := s.Stats()
	t.Logf("%d calls, %d failed, %d exchanges, %d token requests", calls, failed, st.Exchanges, st.TokenRequests)
	want := times + 1
	if st.Exchanges != want || calls < 1000 || productFirst != (failed > 0) {
		t.Errorf("%d calls, %d failed, %d exchanges", calls, failed, st.Exchanges)
	}
	if productFirst {
		want += times // once per rotation with the old secret
	}
	if st.TokenRequests != want {
		t.Errorf("%d token requests, want %d", st.TokenRequests, want)
	}
}

// silence is a listener without connections.
type silence struct {
	once   sync.Once
	closed chan struct{}
}

func (l *silence) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l *silence) Addr() net.Addr            { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (l *silence) Close() error              { l.once.Do(func() { close(l.closed) }); return nil }

// inMemory is a transport to a handler.
type inMemory struct{ http.Handler }

func (m inMemory) RoundTrip(req *http.Request) (*http.Response, error) {
	r := req.Clone(req.Context())
	r.RequestURI, r.RemoteAddr, r.Host = req.URL.RequestURI(), "192.0.2.1:1", req.URL.Host
	if r.Body == nil {
		r.Body = http.NoBody
	}
	defer r.Body.Close()
	rec := httptest.NewRecorder()
	m.ServeHTTP(rec, r)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}
