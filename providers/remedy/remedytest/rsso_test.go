package remedytest

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"html"
	"math/big"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/internal/emulator"
)

var (
	asked = url.Values{
		"response_type": {"code"},
		"client_id":     {DefaultClientID},
		"redirect_uri":  {DefaultRedirectURI},
		"state":         {"s+t/a=t&e%"},
	}
	credentials = url.Values{"client_id": {DefaultClientID}, "client_secret": {DefaultClientSecret}}
)

const verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk" // RFC 7636 appendix B

var pkce = url.Values{
	"code_challenge":        {"E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"},
	"code_challenge_method": {"S256"},
}

func authURL(s *Server, q url.Values) string {
	all := with(asked)
	for k, v := range q {
		all[k] = v
	}
	return s.SSOURL + "/oauth2/authorize?" + all.Encode()
}

// consented returns the code of a login.
func consented(t *testing.T, s *Server, q url.Values) string {
	t.Helper()
	u, err := s.Consent(authURL(s, q))
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("code")
}

func redeemForm(code string) url.Values {
	return with(credentials, "grant_type", "authorization_code", "code", code, "redirect_uri", DefaultRedirectURI)
}

func refreshForm(token string) url.Values {
	return with(credentials, "grant_type", "refresh_token", "refresh_token", token)
}

func redeem(t *testing.T, s *Server, code string) reply {
	t.Helper()
	return post(t, s.SSOURL+"/oauth2/token", redeemForm(code))
}

func refresh(t *testing.T, s *Server, token string) reply {
	t.Helper()
	return post(t, s.SSOURL+"/oauth2/token", refreshForm(token))
}

func pair(t *testing.T, r reply) (access, refresh string) {
	t.Helper()
	v := r.json(t)
	access, ok1 := v["access_token"].(string)
	refresh, ok2 := v["refresh_token"].(string)
	if r.status != 200 || !ok1 || !ok2 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	return access, refresh
}

func login(t *testing.T, s *Server) (access, refresh string) {
	t.Helper()
	return pair(t, redeem(t, s, consented(t, s, nil)))
}

// refusedWith checks an OAuth error (RFC 6749 section 5.2).
func refusedWith(t *testing.T, r reply, status int, code string) {
	t.Helper()
	if got := r.json(t)["error"]; r.status != status || got != code {
		t.Errorf("%d %s, want %d %s", r.status, r.body, status, code)
	}
	if r.header.Get("Cache-Control") != "no-store" {
		t.Error("the answer may be cached")
	}
}

func TestConsent(t *testing.T) {
	t.Parallel()
	s := start(t, &Options{RedirectURIs: []string{DefaultRedirectURI, "https://app.example/cb?a=b"}})
	for name, tt := range map[string]struct {
		q    url.Values
		deny bool
		want url.Values // of the redirect
		base string
	}{
		"allow":             {nil, false, url.Values{"code": nil, "state": {"s+t/a=t&e%"}}, DefaultRedirectURI},
		"deny":              {nil, true, url.Values{"error": {"access_denied"}, "state": {"s+t/a=t&e%"}}, DefaultRedirectURI},
		"without state":     {url.Values{"state": nil}, false, url.Values{"code": nil}, DefaultRedirectURI},
		"a redirect query":  {url.Values{"redirect_uri": {"https://app.example/cb?a=b"}}, false, url.Values{"a": {"b"}, "code": nil, "state": {"s+t/a=t&e%"}}, "https://app.example/cb"},
		"response_type":     {url.Values{"response_type": {"token"}}, false, url.Values{"error": {"unsupported_response_type"}, "state": {"s+t/a=t&e%"}}, DefaultRedirectURI},
		"plain PKCE":        {url.Values{"code_challenge": {verifier}}, false, url.Values{"error": {"invalid_request"}, "state": {"s+t/a=t&e%"}}, DefaultRedirectURI},
		"a short challenge": {url.Values{"code_challenge": {"x"}, "code_challenge_method": {"S256"}}, false, url.Values{"error": {"invalid_request"}, "state": {"s+t/a=t&e%"}}, DefaultRedirectURI},
		"a lone method":     {url.Values{"code_challenge_method": {"S256"}}, false, url.Values{"error": {"invalid_request"}, "state": {"s+t/a=t&e%"}}, DefaultRedirectURI},
		"a repeated scope":  {url.Values{"scope": {"a", "b"}}, false, url.Values{"error": {"invalid_request"}, "state": {"s+t/a=t&e%"}}, DefaultRedirectURI},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play := s.Consent
			if tt.deny {
				play = s.Deny
			}
			u, err := play(authURL(s, tt.q))
			if err != nil {
				t.Fatal(err)
			}
			got := u.Query()
			if _, ok := tt.want["code"]; ok && got.Get("code") != "" {
				got["code"] = nil
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if u.RawQuery = ""; u.String() != tt.base {
				t.Errorf("redirected to %s", u)
			}
		})
	}
}

