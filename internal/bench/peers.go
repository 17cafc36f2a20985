// Package bench measures itsmauth beside what else keeps a token fresh. It is a module of its own,
// so that nobody depends on the others through us. `make bench` runs all of it and writes the tables
// of docs/performance.md.
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	cloudauth "cloud.google.com/go/auth"
	"cloud.google.com/go/auth/httptransport"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/hashicorp/go-retryablehttp"
	promconfig "github.com/prometheus/common/config"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers/generic"
	"github.com/itsmauth/itsmauth/transport"
)

const (
	clientID     = "bench+client"
	clientSecret = "s+/=&%"
	// timeout is every stack's, so that none is faster for having none.
	timeout = time.Minute
)

// Setup is what a stack is built for.
type Setup struct {
	API, TokenURL *url.URL
	// Base sends the requests; nil is a transport of the stack's own, tuned alike.
	Base http.RoundTripper
	// Lifetime of the tokens, for the margins of those that can be told.
	Lifetime time.Duration
	// Store is shared by the stacks of one account, where they can.
	Store auth.Store
}

// Stack is one of the contestants, ready for requests.
type Stack struct {
	Token func(context.Context) (string, error) // nil: it gives none
	Do    func(*http.Request) (*http.Response, error)
	// Trip is Do without the http.Client on top, where there is one; nil: it has none.
	Trip  http.RoundTripper
	Close func()
}

// Peer is a contestant.
type Peer struct {
	Name string
	New  func(Setup) Stack
}

// Ours is the name of our own stack, and HandBuilt that of the one to compare with.
const (
	Ours      = "itsmauth"
	HandBuilt = "oauth2+retryablehttp"
)

// Peers are all contestants.
var Peers = []Peer{
	{"plain", plain},
	{Ours, itsmauth},
	{HandBuilt, handBuilt},
	{"oauth2", func(s Setup) Stack { return xoauth2(s, 10*time.Second) }},
	{"oauth2-tuned", func(s Setup) Stack { return xoauth2(s, s.Lifetime/5) }},
	{"401-hook", hook},
	{"cloud-auth", cloud},
	{"azcore", azure},
	{"aws-cache", amazon},
	{"prometheus", prometheus},
}

// Named is the contestant of that name.
func Named(name string) Peer {
	for _, p := range Peers {
		if p.Name == name {
			return p
		}
	}
	panic("no peer is called " + name)
}

// base is what every stack's requests go out through.
func (s Setup) base() http.RoundTripper {
	if s.Base != nil {
		return s.Base
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 512, 512
	return t
}

func idle(rt http.RoundTripper) func() {
	return func() { (&http.Client{Transport: rt}).CloseIdleConnections() }
}

func plain(s Setup) Stack {
	base := s.base()
	c := &http.Client{Transport: base, Timeout: timeout}
	return Stack{Do: c.Do, Trip: base, Close: idle(base)}
}

func itsmauth(s Setup) Stack {
	p, err := generic.New(generic.Config{TokenURL: s.TokenURL, ClientID: clientID, ClientSecret: auth.SecretString(clientSecret)}, auth.Env{})
	must(err)
	session := auth.New(p, &auth.Options{Client: transport.NewExchanger(nil), Store: s.Store})
	o := &transport.Options{BaseURL: s.API, Timeout: timeout, Limiter: transport.NewLimiter(nil, 0)}
	if s.Base != nil {
		o.Wrap = func(http.RoundTripper) http.RoundTripper { return s.Base }
	}
	client, err := transport.NewClient(session, o)
	must(err)
	return Stack{
		Token: func(ctx context.Context) (string, error) {
			tok, err := session.Token(ctx)
			if err != nil {
				return "", err
			}
			return tok.AccessToken, nil
		},
		Do: client.Do, Trip: client.Transport,
		Close: func() { session.Close(context.Background()); client.CloseIdleConnections() },
	}
}

// source is x/oauth2's, which asks again when so much of a token's life is left.
func source(s Setup, margin time.Duration) oauth2.TokenSource {
	c := clientcredentials.Config{ClientID: clientID, ClientSecret: clientSecret, TokenURL: s.TokenURL.String(), AuthStyle: oauth2.AuthStyleInHeader}
	return oauth2.ReuseTokenSourceWithExpiry(nil, mint(func() (*oauth2.Token, error) { return c.Token(context.Background()) }), margin)
}

type mint func() (*oauth2.Token, error)

func (m mint) Token() (*oauth2.Token, error) { return m() }

func ofSource(src oauth2.TokenSource) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		tok, err := src.Token()
		if err != nil {
			return "", err
		}
		return tok.AccessToken, nil
	}
}

