package providers_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
)

// A tokenVendor is what a product with a token endpoint documents. Requests are written as wire writes them. TOKEN
// and REFRESH stand for tokens, which are new in each response, and the name of an environment variable for its value.
type tokenVendor struct {
	preset, way string
	more        string // further keys of the connector
	login       string // the login page, if a person must log in
	token       string // the first token request, if seed is empty
	seed        string // the refresh token that the connector begins with
	refresh     string // the token requests after a response with REFRESH
	answer      string
	keeps       bool   // the response to refresh has no refresh token
	call        string // the headers of a call
	expired     string // the response to a call with a dead token; 401 {} if empty
	refusal     string // of everything that is sent to the token endpoint
	refused     error
}

var tokenVendors = []tokenVendor{{
	preset: "servicenow", way: "the client alone",
	token:   "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&grant_type=client_credentials",
	answer:  `{"access_token":"TOKEN","scope":"useraccount","token_type":"Bearer","expires_in":1799}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error_description":"access_denied","error":"server_error"}`, refused: auth.ErrCredentials,
}, {
	preset: "servicenow", way: "a user's name and password",
	token:   "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&grant_type=password&password=SERVICENOW_PASSWORD&username=your-username",
	refresh: "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","scope":"useraccount","token_type":"Bearer","expires_in":1799}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error_description":"access_denied","error":"server_error"}`, refused: auth.ErrCredentials,
}, {
	preset: "servicenow", way: "a person's login",
	login:   "https://acme.service-now.com/oauth_auth.do?client_id=your-client-id&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&state=STATE",
	token:   "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&code=CODE&grant_type=authorization_code&redirect_uri=http://127.0.0.1:8400/callback",
	refresh: "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","scope":"useraccount","token_type":"Bearer","expires_in":1799}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error_description":"access_denied","error":"server_error"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "jira",
	login: "https://auth.atlassian.com/authorize?audience=api.atlassian.com&client_id=your-client-id&prompt=consent" +
		"&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=read:jira-work read:jira-user offline_access&state=STATE",
	token:   `POST https://auth.atlassian.com/oauth/token json {"client_id":"your-client-id","client_secret":"JIRA_CLIENT_SECRET","code":"CODE","grant_type":"authorization_code","redirect_uri":"http://127.0.0.1:8400/callback"}`,
	refresh: `POST https://auth.atlassian.com/oauth/token json {"client_id":"your-client-id","client_secret":"JIRA_CLIENT_SECRET","grant_type":"refresh_token","refresh_token":"REFRESH"}`,
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","expires_in":3600,"scope":"read:jira-work","token_type":"Bearer"}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `403 {"error":"invalid_grant","error_description":"Unknown or invalid refresh token."}`, refused: auth.ErrConsentRequired,
}, {
	preset: "zendesk", way: "the client alone",
	token:   `POST https://acme.zendesk.com/oauth/tokens json {"client_id":"your-client-id","client_secret":"ZENDESK_CLIENT_SECRET","expires_in":7200,"grant_type":"client_credentials","scope":"read"}`,
	answer:  `{"access_token":"TOKEN","token_type":"bearer","scope":"read","expires_in":7200}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error":"invalid_client","error_description":"No such client"}`, refused: auth.ErrCredentials,
}, {
	preset: "zendesk", way: "a person's login",
	login:   "https://acme.zendesk.com/oauth/authorizations/new?client_id=your-client-id&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=read&state=STATE",
	token:   `POST https://acme.zendesk.com/oauth/tokens json {"client_id":"your-client-id","client_secret":"ZENDESK_CLIENT_SECRET","code":"CODE","expires_in":7200,"grant_type":"authorization_code","redirect_uri":"http://127.0.0.1:8400/callback","scope":"read"}`,
	refresh: `POST https://acme.zendesk.com/oauth/tokens json {"client_id":"your-client-id","client_secret":"ZENDESK_CLIENT_SECRET","expires_in":7200,"grant_type":"refresh_token","refresh_token":"REFRESH"}`,
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","token_type":"bearer","scope":"read","expires_in":7200,"refresh_token_expires_in":2592000}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_grant","error_description":"The provided authorization grant is invalid"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "pagerduty", way: "the app alone",
	token:   "POST https://identity.pagerduty.com/oauth/token form client_id=your-client-id&client_secret=PAGERDUTY_CLIENT_SECRET&grant_type=client_credentials&scope=as_account-us.acme incidents.read services.read",
	answer:  `{"access_token":"TOKEN","scope":"as_account-us.acme incidents.read services.read","token_type":"bearer","expires_in":864000}`,
	call:    "Accept: application/vnd.pagerduty+json;version=2; Authorization: Bearer TOKEN",
	refusal: `401 {"error":"invalid_client"}`, refused: auth.ErrCredentials,
}, {
	preset: "pagerduty", way: "a person's login",
	login: "https://identity.pagerduty.com/oauth/authorize?client_id=your-client-id&code_challenge=CHALLENGE&code_challenge_method=S256" +
		"&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=incidents.read services.read&state=STATE",
	token:   "POST https://identity.pagerduty.com/oauth/token form client_id=your-client-id&client_secret=PAGERDUTY_CLIENT_SECRET&code=CODE&code_verifier=VERIFIER&grant_type=authorization_code&redirect_uri=http://127.0.0.1:8400/callback",
	refresh: "POST https://identity.pagerduty.com/oauth/token form client_id=your-client-id&client_secret=PAGERDUTY_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","token_type":"bearer","expires_in":864000}`,
	call:    "Accept: application/vnd.pagerduty+json;version=2; Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_grant"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "servicedesk_plus", way: "a person's login",
	login: "https://accounts.zoho.com/oauth/v2/auth?access_type=offline&client_id=your-client-id&prompt=consent" +
		"&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=SDPOnDemand.requests.ALL,SDPOnDemand.users.READ&state=STATE",
	more:    "scopes: [SDPOnDemand.requests.ALL, SDPOnDemand.users.READ]",
	token:   "POST https://accounts.zoho.com/oauth/v2/token form client_id=your-client-id&client_secret=SDP_CLIENT_SECRET&code=CODE&grant_type=authorization_code&redirect_uri=http://127.0.0.1:8400/callback",
	refresh: "POST https://accounts.zoho.com/oauth/v2/token form client_id=your-client-id&client_secret=SDP_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","api_domain":"https://www.zohoapis.com","token_type":"Bearer","expires_in":3600}`,
	keeps:   true,
	call:    "Accept: application/vnd.manageengine.sdp.v3+json; Authorization: Zoho-oauthtoken TOKEN",
	refusal: `200 {"error":"invalid_code"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "servicedesk_plus", way: "a refresh token of a self client",
	seed:    "SDP_REFRESH_TOKEN",
	refresh: "POST https://accounts.zoho.com/oauth/v2/token form client_id=your-client-id&client_secret=SDP_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","api_domain":"https://www.zohoapis.com","token_type":"Bearer","expires_in":3600}`,
	keeps:   true,
	call:    "Accept: application/vnd.manageengine.sdp.v3+json; Authorization: Zoho-oauthtoken TOKEN",
	refusal: `400 {"error":"Access Denied","error_description":"You have made too many requests continuously."}`, refused: auth.ErrUnavailable,
}, {
	preset:  "ivanti",
	token:   `POST https://acme.saasit.com/api/rest/authentication/login json {"password":"IVANTI_PASSWORD","role":"SelfService","tenant":"acme.saasit.com","username":"your-username"}`,
	answer:  `"TOKEN"`,
	call:    "Authorization: TOKEN",
	expired: `401 {"code":"ISM_4001","description":"Invalid session key or session timed out","message":["Authentication required"]}`,
	refusal: `401 {"code":"ISM_4001","message":["Authentication required"]}`, refused: auth.ErrCredentials,
}, {
	preset:  "cherwell",
	token:   "POST https://cherwell.example.com/CherwellAPI/token form client_id=your-client-id&grant_type=password&password=CHERWELL_PASSWORD&username=your-username",
	refresh: "POST https://cherwell.example.com/CherwellAPI/token form client_id=your-client-id&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","token_type":"bearer","expires_in":1199,"refresh_token":"REFRESH","as:client_id":"your-client-id","username":"your-username",".issued":"Mon, 17 June 2019 15:31:39 GMT"}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_grant","error_description":"BADREQUEST"}`, refused: auth.ErrCredentials,
}, {
	preset: "salesforce", way: "the client alone",
	token:   "POST https://acme.my.salesforce.com/services/oauth2/token form client_id=your-consumer-key&client_secret=SALESFORCE_CLIENT_SECRET&grant_type=client_credentials",
	answer:  `{"access_token":"TOKEN","signature":"c2ln","instance_url":"https://acme.my.salesforce.com","id":"https://login.salesforce.com/id/00D/005","token_type":"Bearer","issued_at":"1667000000000"}`,
	call:    "Authorization: Bearer TOKEN",
	expired: `401 [{"message":"Session expired or invalid","errorCode":"INVALID_SESSION_ID"}]`,
	refusal: `400 {"error":"invalid_client","error_description":"invalid client credentials"}`, refused: auth.ErrCredentials,
}, {
	preset: "salesforce", way: "a person's login",
	login:   "https://acme.my.salesforce.com/services/oauth2/authorize?client_id=your-consumer-key&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=api refresh_token&state=STATE",
	token:   "POST https://acme.my.salesforce.com/services/oauth2/token form client_id=your-consumer-key&client_secret=SALESFORCE_CLIENT_SECRET&code=CODE&grant_type=authorization_code&redirect_uri=http://127.0.0.1:8400/callback",
	refresh: "POST https://acme.my.salesforce.com/services/oauth2/token form client_id=your-consumer-key&client_secret=SALESFORCE_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","instance_url":"https://acme.my.salesforce.com","token_type":"Bearer","issued_at":"1667000000000"}`,
	keeps:   true,
	call:    "Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_grant","error_description":"expired access/refresh token"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "entra", way: "a secret of the client",
	token: "POST https://login.microsoftonline.com/acme.onmicrosoft.com/oauth2/v2.0/token form " +
		"client_id=00000000-0000-0000-0000-000000000000&client_secret=ENTRA_CLIENT_SECRET&grant_type=client_credentials&scope=https://graph.microsoft.com/.default",
	answer:  `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"TOKEN"}`,
	call:    "Authorization: Bearer TOKEN",
	expired: `401 {"error":{"code":"InvalidAuthenticationToken","message":"Lifetime validation failed, the token is expired."}}`,
	refusal: `401 {"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided.","error_codes":[7000215]}`, refused: auth.ErrCredentials,
}, {
	preset: "halo",
	token: "POST https://acme.haloitsm.com/auth/token?tenant=acme form " +
		"client_id=00000000-0000-0000-0000-000000000000&client_secret=HALO_CLIENT_SECRET&grant_type=client_credentials&scope=all",
	answer:  `{"scope":"all","token_type":"Bearer","access_token":"TOKEN","expires_in":3600,"id_token":null}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_client","error_description":"The specified client credentials are invalid."}`, refused: auth.ErrCredentials,
}, {
	preset: "xurrent", way: "the client alone",
	token:   "POST https://oauth.xurrent.com/token form client_id=your-client-id&client_secret=XURRENT_CLIENT_SECRET&grant_type=client_credentials",
	answer:  `{"access_token":"TOKEN","token_type":"Bearer","expires_in":3600}`,
	call:    "Authorization: Bearer TOKEN; X-Xurrent-Account: acme",
	refusal: `400 {"error":"invalid_client"}`, refused: auth.ErrCredentials,
}, {
	preset: "xurrent", way: "a region",
	token:   "POST https://oauth.au.xurrent.com/token form client_id=your-client-id&client_secret=XURRENT_CLIENT_SECRET&grant_type=client_credentials",
	answer:  `{"access_token":"TOKEN"}`,
	call:    "Authorization: Bearer TOKEN; X-Xurrent-Account: acme",
	refusal: `400 {"error":"invalid_client"}`, refused: auth.ErrCredentials,
}, {
	preset:  "xmatters",
	token:   "POST https://acme.xmatters.com/api/xm/1/oauth2/token form client_id=your-client-id&grant_type=password&password=XMATTERS_PASSWORD&username=your-username",
	refresh: "POST https://acme.xmatters.com/api/xm/1/oauth2/token form client_id=your-client-id&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","token_type":"bearer","refresh_token":"REFRESH","expires_in":14399,"scope":"all","jti":"c0"}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"code":401,"reason":"Unauthorized","message":"Authentication failed"}`, refused: auth.ErrCredentials,
}, {
	preset:  "sysaid",
	token:   `POST https://acme.sysaidit.com/connect/v1/access-tokens json {"clientId":"your-client-id","clientSecret":"SYSAID_CLIENT_SECRET"}; X-Sysaid-Accountid: acme`,
	answer:  `{"token":"TOKEN","expiresIn":3600,"tokenType":"Bearer"}`,
	call:    "Authorization: Bearer TOKEN; X-Sysaid-Accountid: acme",
	refusal: `401 {"message":"Unauthorized"}`, refused: auth.ErrCredentials,
}, {
	preset: "glpi", way: "the user alone",
	token:   "GET https://glpi.example.com/apirest.php/initSession; Authorization: user_token GLPI_USER_TOKEN",
	answer:  `{"session_token":"TOKEN"}`,
	call:    "Session-Token: TOKEN",
	expired: `401 ["ERROR_SESSION_TOKEN_INVALID","session_token seems invalid"]`,
	refusal: `401 ["ERROR_GLPI_LOGIN_USER_TOKEN","parameter user_token seems invalid"]`, refused: auth.ErrCredentials,
}, {
	preset: "glpi", way: "an application's token, too",
	token:   "GET https://glpi.example.com/apirest.php/initSession; App-Token: GLPI_APP_TOKEN; Authorization: user_token GLPI_USER_TOKEN",
	answer:  `{"session_token":"TOKEN"}`,
	call:    "App-Token: GLPI_APP_TOKEN; Session-Token: TOKEN",
	expired: `401 ["ERROR_SESSION_TOKEN_INVALID","session_token seems invalid"]`,
	refusal: `400 ["ERROR_WRONG_APP_TOKEN_PARAMETER","parameter app_token seems wrong"]`, refused: auth.ErrCredentials,
}}

