package providers_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
)

func isInsecure(err error) bool { return errors.Is(err, auth.ErrInsecure) }

// forms returns all encodings of a canary, a secret that no output may contain.
func forms(canary string) []string {
	return []string{
		canary, url.QueryEscape(canary), url.PathEscape(canary), fmt.Sprintf("%q", canary),
		hex.EncodeToString([]byte(canary)), strings.ToUpper(hex.EncodeToString([]byte(canary))),
		base64.StdEncoding.EncodeToString([]byte(canary)), strings.Trim(fmt.Sprint([]byte(canary)), "[]"),
	}
}

// shown returns v in all ways in which Go formats values.
func shown(v any) string {
	var b strings.Builder
	func() {
		defer func() { recover() }() // yaml.v3 panics on what it cannot marshal
		if y, err := yaml.Marshal(v); err == nil {
			b.Write(y)
		}
	}()
	_, isError := v.(error)
	return b.String() + printed(v, !isError)
}

// A lockedBuffer is a log for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// query is a part of a URL that no message may show.
const query = "canary-in-the-query"

// TestCanary makes every provider fail in every way, and looks for its secrets, tokens, codes and queries
// in all output.
func TestCanary(t *testing.T) {
	t.Parallel()
	// Each response breaks the token endpoint or the API. %s is all secrets of the request.
	paths := map[string]func(p *product, echo func(r *http.Request) string){}
	for _, at := range []string{"token", "api"} {
		on := func(f func(w http.ResponseWriter, r *http.Request, secret string)) func(*product, func(*http.Request) string) {
			return func(p *product, echo func(*http.Request) string) {
				h := func(w http.ResponseWriter, r *http.Request) bool { f(w, r, echo(r)); return true }
				if at == "token" {
					p.revoke()
					p.breakAuth(h)
				} else {
					p.breakAPI(h)
				}
			}
		}
		for _, status := range []int{200, 301, 400, 401, 403, 404, 429, 500, 503} {
			paths[fmt.Sprintf("%s %d echo", at, status)] = on(func(w http.ResponseWriter, r *http.Request, secret string) {
				w.Header().Set("Location", "https://evil.example.org/?"+url.QueryEscape(secret))
				w.Header().Set("WWW-Authenticate", "Bearer error="+url.QueryEscape(secret))
				w.WriteHeader(status)
				io.WriteString(w, secret)
			})
			paths[fmt.Sprintf("%s %d code", at, status)] = on(func(w http.ResponseWriter, r *http.Request, secret string) {
				w.WriteHeader(status)
				json.NewEncoder(w).Encode(map[string]any{"error": strings.Fields(secret)[0], "error_description": secret, "message": secret})
			})
		}
		paths[at+" html"] = on(func(w http.ResponseWriter, r *http.Request, secret string) {
			fmt.Fprintf(w, "<html>%s</html>", secret)
		})
		paths[at+" reset"] = on(func(http.ResponseWriter, *http.Request, string) { panic(http.ErrAbortHandler) })
		paths[at+" garbage"] = on(func(w http.ResponseWriter, r *http.Request, secret string) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(conn, "%s\r\n\r\n", strings.ReplaceAll(secret, "\n", " "))
			conn.Close()
		})
		paths[at+" bad header"] = on(func(w http.ResponseWriter, r *http.Request, secret string) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n%s\r\n\r\n", strings.Fields(secret)[0], strings.Fields(secret)[0])
			conn.Close()
		})
		paths[at+" cut"] = on(func(w http.ResponseWriter, r *http.Request, secret string) {
			w.Header().Set("Content-Length", "1000000")
			io.WriteString(w, secret)
			panic(http.ErrAbortHandler)
		})
	}
	for name, sabotage := range paths {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, start := range []func(*testing.T, net.Listener) *product{beyondtrustAt, remedyAt, arJWTAt, webcommanderAt} {
				for _, oauth2 := range []bool{false, true} {
					synctest.Test(t, func(t *testing.T) { // failed exchanges are retried later
						l := memnet.Listen()
						network := l.Client()
						t.Cleanup(network.CloseIdleConnections)
						p := start(t, l)
						p.oauth2 = oauth2
						showsNothing(t, p, network, sabotage)
					})
				}
			}
		})
	}
}

