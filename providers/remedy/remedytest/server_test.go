package remedytest

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
)

func start(t *testing.T, o *Options) *Server {
	t.Helper()
	s := NewServer(o)
	t.Cleanup(s.Close)
	return s
}

// A response with its body.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) json(t *testing.T) (v map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("%d %q: %v", r.status, r.body, err)
	}
	return v
}

// client keeps connections and does not follow redirects.
func client() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func do(t *testing.T, c *http.Client, method, to, body string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequest(method, to, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header[header[i]] = append(req.Header[header[i]], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

func post(t *testing.T, to string, f url.Values, header ...string) reply {
	t.Helper()
	return do(t, http.DefaultClient, "POST", to, f.Encode(),
		append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)...)
}

// with returns a copy of f in which pairs of name and value are set or, if the value is "", removed.
func with(f url.Values, pairs ...string) url.Values {
	out := url.Values{}
	for k, v := range f {
		out[k] = v
	}
	for i := 0; i < len(pairs); i += 2 {
		if out.Set(pairs[i], pairs[i+1]); pairs[i+1] == "" {
			out.Del(pairs[i])
		}
	}
	return out
}

func api(t *testing.T, s *Server, token string) reply {
	t.Helper()
	return do(t, http.DefaultClient, "GET", s.URL+"/api/arsys/v1/entry/HPD:IncidentInterface", "", "Authorization", "Bearer "+token)
}

const refused623 = `[{"messageType":"ERROR","messageText":"Authentication failed","messageNumber":623,"messageAppendedText":"Allen+/=\u0026%"}]`

func TestKilledTokens(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		kill             func(s *Server, access string)
		access, refresh_ int
	}{
		"nothing":       {func(*Server, string) {}, 200, 200},
		"Revoke":        {func(s *Server, access string) { s.Revoke(access) }, 401, 200},
		"RevokeAll":     {func(s *Server, _ string) { s.RevokeAll() }, 401, 200},
		"Expire":        {func(s *Server, _ string) { s.Expire() }, 401, 200},
		"RevokeRefresh": {func(s *Server, _ string) { s.RevokeRefresh() }, 200, 400},
		"SetSecret":     {func(s *Server, _ string) { s.SetSecret("another") }, 200, 401},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, nil)
			access, refreshed := login(t, s)
			tt.kill(s, access)
			got := api(t, s, access)
			if got.status != tt.access {
				t.Errorf("API call: %d, want %d", got.status, tt.access)
			}
			if got.status == 401 && got.body != refused623 {
				t.Errorf("refused with %s", got.body)
			}
			if got := s.Stats().Rejected; (got == 1) != (tt.access == 401) {
				t.Errorf("%d rejected", got)
			}
			if got := refresh(t, s, refreshed); got.status != tt.refresh_ {
				t.Errorf("refresh: %d, want %d: %s", got.status, tt.refresh_, got.body)
			}
		})
	}
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	access, refreshed := login(t, s)
	s.Throttle(2, "7")
	for _, got := range []reply{api(t, s, access), refresh(t, s, refreshed)} {
		if got.status != 429 || got.header.Get("Retry-After") != "7" {
			t.Errorf("%d, Retry-After %q", got.status, got.header.Get("Retry-After"))
		}
	}
	if got := api(t, s, access); got.status != 200 {
		t.Errorf("the third is answered with %d", got.status)
	}
	s.Throttle(1, "")
	if got := api(t, s, access); got.status != 429 || got.header.Values("Retry-After") != nil {
		t.Errorf("%d, Retry-After %q", got.status, got.header.Values("Retry-After"))
	}
	if got := refresh(t, s, refreshed); got.status != 200 {
		t.Errorf("a throttled refresh spent the token: %s", got.body)
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	key() // made outside the bubble, where it is slow
	const ms = time.Millisecond
	for _, tt := range []struct {
		name             string
		o                Options
		code, access, re time.Duration
		ok               bool
	}{
		{"in time", Options{}, 180*time.Second - ms, time.Hour - ms, 1440*time.Hour - ms, true},
		{"too late", Options{}, 180 * time.Second, time.Hour, 1440 * time.Hour, false},
		{"in time by options", Options{TokenLifetime: 3 * time.Second, RefreshLifetime: 5 * time.Second}, 0, 3*time.Second - ms, 5*time.Second - ms, true},
		{"too late by options", Options{TokenLifetime: 3 * time.Second, RefreshLifetime: 5 * time.Second}, time.Hour, 3 * time.Second, 5 * time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := memnet.Listen()
				tt.o.Listener = l
				s := NewServer(&tt.o)
				defer s.Close()
				c := l.Client()
				defer c.CloseIdleConnections()
				form := func(f url.Values) reply {
					return do(t, c, "POST", s.SSOURL+"/oauth2/token", f.Encode(), "Content-Type", "application/x-www-form-urlencoded")
				}
				ok := func(what string, got reply) {
					t.Helper()
					if (got.status == 200) != tt.ok {
						t.Errorf("%s: %d %s", what, got.status, got.body)
					}
				}
				fresh := redeemForm(consented(t, s, nil))
				late := redeemForm(consented(t, s, nil))
				form(fresh).json(t)
				time.Sleep(tt.code)
				ok("code", form(late))

				tok := form(redeemForm(consented(t, s, nil))).json(t)
				time.Sleep(tt.access)
				ok("access token", do(t, c, "GET", s.URL+"/api/arsys/v1/entry/HPD:IncidentInterface", "", "Authorization", "Bearer "+tok["access_token"].(string)))
				time.Sleep(tt.re - tt.access)
				ok("refresh token", form(refreshForm(tok["refresh_token"].(string))))
				if n := s.Stats().Reuses; n != 0 {
					t.Errorf("%d reuses", n)
				}
			})
		})
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	key()
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen()
		s := NewServer(&Options{Listener: l})
		defer s.Close()
		s.Delay(200 * time.Millisecond)
		c := l.Client()
		defer c.CloseIdleConnections()
		first := s.MintRefresh()
		send := func(ctx context.Context, to string, f url.Values) (reply, error) {
			req, err := http.NewRequestWithContext(ctx, "POST", s.URL+to, strings.NewReader(f.Encode()))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			resp, err := c.Do(req)
			if err != nil {
				return reply{}, err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return reply{resp.StatusCode, resp.Header, string(b)}, err
		}
		for _, to := range []string{"/rsso/oauth2/token", "/rsso/oauth2/v1.1/token", "/api/jwt/login"} {
			began := time.Now()
			if _, err := send(t.Context(), to, url.Values{}); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took != 200*time.Millisecond {
				t.Errorf("%s took %s", to, took)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := send(ctx, "/rsso/oauth2/token", refreshForm(first)); err == nil {
			t.Error("no delay")
		}
		got, err := send(t.Context(), "/rsso/oauth2/token", refreshForm(first))
		if err != nil || got.status != 400 || s.Stats().Reuses != 1 {
			t.Errorf("a token spent in vain: %v %+v %+v", err, got, s.Stats())
		}
	})
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	access, refreshed := login(t, s)
	var g sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for range 20 {
		g.Go(func() {
			got := refresh(t, s, refreshed)
			mu.Lock()
			statuses[got.status]++
			mu.Unlock()
		})
		g.Go(func() { api(t, s, access); s.Requests(); s.Raw(); s.Throttle(0, ""); s.Delay(0) })
	}
	g.Wait()
	if statuses[200] != 1 || statuses[400] != 19 {
		t.Errorf("a refresh token was spent more than once: %v", statuses)
	}
	if got := s.Stats(); got.Rotations != 1 || got.Reuses != 19 {
		t.Errorf("%+v", got)
	}
}