// TestPresets connects to a server of each product's shape, as its documentation shows the connector.
func TestPresets(t *testing.T) {
	t.Parallel()
	for _, v := range tokenVendors {
		t.Run(v.preset+"/"+v.way, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, v.test)
		})
	}
}

// Each way to authenticate of each preset has a test.
func TestPresetsAreTested(t *testing.T) {
	t.Parallel()
	tested := map[string]bool{}
	for _, v := range tokenVendors {
		tested[v.preset+"/"+v.way] = true
	}
	for _, p := range config.Presets() {
		for _, way := range append(p.Ways, config.PresetWay{})[:max(1, len(p.Ways))] {
			if !tested[p.Name+"/"+way.About] {
				t.Errorf("%s/%s is not tested", p.Name, way.About)
			}
		}
	}
}

const verifier = "verifier-of-at-least-forty-three-characters-x"

func (v tokenVendor) test(t *testing.T) {
	s := &tokenServer{tokenVendor: v, current: v.seed}
	l := memnet.Listen()
	server := &http.Server{Handler: s}
	go server.Serve(l)
	defer server.Close()
	client := l.Client()
	defer client.CloseIdleConnections()
	wrap := func(string, http.RoundTripper) http.RoundTripper { return anywhere{client.Transport} }
	conns, err := config.Parse("itsmauth.yaml", []byte(presetYAML(t, v.preset, v.way)+"    "+v.more+"\n"), config.WithWrap(wrap))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	c, err := conns.Get(v.preset)
	if err != nil {
		t.Fatal(err)
	}
	session := c.Session()
	if flow := session.CodeFlow(); flow != nil {
		page, err := url.Parse(flow.URL("STATE", verifier))
		if err != nil {
			t.Fatal(err)
		}
		challenge := oauth2.S256ChallengeFromVerifier(verifier)
		if got := strings.ReplaceAll(address(page), challenge, "CHALLENGE"); got != v.login {
			t.Errorf("the login page is\n%s\nnot\n%s", got, v.login)
		}
		if err := session.Redeem(t.Context(), "CODE", verifier); err != nil {
			t.Fatal(err)
		}
	} else if v.login != "" {
		t.Error("nobody needs to log in")
	}
	works := func(when string, exchanges, refusedCalls int) {
		t.Helper()
		status, body, err := call(t.Context(), c, "GET", c.Probe, "")
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil || status != 200 || s.exchanges != exchanges || s.refusedCalls != refusedCalls || s.wrong != "" {
			t.Errorf("%s: %d %s %v, %d exchanges, %d calls refused, want %d and %d%s", when, status, body, err, s.exchanges, s.refusedCalls, exchanges, refusedCalls, s.wrong)
		}
	}
	works("at first", 1, 0)
	works("again", 1, 0)
	s.revoke()
	works("after a revocation", 2, 1)
	life, known := s.lifetime()
	time.Sleep(life)
	if known {
		works("after the token expired", 3, 1)
	} else {
		works("after the session ended", 3, 2)
	}
	s.refuse()
	if status, body, err := call(t.Context(), c, "GET", c.Probe, ""); err != nil || status != s.expiredStatus() {
		t.Errorf("with dead credentials: %d %s %v", status, body, err)
	}
	if _, err := session.Token(t.Context()); !errors.Is(err, v.refused) {
		t.Errorf("with dead credentials: %v, want %v", err, v.refused)
	}
}