// A request with a wrong client or redirect URI is not redirected.
func TestNeverRedirects(t *testing.T) {
	t.Parallel()
	for _, auto := range []bool{false, true} {
		s := start(t, &Options{AutoAllow: auto})
		for name, q := range map[string]url.Values{
			"client":           {"client_id": {"<b>other"}},
			"no client":        {"client_id": nil},
			"two clients":      {"client_id": {DefaultClientID, DefaultClientID}},
			"no redirect":      {"redirect_uri": nil},
			"two redirects":    {"redirect_uri": {DefaultRedirectURI, "https://evil.example"}},
			"another":          {"redirect_uri": {"https://evil.example"}},
			"a trailing slash": {"redirect_uri": {DefaultRedirectURI + "/"}},
			"another port":     {"redirect_uri": {"http://127.0.0.1:8401/callback"}},
			"another case":     {"redirect_uri": {"HTTP://127.0.0.1:8400/callback"}},
			"a longer query":   {"redirect_uri": {DefaultRedirectURI + "?x"}},
		} {
			got := do(t, client(), "GET", authURL(s, q), "")
			if got.status != 400 || got.header.Get("Location") != "" || !strings.Contains(got.body, "Cannot continue") {
				t.Errorf("%s: %d, Location %q", name, got.status, got.header.Get("Location"))
			}
			if _, err := s.Consent(authURL(s, q)); err == nil {
				t.Errorf("%s: Consent did not fail", name)
			}
		}
	}
	s := start(t, nil)
	if _, err := s.Consent(strings.Replace(authURL(s, nil), "authorize", "token", 1)); err == nil {
		t.Error("Consent took another endpoint")
	}
}

// A browser is a client with cookies.
func browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := client()
	c.Jar = jar
	return c
}

var csrfField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// open shows the page and returns its CSRF token.
func open(t *testing.T, c *http.Client, s *Server, q url.Values) (page reply, csrf string) {
	t.Helper()
	page = do(t, c, "GET", authURL(s, q), "")
	m := csrfField.FindStringSubmatch(page.body)
	if page.status != 200 || m == nil {
		t.Fatalf("%d %s", page.status, page.body)
	}
	return page, m[1]
}

func submit(t *testing.T, c *http.Client, s *Server, csrf, decision string) reply {
	t.Helper()
	f := url.Values{"csrf": {csrf}, "decision": {decision}}
	return do(t, c, "POST", s.SSOURL+"/oauth2/authorize", f.Encode(), "Content-Type", "application/x-www-form-urlencoded")
}