func xoauth2(s Setup, margin time.Duration) Stack {
	src, base := source(s, margin), s.base()
	trip := &oauth2.Transport{Source: src, Base: base}
	c := &http.Client{Transport: trip, Timeout: timeout}
	return Stack{Token: ofSource(src), Do: c.Do, Trip: trip, Close: idle(base)}
}

// handBuilt is what a careful user would build: x/oauth2 for the token, retryablehttp below it.
func handBuilt(s Setup) Stack {
	src, base := source(s, 10*time.Second), s.base()
	r := retryablehttp.NewClient()
	r.Logger = nil
	r.HTTPClient = &http.Client{Transport: base, Timeout: timeout}
	if s.Base != nil {
		r.HTTPClient = &http.Client{Transport: deadline{base}}
	}
	trip := &oauth2.Transport{Source: src, Base: &retryablehttp.RoundTripper{Client: r}}
	c := &http.Client{Transport: trip}
	return Stack{Token: ofSource(src), Do: c.Do, Trip: trip, Close: idle(base)}
}

// deadline does what a Client's Timeout does above an http.Transport. Above anything else, a stub for
// one, that starts a goroutine for each request, which would not be fair.
type deadline struct{ http.RoundTripper }

func (d deadline) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(req.Context(), timeout)
	resp, err := d.RoundTripper.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &cancelling{resp.Body, cancel}
	return resp, nil
}

type cancelling struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *cancelling) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}

// hook is x/oauth2 with what many add to it: a new token and another try on each 401.
func hook(s Setup) Stack {
	base := s.base()
	h := &hooked{Setup: s, base: base, src: source(s, 10*time.Second)}
	c := &http.Client{Transport: h, Timeout: timeout}
	return Stack{Do: c.Do, Trip: h, Close: idle(base)}
}

type hooked struct {
	Setup
	base http.RoundTripper
	mu   sync.Mutex
	src  oauth2.TokenSource
}