var envReference = regexp.MustCompile(`\$\{env:([A-Z0-9_]+)\}`)

// presetYAML is the connector that the documentation shows. The value of a variable is its name.
func presetYAML(t *testing.T, name, way string) string {
	t.Helper()
	text := "version: 1\nconnectors:\n  " + name + ":\n    provider: " + name + "\n"
	list := config.Presets()
	p := list[slices.IndexFunc(list, func(p config.Preset) bool { return p.Name == name })]
	keys := p.Keys
	for _, w := range p.Ways {
		if w.About == way {
			keys = slices.Concat(keys, w.Keys)
		}
	}
	for _, k := range keys {
		text += "    " + strings.ReplaceAll(strings.TrimSpace(k.Example), "\n", "\n    ") + "\n"
	}
	return envReference.ReplaceAllString(text, "$${env:$1:-$1}")
}

// anywhere sends requests to every address to one server, and tells it their scheme.
type anywhere struct{ next http.RoundTripper }

func (a anywhere) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Scheme", r.URL.Scheme)
	r.URL.Scheme = "http"
	return a.next.RoundTrip(r)
}

// A tokenServer is a product.
type tokenServer struct {
	tokenVendor
	mu           sync.Mutex
	exchanges    int
	refusedCalls int
	current      string // the refresh token
	live         string // the access token
	until        time.Time
	refuses      bool
	wrong        string
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	want := s.token
	if s.current != "" && s.refresh != "" {
		want = s.filledIn(s.refresh)
	}
	if got := wire(r, body); urlOf(got) != urlOf(want) {
		s.api(w, r)
	} else if s.refuses {
		respond(w, s.refusal)
	} else if got != want {
		s.wrong += "\ngot  " + got + "\nwant " + want
		respond(w, `400 {"error":"invalid_request"}`)
	} else {
		answer := s.answer
		if s.keeps && want != s.token {
			answer = regexp.MustCompile(`"refresh_token":"REFRESH",?`).ReplaceAllString(answer, "")
		}
		s.exchanges++
		s.live = "token-" + strconv.Itoa(s.exchanges)
		if strings.Contains(answer, "REFRESH") {
			s.current = "refresh-" + strconv.Itoa(s.exchanges)
		}
		life, _ := s.lifetime()
		s.until = time.Now().Add(life)
		respond(w, "200 "+s.filledIn(answer))
	}
}

