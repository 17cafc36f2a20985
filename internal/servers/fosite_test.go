package servers

import (
	"context"
	"net/http"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v3"
	"github.com/ory/fosite"
	"github.com/ory/fosite/compose"
	"github.com/ory/fosite/storage"
	"golang.org/x/crypto/bcrypt"
)

// A fositeServer is github.com/ory/fosite with all its OAuth handlers and its store in memory.
type fositeServer struct {
	*server
	store *storage.MemoryStore
}

func newFosite(t *testing.T, change ...func(*fosite.Config)) *fositeServer {
	t.Helper()
	s := &fositeServer{newServer(t), storage.NewMemoryStore()}
	cfg := &fosite.Config{
		GlobalSecret: []byte("a secret of thirty-two characters"), TokenURL: s.URL + "/token",
		EnforcePKCE: true, RefreshTokenScopes: []string{}, // a refresh token with each login
	}
	for _, f := range change {
		f(cfg)
	}
	p := compose.Compose(cfg, s.store, &compose.CommonStrategy{CoreStrategy: compose.NewOAuth2HMACStrategy(cfg)},
		compose.OAuth2AuthorizeExplicitFactory, compose.OAuth2ClientCredentialsGrantFactory, compose.OAuth2RefreshTokenGrantFactory,
		compose.RFC7523AssertionGrantFactory, compose.OAuth2TokenIntrospectionFactory, compose.OAuth2TokenRevocationFactory,
		compose.OAuth2PKCEFactory)
	// One at a time: fosite's configuration and its store in memory have data races.
	var one sync.Mutex
	alone := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			one.Lock()
			defer one.Unlock()
			h(w, r)
		}
	}
	s.mux.HandleFunc("/authorize", alone(func(w http.ResponseWriter, r *http.Request) {
		req, err := p.NewAuthorizeRequest(r.Context(), r)
		if err != nil {
			p.WriteAuthorizeError(r.Context(), w, req, err)
			return
		}
		person := signedIn(w, r)
		if person == "" {
			return
		}
		for _, scope := range req.GetRequestedScopes() {
			req.GrantScope(scope)
		}
		resp, err := p.NewAuthorizeResponse(r.Context(), req, &fosite.DefaultSession{Subject: person})
		if err != nil {
			p.WriteAuthorizeError(r.Context(), w, req, err)
			return
		}
		p.WriteAuthorizeResponse(r.Context(), w, req, resp)
	}))
	s.handleToken(alone(func(w http.ResponseWriter, r *http.Request) {
		req, err := p.NewAccessRequest(r.Context(), r, new(session))
		if err != nil {
			p.WriteAccessError(r.Context(), w, req, err)
			return
		}
		if req.GetGrantTypes().ExactOne("client_credentials") {
			for _, scope := range req.GetRequestedScopes() {
				req.GrantScope(scope)
			}
		}
		resp, err := p.NewAccessResponse(r.Context(), req)
		if err != nil {
			p.WriteAccessError(r.Context(), w, req, err)
			return
		}
		p.WriteAccessResponse(r.Context(), w, req, resp)
	}))
	s.mux.HandleFunc("/revoke", alone(func(w http.ResponseWriter, r *http.Request) {
		p.WriteRevocationResponse(r.Context(), w, p.NewRevocationRequest(r.Context(), r))
	}))
	s.endsFamilies = true
	introspect := func(token string) (fosite.AccessRequester, error) {
		_, req, err := p.IntrospectToken(context.Background(), token, fosite.AccessToken, new(session))
		return req, err
	}
	s.accepts = func(token string) bool {
		one.Lock()
		defer one.Unlock()
		_, err := introspect(token)
		return err == nil
	}
	s.revoke = func(token string) {
		one.Lock()
		defer one.Unlock()
		if req, err := introspect(token); err == nil {
			s.store.RevokeAccessToken(context.Background(), req.GetID())
		}
	}
	s.add(t, clientID, "client_secret_basic", nil)
	s.add(t, publicID, "none", nil)
	return s
}

// session is fosite's session, with the method that its grant for JWTs wants.
type session struct{ fosite.DefaultSession }

func (s *session) SetSubject(subject string) { s.Subject = subject }

func (s *session) Clone() fosite.Session {
	c := *s
	c.DefaultSession = *s.DefaultSession.Clone().(*fosite.DefaultSession)
	return &c
}

// add registers a client that authenticates by method, with a key if it signs.
func (s *fositeServer) add(t *testing.T, id, method string, key *jose.JSONWebKey) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	c := &fosite.DefaultOpenIDConnectClient{TokenEndpointAuthMethod: method, DefaultClient: &fosite.DefaultClient{
		ID: id, Secret: hash, Public: method == "none", RedirectURIs: []string{callback}, Scopes: []string{"read", "write"}, ResponseTypes: []string{"code"},
		GrantTypes: []string{"client_credentials", "authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:jwt-bearer"},
	}}
	if key != nil {
		c.JSONWebKeys, c.TokenEndpointAuthSigningAlgorithm = &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{*key}}, key.Algorithm
	}
	s.store.Clients[id] = c
}

// trust registers a key for JWTs that are a grant, for the scope read.
func (s *fositeServer) trust(issuer, subject string, key *jose.JSONWebKey) {
	s.store.IssuerPublicKeys[issuer] = storage.IssuerPublicKeys{Issuer: issuer, KeysBySub: map[string]storage.SubjectPublicKeys{
		subject: {Subject: subject, Keys: map[string]storage.PublicKeyScopes{key.KeyID: {Key: key, Scopes: []string{"read"}}}},
	}}
}