func TestPage(t *testing.T) {
	t.Parallel()
	s := start(t, &Options{ClientID: "<script>&", Username: "Zoë <b>"})
	c := browser(t)
	q := url.Values{"client_id": {"<script>&"}, "scope": {"read write"}}
	page, first := open(t, c, s, q)
	for _, want := range []string{
		"<title>", `<html lang="en">`, `name="viewport"`, "<main>", "<h1>", "<style>", "light-dark(",
		html.EscapeString("<script>&"), html.EscapeString("Zoë <b>"), "<dd>read</dd><dd>write</dd>",
		`<form method="post" action="authorize">`, `value="allow"`, `value="deny"`, "http://127.0.0.1:8400<",
	} {
		if !strings.Contains(page.body, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	for _, not := range []string{"<script", "<link", "src=", "href=", "url(", "@import"} {
		if strings.Contains(page.body, not) {
			t.Errorf("the page has %s", not)
		}
	}
	if csp := page.header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") {
		t.Errorf("CSP %q", csp)
	}
	cookie := page.header.Get("Set-Cookie")
	if !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Lax") {
		t.Errorf("cookie %q", cookie)
	}

	_, second := open(t, c, s, q) // another tab
	for csrf, decision := range map[string]string{first: "allow", second: "deny"} {
		if got := submit(t, c, s, csrf, "later"); got.status != 400 {
			t.Errorf("an unknown decision: %d", got.status)
		}
		got := submit(t, c, s, csrf, decision)
		to, err := url.Parse(got.header.Get("Location"))
		if err != nil || got.status != 303 || !strings.HasPrefix(to.String(), DefaultRedirectURI+"?") || to.Query().Get("state") != asked.Get("state") {
			t.Fatalf("%s: %d to %s, %v", decision, got.status, to, err)
		}
		if got := to.Query().Get("error"); (got == "access_denied") != (decision == "deny") {
			t.Errorf("%s: error %q", decision, got)
		}
		if got := to.Query().Has("code"); got != (decision == "allow") {
			t.Errorf("%s: code %v", decision, got)
		}
		if got := submit(t, c, s, csrf, decision); got.status != 403 {
			t.Errorf("sent again: %d", got.status)
		}
	}
}

func TestForgedDecision(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	_, csrf := open(t, browser(t), s, nil)
	victim := browser(t)
	open(t, victim, s, nil)
	for name, got := range map[string]reply{
		"another browser":  submit(t, victim, s, csrf, "allow"),
		"no cookie":        submit(t, client(), s, csrf, "allow"),
		"no CSRF token":    submit(t, victim, s, "", "allow"),
		"a made-up token":  submit(t, victim, s, "x", "allow"),
		"nothing posted":   post(t, s.SSOURL+"/oauth2/authorize", nil),
		"CSRF in the URL":  post(t, s.SSOURL+"/oauth2/authorize?csrf="+csrf, url.Values{"decision": {"allow"}}),
		"not a form":       do(t, victim, "POST", s.SSOURL+"/oauth2/authorize", `{}`, "Content-Type", "application/json"),
		"another's method": do(t, victim, "PUT", s.SSOURL+"/oauth2/authorize", ""),
	} {
		if got.status < 400 || got.header.Get("Location") != "" {
			t.Errorf("%s: %d to %q", name, got.status, got.header.Get("Location"))
		}
	}
}

func TestAutoAllow(t *testing.T) {
	t.Parallel()
	s := start(t, &Options{AutoAllow: true, RequirePKCE: true})
	location := func(q url.Values) url.Values {
		got := do(t, client(), "GET", authURL(s, q), "")
		u, err := url.Parse(got.header.Get("Location"))
		if err != nil || got.status != 302 {
			t.Fatalf("%d %s %v", got.status, got.body, err)
		}
		return u.Query()
	}
	if got := location(nil); got.Get("error") != "invalid_request" || got.Get("state") != asked.Get("state") {
		t.Errorf("without PKCE: %v", got)
	}
	if got := location(pkce); got.Get("code") == "" || got.Get("state") != asked.Get("state") {
		t.Errorf("with PKCE: %v", got)
	}
}