func (s *tokenServer) api(w http.ResponseWriter, r *http.Request) {
	got, want := headers(r, "Accept-Encoding", "User-Agent", "X-Scheme"), s.filledIn(s.call)
	switch {
	case got == want && time.Now().Before(s.until):
		respond(w, "200 {}")
	case s.live == "" || !time.Now().Before(s.until):
		s.refusedCalls++
		if s.expired == "" {
			s.expired = "401 {}"
		}
		respond(w, s.expired)
	default:
		s.wrong += "\ngot  " + got + "\nwant " + want
		respond(w, "500 {}")
	}
}

var placeholders = regexp.MustCompile(`\b(TOKEN|REFRESH)\b`)

// filledIn replaces TOKEN and REFRESH by the current ones.
func (s *tokenServer) filledIn(text string) string {
	return placeholders.ReplaceAllStringFunc(text, func(name string) string {
		return map[string]string{"TOKEN": s.live, "REFRESH": s.current}[name]
	})
}

func (s *tokenServer) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = ""
}

func (s *tokenServer) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live, s.refuses = "", true
}

func (s *tokenServer) expiredStatus() int {
	status, _ := strconv.Atoi(s.expired[:3])
	return status
}

var expiresIn = regexp.MustCompile(`"expires_?[iI]n":([0-9]+)`)

