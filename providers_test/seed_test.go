package providers_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// A refresh token in the settings is used until the store has a newer one. If the stored one is refused, a
// new one in the settings is used.
func TestSeed(t *testing.T) {
	t.Parallel()
	for _, p := range bothWays(t, remedy) {
		t.Run(p.id(), func(t *testing.T) {
			t.Parallel()
			testSeed(t, p, p.handler.(*remedytest.Server))
		})
	}
}

func testSeed(t *testing.T, p *product, sso *remedytest.Server) {
	dir := t.TempDir()
	seed := filepath.Join(dir, "refresh")
	mint := func() {
		t.Helper()
		if err := os.WriteFile(seed, []byte(sso.MintRefresh()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// restart is a new process with the same files.
	restart := func() (*config.Connector, func()) {
		t.Helper()
		conns := parse(t, p.yaml("remedy", `refresh_token: "${file:`+seed+`}"`)+fmt.Sprintf("token_store: {type: file, path: '%s'}\n", filepath.Join(dir, "tokens")))
		c, err := conns.Get("remedy")
		if err != nil {
			t.Fatal(err)
		}
		return c, func() { conns.Close() }
	}
	works := func(c *config.Connector) {
		t.Helper()
		if status, body, err := call(t.Context(), c, "GET", "/api/arsys/v1/entry/HPD:IncidentInterface", ""); err != nil || status != 200 {
			t.Fatalf("%d %s %v", status, body, err)
		}
	}
	counts := func(rotations, reuses int) {
		t.Helper()
		if st := sso.Stats(); st.Rotations != rotations || st.Reuses != reuses {
			t.Errorf("%d rotations, %d reuses; want %d, %d", st.Rotations, st.Reuses, rotations, reuses)
		}
	}

	mint()
	c, end := restart()
	works(c)
	counts(1, 0)
	sso.RevokeAll()
	works(c)
	counts(2, 0)
	end()

	c, end = restart()
	sso.RevokeAll()
	works(c) // with the stored one: that of the settings is spent
	counts(3, 0)

	sso.RevokeAll()
	sso.RevokeRefresh()
	for range 2 {
		if _, err := c.Authenticator().Token(t.Context()); err == nil {
			status, body, _ := call(t.Context(), c, "GET", "/api/arsys/v1/entry/HPD:IncidentInterface", "")
			if status != 401 {
				t.Fatalf("%d %s", status, body)
			}
		} else if !errors.Is(err, auth.ErrConsentRequired) {
			t.Fatal(err)
		}
	}
	end()

	mint()
	c, end = restart()
	defer end()
	works(c)
}