func TestRedeem(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for name, tt := range map[string]struct {
		q      url.Values // added to the authorization request
		change []string   // of the form
		query  string
		header []string
		status int
		code   string // "" is a token
	}{
		"as documented":         {status: 200},
		"PKCE":                  {q: pkce, change: []string{"code_verifier", verifier}, status: 200},
		"PKCE without verifier": {q: pkce, status: 400, code: "invalid_grant"},
		"PKCE, wrong verifier":  {q: pkce, change: []string{"code_verifier", verifier + "x"}, status: 400, code: "invalid_grant"},
		"verifier without PKCE": {change: []string{"code_verifier", verifier}, status: 400, code: "invalid_grant"},
		"redirect_uri":          {change: []string{"redirect_uri", DefaultRedirectURI + "/"}, status: 400, code: "invalid_grant"},
		"no redirect_uri":       {change: []string{"redirect_uri", ""}, status: 400, code: "invalid_grant"},
		"unknown code":          {change: []string{"code", "x"}, status: 400, code: "invalid_grant"},
		"no code":               {change: []string{"code", ""}, status: 400, code: "invalid_request"},
		"no grant_type":         {change: []string{"grant_type", ""}, status: 400, code: "invalid_request"},
		"client_credentials":    {change: []string{"grant_type", "client_credentials"}, status: 400, code: "unsupported_grant_type"},
		"password":              {change: []string{"grant_type", "password"}, status: 400, code: "unsupported_grant_type"},
		"client_id":             {change: []string{"client_id", "x"}, status: 401, code: "invalid_client"},
		"client_secret":         {change: []string{"client_secret", "x"}, status: 401, code: "invalid_client"},
		"no client":             {change: []string{"client_id", "", "client_secret", ""}, status: 401, code: "invalid_client"},
		"Basic": {change: []string{"client_id", "", "client_secret", ""}, header: []string{"Authorization", basic(DefaultClientID, DefaultClientSecret)},
			status: 401, code: "invalid_client"},
		"a parameter in the URL": {query: "?client_id=x", status: 400, code: "invalid_request"},
		"any query":              {query: "?x", status: 400, code: "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := with(redeemForm(consented(t, s, tt.q)), tt.change...)
			got := post(t, s.SSOURL+"/oauth2/token"+tt.query, f, tt.header...)
			if tt.code != "" {
				refusedWith(t, got, tt.status, tt.code)
				return
			}
			access, _ := pair(t, got)
			if got := api(t, s, access); got.status != 200 {
				t.Errorf("the token is refused: %s", got.body)
			}
		})
	}
}

func basic(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
}

func TestTokenRequestShape(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	to := s.SSOURL + "/oauth2/token"
	f := refreshForm(s.MintRefresh())
	const formType = "application/x-www-form-urlencoded"
	for name, tt := range map[string]struct{ contentType, body string }{
		"JSON":       {"application/json", `{"grant_type":"refresh_token"}`},
		"no type":    {"", f.Encode()},
		"repeated":   {formType, f.Encode() + "&client_id=x"},
		"not a form": {formType, "%zz"},
	} {
		t.Run(name, func(t *testing.T) {
			refusedWith(t, do(t, http.DefaultClient, "POST", to, tt.body, "Content-Type", tt.contentType), 400, "invalid_request")
		})
	}
	if got := do(t, http.DefaultClient, "GET", to+"?"+f.Encode(), ""); got.status != 405 {
		t.Errorf("GET: %d", got.status)
	}
	got := do(t, http.DefaultClient, "POST", to, f.Encode(), "Content-Type", formType+"; charset=utf-8")
	pair(t, got)
}

