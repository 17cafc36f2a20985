package servers

import (
	"context"
	"net/http"
	"testing"

	"github.com/go-oauth2/oauth2/v4"
	"github.com/go-oauth2/oauth2/v4/manage"
	"github.com/go-oauth2/oauth2/v4/models"
	oauthserver "github.com/go-oauth2/oauth2/v4/server"
	"github.com/go-oauth2/oauth2/v4/store"
)

// newGoOAuth2 starts github.com/go-oauth2/oauth2/v4 with its store in memory. It reads the client's credentials as
// its own handlers do, in one place only.
func newGoOAuth2(t *testing.T, credentials oauthserver.ClientInfoHandler) *server {
	t.Helper()
	s := newServer(t)
	tokens, err := store.NewMemoryTokenStore()
	if err != nil {
		t.Fatal(err)
	}
	clients := store.NewClientStore()
	clients.Set(clientID, &models.Client{ID: clientID, Secret: secret, Domain: callback})
	clients.Set("plain", &models.Client{ID: "plain", Secret: secret, Domain: callback})
	clients.Set(publicID, &models.Client{ID: publicID, Domain: callback, Public: true})
	m := manage.NewDefaultManager()
	m.MapTokenStorage(tokens)
	m.MapClientStorage(clients)
	p := oauthserver.NewDefaultServer(m)
	p.Config.ForcePKCE = true
	p.ClientInfoHandler = credentials
	p.ClientScopeHandler = func(r *oauth2.TokenGenerateRequest) (bool, error) { return r.Scope == "" || r.Scope == "read", nil }
	p.UserAuthorizationHandler = func(w http.ResponseWriter, r *http.Request) (string, error) { return signedIn(w, r), nil }

	s.mux.HandleFunc("/authorize", func(w http.ResponseWriter, r *http.Request) {
		if err := p.HandleAuthorizeRequest(w, r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	s.handleToken(func(w http.ResponseWriter, r *http.Request) { p.HandleTokenRequest(w, r) })
	s.mux.HandleFunc("/revoke", func(w http.ResponseWriter, r *http.Request) { // it has none of its own
		token := r.PostFormValue("token")
		id, given, err := p.ClientInfoHandler(r)
		client, unknown := m.GetClient(r.Context(), id)
		if err != nil || unknown != nil || client.GetSecret() != given {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		m.RemoveAccessToken(r.Context(), token)
		m.RemoveRefreshToken(r.Context(), token)
	})
	s.accepts = func(token string) bool {
		_, err := m.LoadAccessToken(context.Background(), token)
		return err == nil
	}
	s.revoke = func(token string) { m.RemoveAccessToken(context.Background(), token) }
	return s
}
