package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

// check --online counts the days that a consent has left, and warns before it expires.
func TestCheckOnlineCountsConsentDays(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		lifetime     time.Duration
		status, says string
	}{
		{0, "ok", "59 days left"},
		{2*24*time.Hour + time.Hour, "warning", "2 days left"},
	} {
		c := newConsented(t, test.lifetime)
		code, out, stderr := c.run("check", "--online", "--output", "json")
		if code != 0 {
			t.Fatal(code, out, stderr)
		}
		var list []struct {
			Checks []struct{ Check, Status, Message, Fix string }
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
			t.Fatalf("%v: %s", err, out)
		}
		found := false
		for _, check := range list[0].Checks {
			if check.Check == "consent" {
				found = true
				if check.Status != test.status || !strings.HasPrefix(check.Message, test.says) {
					t.Errorf("%+v, want %s: %s", check, test.status, test.says)
				}
			}
		}
		if !found {
			t.Errorf("no consent in %s", out)
		}
		if n := c.sso.Stats().Exchanges; n != 1 {
			t.Errorf("%d exchanges, want the login's", n)
		}
	}
}

// The product refuses the token, and then the refresh token, so a person must log in.
func TestCallLosesConsent(t *testing.T) {
	t.Parallel()
	c := newConsented(t, 0)
	c.edit(func(r map[string]any) { r["refresh_token"] = "spent" })
	c.sso.RevokeAll()
	call := []string{"call", "remedy", "/api/arsys/v1/entry/HPD:IncidentInterface"}
	code, stdout, stderr := c.run(call...)
	if code != 3 || !strings.Contains(stdout, "Authentication failed") ||
		!strings.Contains(stderr, "answered 401 Unauthorized, and there is no other token: remedy: ") || !strings.HasSuffix(stderr, "; run: itsmauth login remedy\n") {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := c.run(call...); code != 3 || stdout != "" {
		t.Errorf("with the token that was refused: exit %d, %s%s", code, stdout, stderr)
	}
}

// Once a refresh in the background was refused, commands use the access token while it is valid, send the refresh
// token no more, and status and check --online say that a person must log in.
func TestTokenOutlivesConsent(t *testing.T) {
	t.Parallel()
	c := newConsented(t, 0)
	c.edit(func(r map[string]any) {
		r["refresh_token"] = "spent"
		r["obtained"] = time.Now().Add(-time.Duration(r["lifetime"].(float64)) + 4*time.Minute)
	})
	for range 3 {
		if code, stdout, stderr := c.run("token", "remedy"); code != 0 || stdout == "" {
			t.Errorf("exit %d, %s%s", code, stdout, stderr)
		}
		if state := statusOf(t, c.yaml, "remedy").State; state != "consent_required" {
			t.Error(state)
		}
	}
	code, stdout, _ := c.run("check", "--online")
	if code != 3 || !strings.Contains(stdout, "remedy: consent: failed: ") || !strings.Contains(stdout, "; run: itsmauth login remedy") {
		t.Errorf("exit %d, %s", code, stdout)
	}
	if n := c.sso.Stats().TokenRequests; n != 2 {
		t.Errorf("%d token requests, want the login's and the refused one", n)
	}
}

// The command is interrupted after the browser came back, before the product responds.
func TestInterruptedLoginIsSaved(t *testing.T) {
	t.Parallel()
	c := newConsented(t, 0)
	ctx, interrupt := context.WithCancel(t.Context())
	c.sso.BreakToken(func(http.ResponseWriter, *http.Request) bool {
		interrupt()
		return false
	})
	code, page, says := c.logIn(ctx)
	if code != 0 || !strings.Contains(page, "remedy is connected") || !strings.Contains(says, "remedy is logged in") {
		t.Errorf("exit %d, %s\n%s", code, says, page)
	}
	if st := c.sso.Stats(); statusOf(t, c.yaml, "remedy").State != "fresh" || st.Exchanges != 2 {
		t.Errorf("%+v", st)
	}
}

// Connectors of one identity share one new token.
func TestCheckOnlineSharesATokenByIdentity(t *testing.T) {
	t.Parallel()
	s := beyondtrusttest.NewServer(nil)
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "itsmauth.yaml")
	yaml := "version: 1\ntoken_store: {type: memory}\nconnectors:\n"
	for _, name := range []string{"a", "b"} {
		yaml += fmt.Sprintf("  %s:\n    provider: beyondtrust\n    base_url: %s\n    client_id: '%s'\n    client_secret: '%s'\n",
			name, s.URL, beyondtrusttest.DefaultClientID, beyondtrusttest.DefaultClientSecret)
	}
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	if code := run(t.Context(), []string{"--config", file, "check", "--online"}, nil, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s%s", code, stdout.String(), stderr.String())
	}
	for _, want := range []string{"a: token: ok", "b: token: ok", "a: probe: ok", "b: probe: ok"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, stdout.String())
		}
	}
	if n := s.Stats().Exchanges; n != 1 {
		t.Errorf("%d exchanges", n)
	}
}

func TestTimesForEyes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for in, want := range map[time.Duration]string{
			42*time.Minute + time.Second: "in 42m", 90 * time.Minute: "in 1h30m", 59 * time.Second: "in 59s",
			60 * 24 * time.Hour: "in 60 days", -5 * time.Minute: "5m ago", 0: "0s ago",
		} {
			at := time.Now().Add(in)
			if got := when(at, true); got != want {
				t.Errorf("%s is %q to eyes, want %q", in, got, want)
			}
			if got, want := when(at, false), at.UTC().Format(time.RFC3339); got != want {
				t.Errorf("%s is %q to programs, want %q", in, got, want)
			}
		}
		if got := when(time.Time{}, true); got != "-" {
			t.Errorf("never is %q", got)
		}
	})
}
