package generic

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/authtest"
	"github.com/itsmauth/itsmauth/internal/dpoptest"
)

var _ interface {
	auth.Signer
	auth.Challenged
} = (*Provider)(nil)

const boundToken = `{"access_token":"AT","token_type":"DPoP","expires_in":3600}`

// proofHeader is sent as spelled, which is not canonical.
var proofHeader = "DPoP"

// jwtPart returns a part of a JWT.
func jwtPart(t *testing.T, token string, part int) map[string]any {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(token+"..", ".")[part])
	var v map[string]any
	if err := errors.Join(err, json.Unmarshal(b, &v)); err != nil {
		t.Fatalf("%q: %v", token, err)
	}
	return v
}

// The key of a login follows from the code verifier, in every process, and not from what is sent.
func TestDPoPLoginKey(t *testing.T) {
	t.Parallel()
	base, got := serve(t, say(200, boundToken))
	c := Config{TokenURL: base.JoinPath("token"), AuthURL: base, ClientID: "id", Grant: "authorization_code", RedirectURI: "http://127.0.0.1/cb", DPoP: new(DPoP)}
	page := func(verifier string) url.Values {
		u, err := url.Parse(must(t, c).CodeFlow().URL("state", verifier))
		if err != nil {
			t.Fatal(err)
		}
		return u.Query()
	}
	verifier := oauth2.GenerateVerifier()
	q := page(verifier)
	thumbprint := q.Get("dpop_jkt")
	if len(thumbprint) != 43 || page(verifier).Get("dpop_jkt") != thumbprint || page(oauth2.GenerateVerifier()).Get("dpop_jkt") == thumbprint {
		t.Errorf("dpop_jkt is %q", thumbprint)
	}
	tok, err := must(t, c).CodeFlow().Redeem(t.Context(), "code", verifier)
	if err != nil {
		t.Fatal(err)
	}
	form, _ := url.ParseQuery(got()[0].Body)
	sent := form.Get("code_verifier")
	if sum := sha256.Sum256([]byte(sent)); len(sent) < 43 || q.Get("code_challenge") != base64.RawURLEncoding.EncodeToString(sum[:]) {
		t.Errorf("code_verifier is %q", sent)
	}
	if sent == verifier || page(sent).Get("dpop_jkt") == thumbprint {
		t.Error("the key can be made of what is sent")
	}
	kept, err := parseMadeKey(auth.SigningKey(tok))
	if err != nil || kept.thumbprint != thumbprint {
		t.Errorf("the token has another key: %v", err)
	}
	if first, second := page("short").Get("dpop_jkt"), page("short").Get("dpop_jkt"); first == second {
		t.Error("the key can be guessed from a short verifier")
	}
	c.PKCE = new(false)
	if q := page(verifier); q.Has("code_challenge") || q.Get("dpop_jkt") != thumbprint {
		t.Errorf("without PKCE: %v", q)
	}
}