func TestCodeIsUsedOnce(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	code := consented(t, s, nil)
	access, first := pair(t, redeem(t, s, code))
	second, _ := pair(t, refresh(t, s, first))
	refusedWith(t, redeem(t, s, code), 400, "invalid_grant")
	for _, a := range []string{access, second} {
		if got := api(t, s, a); got.status != 401 {
			t.Errorf("what the code gave still works: %d", got.status)
		}
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	otherAccess, other := login(t, s)
	access, first := login(t, s)
	newer, second := pair(t, refresh(t, s, first))
	if first == second || access == newer {
		t.Fatal("nothing rotated")
	}
	if got := api(t, s, access); got.status != 200 {
		t.Errorf("a refresh killed the access token: %s", got.body)
	}
	if d := cmp.Diff(Stats{Stats: emulator.Stats{Exchanges: 3, TokenRequests: 3, APICalls: 1, ReusedConnections: s.Stats().ReusedConnections}, Rotations: 1}, s.Stats()); d != "" {
		t.Error(d)
	}

	refusedWith(t, refresh(t, s, first), 400, "invalid_grant")
	if got := s.Stats().Reuses; got != 1 {
		t.Errorf("%d reuses", got)
	}
	refusedWith(t, refresh(t, s, second), 400, "invalid_grant")
	if got := s.Stats().Reuses; got != 1 {
		t.Errorf("a refresh token of a dead family counts as reused: %d", got)
	}
	if got := api(t, s, newer); got.status != 401 {
		t.Errorf("the family's access token lives: %d", got.status)
	}
	refusedWith(t, refresh(t, s, otherAccess), 400, "invalid_grant") // not a refresh token
	pair(t, refresh(t, s, other))                                    // another family
	pair(t, refresh(t, s, s.MintRefresh()))
	if got := api(t, s, other); got.status != 401 {
		t.Errorf("a refresh token works as an access token: %d", got.status)
	}
}

func TestRefreshParam(t *testing.T) {
	t.Parallel()
	s := start(t, &Options{RefreshParam: "refreshToken"})
	tok := s.MintRefresh()
	refusedWith(t, refresh(t, s, tok), 400, "invalid_request")
	pair(t, post(t, s.SSOURL+"/oauth2/token", with(credentials, "grant_type", "refresh_token", "refreshToken", tok)))
}

func TestBasic(t *testing.T) {
	t.Parallel()
	s := start(t, &Options{Basic: true})
	f := func(extra ...string) url.Values {
		return with(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {s.MintRefresh()}}, extra...)
	}
	to := s.SSOURL + "/oauth2/token"
	pair(t, post(t, to, f(), "Authorization", basic(DefaultClientID, DefaultClientSecret)))
	pair(t, post(t, to, f("client_id", DefaultClientID), "Authorization", basic(url.QueryEscape(DefaultClientID), url.QueryEscape(DefaultClientSecret))))
	for name, got := range map[string]reply{
		"form":   post(t, to, refreshForm(s.MintRefresh())),
		"both":   post(t, to, refreshForm(s.MintRefresh()), "Authorization", basic(DefaultClientID, DefaultClientSecret)),
		"secret": post(t, to, f(), "Authorization", basic(DefaultClientID, "x")),
		"client": post(t, to, f(), "Authorization", basic("x", DefaultClientSecret)),
		"none":   post(t, to, f()),
	} {
		t.Run(name, func(t *testing.T) {
			refusedWith(t, got, 401, "invalid_client")
			if got.header.Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
		})
	}
}

func TestTokenAnswer(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		o    Options
		path string
		want map[string]any
	}{
		"v1":         {Options{}, "/oauth2/token", map[string]any{"expires_in": 3600.}},
		"v1.1":       {Options{}, "/oauth2/v1.1/token", map[string]any{"expires_in": 3600., "token_type": "Bearer"}},
		"lifetime":   {Options{TokenLifetime: 90*time.Second + 999*time.Millisecond}, "/oauth2/token", map[string]any{"expires_in": 90.}},
		"expires_in": {Options{ExpiresIn: func(n int64) any { return big.NewInt(n).String() }}, "/oauth2/token", map[string]any{"expires_in": "3600"}},
		"none":       {Options{ExpiresIn: func(int64) any { return nil }}, "/oauth2/token", map[string]any{}},
		"null":       {Options{ExpiresIn: func(int64) any { return json.RawMessage("null") }}, "/oauth2/token", map[string]any{"expires_in": nil}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, &tt.o)
			r := post(t, s.SSOURL+tt.path, refreshForm(s.MintRefresh()))
			pair(t, r)
			got := r.json(t)
			delete(got, "access_token")
			delete(got, "refresh_token")
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if ct := r.header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
				t.Errorf("Content-Type %q", ct)
			}
		})
	}
}