func (h *hooked) RoundTrip(req *http.Request) (*http.Response, error) {
	for again := true; ; again = false {
		h.mu.Lock()
		src := h.src
		h.mu.Unlock()
		resp, err := (&oauth2.Transport{Source: src, Base: h.base}).RoundTrip(req)
		if err != nil || resp.StatusCode != 401 || !again {
			return resp, err
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		h.mu.Lock()
		h.src = source(h.Setup, 10*time.Second)
		h.mu.Unlock()
	}
}

// exchange is the call to the token endpoint for those that bring none.
func (s Setup) exchange(ctx context.Context) (token string, expires time.Time, err error) {
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, "POST", s.TokenURL.String(), strings.NewReader("grant_type=client_credentials"))
	if err != nil {
		return "", time.Time{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(clientID, clientSecret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", time.Time{}, err
	}
	defer resp.Body.Close()
	var a struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil || resp.StatusCode != 200 {
		return "", time.Time{}, fmt.Errorf("HTTP %d, %v", resp.StatusCode, err)
	}
	return a.AccessToken, start.Add(time.Duration(a.ExpiresIn) * time.Second), nil
}

func cloud(s Setup) Stack {
	base := s.base()
	p := cloudauth.NewCachedTokenProvider(googleProvider{s}, &cloudauth.CachedTokenProviderOptions{ExpireEarly: min(s.Lifetime/5, 225*time.Second)})
	c, err := httptransport.NewClient(&httptransport.Options{
		Credentials:      cloudauth.NewCredentials(&cloudauth.CredentialsOptions{TokenProvider: p}),
		BaseRoundTripper: base,
		DisableTelemetry: true,
		UniverseDomain:   "",
		APIKey:           "",
		Endpoint:         s.API.String(),
	})
	must(err)
	c.Timeout = timeout
	return Stack{
		Token: func(ctx context.Context) (string, error) {
			tok, err := p.Token(ctx)
			if err != nil {
				return "", err
			}
			return tok.Value, nil
		},
		Do: c.Do, Trip: c.Transport, Close: idle(base),
	}
}

type googleProvider struct{ Setup }

func (g googleProvider) Token(ctx context.Context) (*cloudauth.Token, error) {
	tok, expires, err := g.exchange(ctx)
	return &cloudauth.Token{Value: tok, Type: "Bearer", Expiry: expires}, err
}

func azure(s Setup) Stack {
	base := s.base()
	c := &http.Client{Transport: base, Timeout: timeout}
	bearer := runtime.NewBearerTokenPolicy(azureCredential{s}, []string{"bench"}, &policy.BearerTokenOptions{InsecureAllowCredentialWithHTTP: true})
	pl := runtime.NewPipeline("bench", "v1", runtime.PipelineOptions{PerRetry: []policy.Policy{bearer}},
		&policy.ClientOptions{Transport: c, Telemetry: policy.TelemetryOptions{Disabled: true}})
	do := func(req *http.Request) (*http.Response, error) {
		r, err := runtime.NewRequestFromRequest(req)
		if err != nil {
			return nil, err
		}
		return pl.Do(r)
	}
	return Stack{Do: do, Close: idle(base)}
}

type azureCredential struct{ Setup }

func (a azureCredential) GetToken(ctx context.Context, _ policy.TokenRequestOptions) (azcore.AccessToken, error) {
	tok, expires, err := a.exchange(ctx)
	return azcore.AccessToken{Token: tok, ExpiresOn: expires, RefreshOn: expires.Add(-a.Lifetime / 5)}, err
}

// amazon is the cache of credentials, with the header that its user would write for a bearer token.
func amazon(s Setup) Stack {
	base := s.base()
	cache := aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		tok, expires, err := s.exchange(ctx)
		return aws.Credentials{AccessKeyID: clientID, SecretAccessKey: clientSecret, SessionToken: tok, CanExpire: true, Expires: expires}, err
	}), func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = s.Lifetime / 5 })
	token := func(ctx context.Context) (string, error) {
		c, err := cache.Retrieve(ctx)
		return c.SessionToken, err
	}
	trip := roundTripper(func(req *http.Request) (*http.Response, error) {
		tok, err := token(req.Context())
		if err != nil {
			return nil, err
		}
		out := req.Clone(req.Context())
		out.Header.Set("Authorization", "Bearer "+tok)
		return base.RoundTrip(out)
	})
	c := &http.Client{Transport: trip, Timeout: timeout}
	return Stack{Token: token, Do: c.Do, Trip: trip, Close: idle(base)}
}

func prometheus(s Setup) Stack {
	base := s.base()
	trip := promconfig.NewOAuth2RoundTripper(promconfig.NewInlineSecret(clientSecret),
		&promconfig.OAuth2{ClientID: clientID, TokenURL: s.TokenURL.String()}, base)
	c := &http.Client{Transport: trip, Timeout: timeout}
	return Stack{Do: c.Do, Trip: trip, Close: idle(base)}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func must(err error) {
	if err != nil {
		panic(err)
	}
}