// Nonces are remembered by origin, and only if they are nonces.
func TestDPoPNonces(t *testing.T) {
	t.Parallel()
	p := must(t, Config{TokenURL: &url.URL{Scheme: "https", Host: "a"}, ClientID: "id", DPoP: new(DPoP)})
	sign := func(at string) (claims map[string]any) {
		t.Helper()
		req, err := http.NewRequest("GET", at, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Sign(req, &oauth2.Token{AccessToken: "AT"}); err != nil {
			t.Fatal(err)
		}
		return jwtPart(t, req.Header[proofHeader][0], 1)
	}
	respond := func(at, nonce, challenge, body string, status int) bool {
		req, _ := http.NewRequest("GET", at, nil)
		h := http.Header{"Dpop-Nonce": {nonce}, "Www-Authenticate": {"Basic realm=x", challenge}}
		return p.Challenged(&http.Response{StatusCode: status, Header: h, Request: req}, []byte(body))
	}
	for _, wrong := range []string{"", "a b", `a"b`, "a\\b", "ü", strings.Repeat("x", 1001)} {
		if respond("https://a/", wrong, `DPoP error="use_dpop_nonce"`, "", 401) || sign("https://a/")["nonce"] != nil {
			t.Errorf("%.20q is taken for a nonce", wrong)
		}
	}
	for _, r := range []struct {
		challenge, body string
		status          int
		want            bool
	}{
		{`DPoP error="use_dpop_nonce", error_description="x"`, "", 401, true},
		{"", `{"error":"use_dpop_nonce"}`, 400, true},
		{`DPoP error="invalid_token"`, `{"error":"invalid_token"}`, 401, false},
		{"", "", 200, false},
	} {
		if got := respond("https://A:443/x", "N1", r.challenge, r.body, r.status); got != r.want {
			t.Errorf("%d %s %s: %v", r.status, r.challenge, r.body, got)
		}
		resp := &http.Response{StatusCode: r.status, Header: http.Header{"Www-Authenticate": {r.challenge}}}
		if p.Rejects(resp, []byte(r.body)) != (r.status == 401 && !r.want) {
			t.Errorf("Rejects %d %s %s", r.status, r.challenge, r.body)
		}
	}
	respond("https://b/", "N2", "", "", 200)
	for at, want := range map[string]any{"https://a/y": "N1", "https://b": "N2", "http://a/": nil} {
		if got := sign(at)["nonce"]; got != want {
			t.Errorf("the nonce for %s is %v, want %v", at, got, want)
		}
	}
	if p.Challenged(&http.Response{StatusCode: 401, Header: http.Header{"Dpop-Nonce": {"N3"}}}, nil) {
		t.Error("a response without a request")
	}
}

func TestDPoPProof(t *testing.T) {
	t.Parallel()
	p := must(t, Config{TokenURL: &url.URL{Scheme: "https", Host: "a"}, ClientID: "id", DPoP: new(DPoP)})
	for at, want := range map[string]string{
		"https://h":                "https://h/",
		"https://h?q":              "https://h/",
		"https://h/a%2Fb?q=1#f":    "https://h/a%2Fb",
		"https://h/ü/{x}":          "https://h/%C3%BC/%7Bx%7D",
		"https://h:8443/a//b/":     "https://h:8443/a//b/",
		"https://[::1]:8443/x%20y": "https://[::1]:8443/x%20y",
	} {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		req := &http.Request{URL: u, Header: http.Header{"dpop": {"x"}, "Dpop": {"y"}}}
		if err := p.Sign(req, &oauth2.Token{AccessToken: "AT"}); err != nil {
			t.Fatal(err)
		}
		if len(req.Header) != 1 || len(req.Header[proofHeader]) != 1 {
			t.Errorf("headers %v", req.Header)
		}
		header, claims := jwtPart(t, req.Header[proofHeader][0], 0), jwtPart(t, req.Header[proofHeader][0], 1)
		jwk, _ := header["jwk"].(map[string]any)
		if header["alg"] != "ES256" || header["typ"] != "dpop+jwt" || jwk["kty"] != "EC" || jwk["d"] != nil || len(header) != 3 {
			t.Errorf("header %v", header)
		}
		if claims["htu"] != want || claims["htm"] != "GET" || len(claims) != 5 {
			t.Errorf("%s: claims %v", at, claims)
		}
	}
}

func TestDPoPSettings(t *testing.T) {
	t.Parallel()
	u := &url.URL{Scheme: "https", Host: "h", Path: "/token"}
	private := func(text string) *DPoP { return &DPoP{PrivateKey: auth.SecretString(text)} }
	for name, row := range map[string]struct {
		c    Config
		want string
	}{
		"made":                {Config{DPoP: new(DPoP)}, ""},
		"no key":              {Config{DPoP: private("key.pem")}, "dpop.private_key: is neither PEM nor a JSON Web Key"},
		"a public key":        {Config{DPoP: private(`{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`)}, "dpop.private_key: is a public key, not the private one"},
		"a text response":     {Config{DPoP: new(DPoP), Response: Response{Format: "text"}}, "dpop: needs response.format json: the token response has to say token_type DPoP"},
		"a file that is gone": {Config{DPoP: &DPoP{PrivateKey: auth.SecretFile(filepath.Join(t.TempDir(), "gone"))}}, ""},
	} {
		row.c.TokenURL, row.c.ClientID = u, "id"
		_, err := New(row.c, auth.Env{})
		if got := fmt.Sprint(err); row.want == "" && err != nil || row.want != "" && got != row.want {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
	off, made, given := must(t, Config{TokenURL: u, ClientID: "id"}), must(t, Config{TokenURL: u, ClientID: "id", DPoP: new(DPoP)}), must(t, Config{
		TokenURL: u, ClientID: "id", DPoP: &DPoP{PrivateKey: auth.SecretFile(filepath.Join(t.TempDir(), "gone"))}})
	if a, b, c := off.Identity(), made.Identity(), given.Identity(); slices.Equal(a, b) || slices.Equal(b, c) || slices.Equal(a, c) {
		t.Errorf("identities %q, %q, %q", a, b, c)
	}
	if off.Signs() || !made.Signs() {
		t.Error("Signs")
	}
	req, _ := http.NewRequest("GET", "https://h", nil)
	tok := &oauth2.Token{AccessToken: "AT"}
	if err := off.Sign(req, tok); err != nil || len(req.Header) > 0 {
		t.Errorf("%v, %v", err, req.Header)
	}
	if h := off.Header(tok).Get("Authorization") + made.Header(tok).Get("Authorization"); h != "Bearer ATDPoP AT" {
		t.Error(h)
	}
	var key *auth.KeyError
	if err := given.Sign(req, tok); !errors.As(err, &key) || key.Key != "dpop.private_key" || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := given.Exchange(t.Context(), nil); !errors.Is(err, auth.ErrUnavailable) || !strings.Contains(err.Error(), "dpop.private_key") {
		t.Error(err)
	}
}

// Neither what is printed of a provider nor an error shows the key.
func TestDPoPPrinted(t *testing.T) {
	t.Parallel()
	base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"error":"invalid_dpop_proof","error_description":%q}`, r.Header.Get("DPoP"))
	})
	p := must(t, Config{TokenURL: base.JoinPath("token"), ClientID: "id", DPoP: new(DPoP)})
	_, err := p.Exchange(t.Context(), nil)
	e, ok := errors.AsType[*auth.Error](err)
	if !ok || !errors.Is(err, auth.ErrProtocol) || e.Code != "invalid_dpop_proof" || !strings.Contains(err.Error(), "clock") || strings.Contains(err.Error(), "eyJ") {
		t.Error(err)
	}
	key, _ := p.dpop.own()
	p.dpop.last.Store(key)
	for _, s := range []string{fmt.Sprintf("%v %+v %#v", p, p, p), fmt.Sprintf("%v %+v %#v", *p, *p, *p)} {
		if strings.Contains(s, key.text) || strings.Contains(s, key.thumbprint) {
			t.Errorf("the key is printed: %s", s)
		}
	}
}

// A refresh that the product challenges is not replaced by the full grant.
func TestDPoPChallengedRefresh(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"use_dpop_nonce", "invalid_dpop_proof"} {
		base, got := serve(t, say(400, `{"error":"`+code+`"}`))
		p := must(t, Config{TokenURL: base.JoinPath("token"), ClientID: "id", Grant: "password", Username: "u", Password: auth.SecretString("p"), DPoP: new(DPoP)})
		if _, err := p.Exchange(t.Context(), &oauth2.Token{RefreshToken: "RT"}); !errors.Is(err, auth.ErrProtocol) || len(got()) != 1 {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// All requests of an exchange prove the same key, and exchanges without an earlier token too.
func TestDPoPOneKey(t *testing.T) {
	t.Parallel()
	base, got := serve(t, say(400, `{"error":"invalid_grant"}`), say(200, boundToken))
	p := must(t, Config{TokenURL: base.JoinPath("token"), ClientID: "id", Grant: "password", Username: "u", Password: auth.SecretString("p"),
		DPoP: new(DPoP), Then: &Then{URL: base.JoinPath("then")}})
	first, err := p.Exchange(t.Context(), &oauth2.Token{RefreshToken: "RT"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := p.Exchange(t.Context(), nil)
	if err != nil || auth.SigningKey(second) != auth.SigningKey(first) || auth.SigningKey(first) == "" {
		t.Errorf("another key, or none: %v", err)
	}
	seen := map[string]bool{}
	requests := got()
	for _, r := range requests {
		header, claims := jwtPart(t, r.Header.Get("DPoP"), 0), jwtPart(t, r.Header.Get("DPoP"), 1)
		seen[fmt.Sprint(header["jwk"])] = true
		if hasToken := claims["ath"] != nil; hasToken != (r.Path == "/then") {
			t.Errorf("the proof for %s: %v", r.Path, claims)
		}
	}
	if len(seen) != 1 || len(requests) != 5 {
		t.Errorf("%d keys in %d requests", len(seen), len(requests))
	}
	a, _ := p.dpop.key(t.Context(), first)
	if b, _ := p.dpop.key(t.Context(), first); a != b {
		t.Error("a key is parsed for each request")
	}
}

func TestDPoPProvider(t *testing.T) {
	t.Parallel()
	s := dpoptest.NewServer(t)
	s.Set(dpoptest.Rules{NonceUses: 3})
	base, _ := url.Parse(s.URL)
	authtest.TestProvider(t, func(t *testing.T) auth.Provider {
		return must(t, Config{TokenURL: base.JoinPath("oauth2/token"), RevokeURL: base.JoinPath("oauth2/revoke"), ClientID: "id", DPoP: new(DPoP)})
	}, authtest.Product{
		Good: func() *http.Request { r, _ := http.NewRequest("GET", s.URL+"/api", nil); return r },
		Kill: func(string) { s.Revoke() },
	})
}

// Signing costs what a signature costs, whatever the number of calls.
func BenchmarkDPoPSign(b *testing.B) {
	p, err := NewProvider(Config{TokenURL: &url.URL{Scheme: "https", Host: "a"}, ClientID: "id", DPoP: new(DPoP)})
	if err != nil {
		b.Fatal(err)
	}
	req, _ := http.NewRequest("GET", "https://a/x", nil)
	for b.Loop() {
		if err := p.Sign(req, &oauth2.Token{AccessToken: "AT"}); err != nil {
			b.Fatal(err)
		}
	}
}