func TestJWT(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	var set struct {
		Keys []struct{ Kty, Kid, Alg, N, E string }
	}
	if err := json.Unmarshal([]byte(do(t, http.DefaultClient, "GET", s.SSOURL+"/oauth2/jwks", "").body), &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("%+v %v", set, err)
	}
	decode := func(part string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k := set.Keys[0]
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(decode(k.N)), E: int(new(big.Int).SetBytes(decode(k.E)).Int64())}
	access, refreshed := pair(t, redeem(t, s, consented(t, s, url.Values{"scope": {"read"}})))
	seen := map[any]bool{}
	for kind, tt := range map[string]struct {
		token    string
		lifetime time.Duration
	}{"access_token": {access, time.Hour}, "refresh_token": {refreshed, 60 * 24 * time.Hour}} {
		p := strings.Split(tt.token, ".")
		if len(p) != 3 {
			t.Fatalf("%d parts", len(p))
		}
		sum := sha256.Sum256([]byte(p[0] + "." + p[1]))
		if err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], decode(p[2])); err != nil {
			t.Error(err)
		}
		var header, claims map[string]any
		if err := json.Unmarshal(decode(p[0]), &header); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(decode(p[1]), &claims); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(map[string]any{"alg": "RS256", "typ": "JWT", "kid": k.Kid}, header); d != "" || k.Alg != "RS256" || k.Kty != "RSA" {
			t.Error(d)
		}
		iat, _ := claims["iat"].(float64)
		if age := time.Since(time.Unix(int64(iat), 0)); age < 0 || age > time.Minute {
			t.Errorf("iat %v", claims["iat"])
		}
		if jti := claims["jti"]; jti == "" || seen[jti] {
			t.Errorf("jti %v", jti)
		} else {
			seen[jti] = true
		}
		want := map[string]any{
			"sub": DefaultUsername, "tokenType": kind, "scope": "read",
			"iat": iat, "exp": iat + tt.lifetime.Seconds(), "jti": claims["jti"],
		}
		if d := cmp.Diff(want, claims); d != "" {
			t.Error(d)
		}
	}
}

func TestRevocationEndpoint(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	to := s.SSOURL + "/oauth2/revoke"
	revoke := func(token string) {
		t.Helper()
		if got := post(t, to, with(credentials, "token", token)); got.status != 200 {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	access, first := login(t, s)
	refusedWith(t, post(t, to, with(credentials, "token", access, "client_secret", "x")), 401, "invalid_client")
	refusedWith(t, post(t, to, credentials), 400, "invalid_request")
	refusedWith(t, post(t, to+"?x", with(credentials, "token", access)), 400, "invalid_request")
	revoke("unknown")
	if got := api(t, s, access); got.status != 200 {
		t.Fatalf("%d before it was revoked", got.status)
	}
	revoke(access)
	if got := api(t, s, access); got.status != 401 {
		t.Errorf("a revoked access token: %d", got.status)
	}
	access, second := pair(t, refresh(t, s, first)) // revoking an access token revokes no other token
	revoke(second)
	if got := api(t, s, access); got.status != 401 {
		t.Errorf("the family of a revoked refresh token: %d", got.status)
	}
	refusedWith(t, refresh(t, s, second), 400, "invalid_grant")
}

// Whatever the request is, the browser is only sent to a registered URI.
func FuzzAuthorize(f *testing.F) {
	s := NewServer(&Options{AutoAllow: true})
	f.Cleanup(s.Close)
	f.Add(asked.Encode())
	f.Add("redirect_uri=https://evil.example&" + asked.Encode())
	f.Add("client_id=itsm-sync%2B%2F%3D%26%25&redirect_uri=http://127.0.0.1:8400/callback@evil.example")
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "/rsso/oauth2/authorize", nil)
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		to := w.Header().Get("Location")
		if w.Code == 302 && !strings.HasPrefix(to, DefaultRedirectURI+"?") || w.Code != 302 && (to != "" || w.Code != 400) {
			t.Errorf("%q: %d to %q", query, w.Code, to)
		}
	})
}

// Without a code or a refresh token, there is no token.
func FuzzToken(f *testing.F) {
	s := NewServer(nil)
	f.Cleanup(s.Close)
	for _, v := range []url.Values{redeemForm("x"), refreshForm("x"), with(credentials, "grant_type", "client_credentials")} {
		f.Add("/rsso/oauth2/token", v.Encode())
		f.Add("/rsso/oauth2/revoke", v.Encode())
		f.Add("/api/jwt/login", v.Encode())
	}
	f.Fuzz(func(t *testing.T, path, body string) {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.URL.Path = path
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code >= 500 || s.Stats().Exchanges != 0 {
			t.Errorf("%s %q: %d %s", path, body, w.Code, w.Body)
		}
	})
}