// showsNothing makes p, which is reached through network, fail in one way.
func showsNothing(t *testing.T, p *product, network *http.Client, sabotage func(*product, func(*http.Request) string)) {
	var log lockedBuffer
	logger := slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 10}))
	conns := parse(t, p.yaml("test", "transport: {retry: {max_attempts: 2, min_backoff: 1ms, max_backoff: 2ms}, rate_limits: [], allow_http: true}"),
		config.WithLogger(logger), config.WithWrap(func(string, http.RoundTripper) http.RoundTripper { return network.Transport }))
	c := p.get(t, conns, "test")
	canaries := append([]string{query}, p.secrets...)
	var mu sync.Mutex
	learn := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		if len(s) > 7 {
			canaries = append(canaries, s)
		}
	}
	if tok, err := c.Authenticator().Token(t.Context()); err != nil {
		t.Fatal(err)
	} else {
		learn(tok.AccessToken)
	}
	sabotage(p, func(r *http.Request) string {
		body, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(body))
		for _, k := range []string{"refresh_token", "code", "client_secret", "password"} {
			learn(form.Get(k))
		}
		var fields map[string]string
		json.Unmarshal(body, &fields)
		learn(fields["auth_string"])
		learn(fields["refresh_token"])
		values := append(p.secrets, r.Header.Get("Authorization"), r.Header.Get("Access_token"), form.Get("refresh_token"), fields["auth_string"], query)
		return strings.TrimSpace(strings.Join(values, " "))
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var out strings.Builder
	for _, method := range []string{"GET", "POST"} {
		req, err := c.NewRequest(ctx, method, p.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.RawQuery += "&x=" + query
		resp, err := c.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			out.WriteString(shown(resp.Request.Header))
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			out.WriteString(shown(e))
		}
		_, err = c.Authenticator().Token(ctx)
		out.WriteString(shown(err))
	}
	st, err := c.Authenticator().(*auth.Session).Status(ctx)
	out.WriteString(shown(st) + shown(err))
	out.WriteString(shown(c) + shown(conns) + shown(c.Authenticator()) + shown(c.Client()))
	mu.Lock() // an exchange may still be running
	seen := slices.Clone(canaries)
	mu.Unlock()
	for _, canary := range seen {
		for _, form := range forms(canary) {
			if i := strings.Index(out.String(), form); i >= 0 {
				t.Errorf("%s: %q is shown: %.200s", p.id(), canary, out.String()[max(0, i-100):])
			}
			if i := strings.Index(log.String(), form); i >= 0 {
				t.Errorf("%s: %q is logged: %.300s", p.id(), canary, log.String()[max(0, i-200):])
			}
		}
	}
}

// TestPrinted prints all values that a service may have, while their tokens change.
func TestPrinted(t *testing.T) {
	t.Parallel()
	for _, p := range products(t) {
		key, err := auth.ParseKey(auth.NewKey())
		if err != nil {
			t.Fatal(err)
		}
		memory := &auth.Memory{}
		encrypted := auth.Encrypt(&auth.Memory{}, key)
		for _, store := range []auth.Store{memory, encrypted} {
			conns := parse(t, p.yaml("test", "transport: {rate_limits: []}"), config.WithDefaultStore("test", func() (auth.Store, error) { return store, nil }))
			c := p.get(t, conns, "test")
			session := c.Authenticator().(*auth.Session)
			handler := consent.NewHandler([]consent.Connector{{Name: "test", Session: session}}, nil)
			tok, err := session.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			canaries := append([]string{tok.AccessToken}, p.secrets...)
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() {
				for ctx.Err() == nil {
					if tok, err := session.Token(ctx); err == nil {
						session.Invalidate(tok)
					}
				}
			})
			for _, v := range []any{
				store, session, session.For("other"), c, conns, c.Client(), c.Client().Transport, handler,
				auth.Options{Store: store}, struct{ S auth.Store }{store}, []any{session, c.Client()},
			} {
				out := printed(v, true)
				for _, canary := range canaries {
					for _, form := range forms(canary) {
						if strings.Contains(out, form) {
							t.Errorf("%s: %T shows %q", p.id(), v, canary)
						}
					}
				}
			}
			stop()
			running.Wait()
		}
	}
}

// Values that differ only in their random keys print the same.
func TestKeysPrinted(t *testing.T) {
	t.Parallel()
	for _, f := range []func() any{
		func() any {
			key, err := auth.ParseKey(auth.NewKey())
			if err != nil {
				t.Fatal(err)
			}
			return auth.Encrypt(nil, key)
		},
		func() any { return consent.NewHandler(nil, nil) },
	} {
		if a, b := f(), f(); fmt.Sprintf("%v %+v %#v %d %x", a, a, a, a, a) != fmt.Sprintf("%v %+v %#v %d %x", b, b, b, b, b) {
			t.Errorf("%T shows its key", a)
		}
	}
}