// lifetime is how long a token lives, and whether the response says so.
func (s *tokenServer) lifetime() (time.Duration, bool) {
	if m := expiresIn.FindStringSubmatch(s.answer); m != nil {
		n, _ := strconv.Atoi(m[1])
		return time.Duration(n) * time.Second, true
	}
	return 20 * time.Minute, false
}

// respond writes a response such as 401 {}.
func respond(w http.ResponseWriter, text string) {
	code, body, _ := strings.Cut(text, " ")
	status, err := strconv.Atoi(code)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	io.WriteString(w, body)
}

// wire writes a request: method, address, encoding and fields in alphabetical order, and unusual headers.
func wire(r *http.Request, body []byte) string {
	u := *r.URL
	u.Scheme, u.Host = r.Header.Get("X-Scheme"), r.Host
	text := r.Method + " " + address(&u)
	switch {
	case len(body) == 0:
	case r.Header.Get("Content-Type") == "application/json":
		var fields map[string]any
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		if err := d.Decode(&fields); err != nil {
			return text + " json " + err.Error()
		}
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.Encode(fields)
		text += " json " + strings.TrimSpace(b.String())
	default:
		fields, err := url.ParseQuery(string(body))
		if err != nil || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
			return text + " " + r.Header.Get("Content-Type") + string(body)
		}
		text += " form " + strings.ReplaceAll(unescaped(fields), verifier, "VERIFIER")
	}
	if more := headers(r, "Accept", "Accept-Encoding", "Connection", "Content-Length", "Content-Type", "User-Agent", "X-Scheme"); more != "" {
		text += "; " + more
	}
	return text
}

// urlOf is the URL in what wire writes.
func urlOf(text string) string { return strings.TrimSuffix(strings.Fields(text)[1], ";") }

// address writes a URL without escapes.
func address(u *url.URL) string {
	text := u.Scheme + "://" + u.Host + u.Path
	if u.RawQuery != "" {
		text += "?" + unescaped(u.Query())
	}
	return text
}

func unescaped(fields url.Values) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		for _, v := range fields[k] {
			list = append(list, k+"="+v)
		}
	}
	return strings.Join(list, "&")
}

// headers writes all headers but some. Basic credentials are decoded.
func headers(r *http.Request, without ...string) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		if slices.Contains(without, name) {
			continue
		}
		value := strings.Join(r.Header[name], ", ")
		if basic, ok := strings.CutPrefix(value, "Basic "); ok {
			decoded, err := base64.StdEncoding.DecodeString(basic)
			value = fmt.Sprint("Basic ", string(decoded))
			if err != nil {
				value = err.Error()
			}
		}
		list = append(list, name+": "+value)
	}
	return strings.Join(list, "; ")
}
