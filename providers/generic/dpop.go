package generic

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/follow"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
	"github.com/itsmauth/itsmauth/internal/settings"
)

// DPoP binds tokens to a key (RFC 9449): each token request and each API call proves that its sender has the
// key, and a stolen token is of no use without it.
type DPoP struct {
	// PrivateKey signs the proofs. It is PEM (PKCS#1, PKCS#8 or SEC 1) or a JSON Web Key, not encrypted. The
	// algorithm is the alg of a JSON Web Key, else RS256 for RSA, ES256, ES384 or ES512 for EC, and EdDSA for
	// Ed25519. If the key changes, tokens of the old one are replaced when the product rejects them; a refresh
	// token of a client without a secret is lost. The default is an ES256 key that is made with the first token
	// or login, and kept with the tokens in the token store.
	PrivateKey auth.Secret `yaml:"private_key"`
}

// dpop has the keys and the nonces of a provider.
type dpop struct {
	secret auth.Secret
	given  *follow.Value[*proofKey]  // secret's key; nil: keys are made
	own    func() (*proofKey, error) // made once, for tokens that have no key yet
	last   atomic.Pointer[proofKey]  // the key that was parsed last

	mu     sync.Mutex
	nonces map[string]string // the latest, by origin (RFC 9449 sections 8 and 9)
}

func newDPoP(c *DPoP) *dpop {
	if c == nil {
		return nil
	}
	d := &dpop{secret: c.PrivateKey, own: sync.OnceValues(makeKey), nonces: map[string]string{}}
	if !c.PrivateKey.IsZero() {
		d.given = follow.New(time.Second, follow.Patience, d.read)
	}
	return d
}

// A proofKey signs proofs.
type proofKey struct {
	text       string // what it was parsed from: a setting, or what is kept with a token
	thumbprint string // RFC 7638, in base64url
	signer     jose.OpaqueSigner
	algorithm  jose.SignatureAlgorithm
	header     string // of all its proofs, with the public key, in base64url
}

func newProofKey(text string, k privateKey) (*proofKey, error) {
	fit, err := k.algorithms()
	if err != nil {
		return nil, err
	}
	thumbprint, err := (&jose.JSONWebKey{Key: k.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, errKind
	}
	trial, err := k.signJWT(fit[0], (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt"), []byte("{}"))
	if err != nil {
		return nil, err
	}
	header, _, _ := strings.Cut(trial, ".")
	return &proofKey{text, base64.RawURLEncoding.EncodeToString(thumbprint), cryptosigner.Opaque(k), fit[0], header}, nil
}

// sign returns the JWT of the claims (RFC 7515 section 7.1). Unlike signJWT it neither encodes the key each time nor
// verifies the signature: it signs each call.
func (k *proofKey) sign(claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	text := k.header + "." + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := k.signer.SignPayload([]byte(text), k.algorithm)
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), err
}

// makeKey makes a key for ES256.
func makeKey() (*proofKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	b, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	return parseMadeKey(base64.RawURLEncoding.EncodeToString(b))
}

// parseMadeKey reads a key that was kept with a token: the private scalar of P-256, in base64url.
func parseMadeKey(text string) (*proofKey, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, errKind
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), b)
	if err != nil {
		return nil, errKind
	}
	return newProofKey(text, privateKey{Signer: key})
}

// read reads the key of the settings.
func (d *dpop) read() (*proofKey, error) {
	text, err := d.secret.Value()
	if err != nil {
		return nil, err
	}
	if last := d.last.Load(); last != nil && last.text == text {
		return last, nil
	}
	key, err := parsePrivateKey(text)
	if err != nil {
		return nil, err
	}
	parsed, err := newProofKey(text, key)
	if err == nil {
		d.last.Store(parsed)
	}
	return parsed, err
}

// key returns the key of the settings, else the one that was kept with tok, else a new one.
func (d *dpop) key(ctx context.Context, tok *oauth2.Token) (*proofKey, error) {
	if d.given != nil {
		if key := d.given.Get(ctx); key != nil {
			return key, nil
		}
		key, err := d.read() // for the error
		if err != nil {
			return nil, &auth.KeyError{Key: "dpop.private_key", Err: err}
		}
		return key, nil
	}
	text := auth.SigningKey(tok)
	if last := d.last.Load(); last != nil && last.text == text {
		return last, nil
	}
	// A token without a usable key is rejected with any other, and then replaced.
	key, err := parseMadeKey(text)
	if err != nil {
		return d.own()
	}
	d.last.Store(key)
	return key, nil
}

// A login's key has to be known when the authorization page is opened (RFC 9449 section 10), maybe by another
// process than the one that redeems the code, and before there is a record to keep it in. So it is derived from
// the code verifier, which both know. Since the product gets to know the verifier that is sent, that is derived
// as well.
const (
	keyInfo      = "itsmauth dpop key "
	verifierInfo = "itsmauth code verifier"
)

// loginKey returns the key of the login with this code verifier, and the verifier to send.
func (d *dpop) loginKey(verifier string) (*proofKey, string, error) {
	if d.given != nil || len(verifier) < 43 { // RFC 7636 section 4.1: shorter ones can be guessed
		key, err := d.key(context.Background(), new(oauth2.Token))
		return key, verifier, err
	}
	derive := func(info string) string {
		b, _ := hkdf.Key(sha256.New, []byte(verifier), nil, info, 32) // a fixed length cannot fail
		return base64.RawURLEncoding.EncodeToString(b)
	}
	for try := byte('0'); ; try++ {
		key, err := parseMadeKey(derive(keyInfo + string(try)))
		if err == nil || try == '9' { // one in 2³² is out of the curve's range
			return key, derive(verifierInfo), err
		}
	}
}

// keep returns tok with the key, if that is not of the settings.
func (d *dpop) keep(tok *oauth2.Token, key *proofKey) *oauth2.Token {
	if d.given != nil {
		return tok
	}
	return auth.WithSigningKey(tok, key.text)
}

// proof returns a proof for req with accessToken, or "" for a token request (RFC 9449 section 4.2).
func (d *dpop) proof(req *http.Request, key *proofKey, accessToken string) (string, error) {
	at := url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: req.URL.Path, RawPath: req.URL.RawPath}
	if at.Path == "" {
		at.Path = "/"
	}
	method := req.Method
	if method == "" {
		method = http.MethodGet
	}
	claims := struct {
		ID     string `json:"jti"`
		Method string `json:"htm"`
		URL    string `json:"htu"`
		Issued int64  `json:"iat"`
		Token  string `json:"ath,omitempty"`
		Nonce  string `json:"nonce,omitempty"`
	}{rand.Text(), method, at.String(), time.Now().Unix(), "", d.nonce(req.URL)}
	if accessToken != "" {
		sum := sha256.Sum256([]byte(accessToken))
		claims.Token = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return key.sign(claims)
}

func (d *dpop) nonce(u *url.URL) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.nonces[endpoint.Origin(u)]
}

// nonceText is what a nonce may consist of (RFC 9449 section 8.1), in a plausible length.
var nonceText = regexp.MustCompile(`^[\x21\x23-\x5B\x5D-\x7E]{1,1000}$`)

// Signs reports whether DPoP is set.
func (p *Provider) Signs() bool { return p.dpop != nil }

// Sign adds the proof of an API call (RFC 9449 section 7.1).
func (p *Provider) Sign(req *http.Request, tok *oauth2.Token) error {
	if p.dpop == nil {
		return nil
	}
	key, err := p.dpop.key(req.Context(), tok)
	if err != nil {
		return err
	}
	proof, err := p.dpop.proof(req, key, tok.AccessToken)
	if err != nil {
		return err
	}
	setProof(req.Header, proof)
	return nil
}

// setProof replaces a proof in any spelling.
func setProof(h http.Header, proof string) {
	maps.DeleteFunc(h, func(name string, _ []string) bool { return strings.EqualFold(name, "DPoP") })
	h["DPoP"] = []string{proof}
}

// Challenged remembers the nonce for the next proofs to the origin of resp. It reports whether the product
// wants the request once more with this nonce (RFC 9449 sections 8 and 9).
func (p *Provider) Challenged(resp *http.Response, body []byte) (again bool) {
	nonce := resp.Header.Get("DPoP-Nonce")
	if p.dpop == nil || resp.Request == nil || !nonceText.MatchString(nonce) {
		return false
	}
	p.dpop.mu.Lock()
	p.dpop.nonces[endpoint.Origin(resp.Request.URL)] = nonce
	p.dpop.mu.Unlock()
	return p.wantsNonce(resp, body)
}

const useNonce = "use_dpop_nonce"

// wantsNonce reports whether resp rejects the proof because it has no nonce, or an old one.
func (p *Provider) wantsNonce(resp *http.Response, body []byte) bool {
	for _, challenge := range resp.Header.Values("WWW-Authenticate") {
		if strings.Contains(challenge, useNonce) {
			return true
		}
	}
	return resp.StatusCode >= 400 && first(jsonbody.Decode(body), p.c.Response.Error, str) == useNonce
}

// bind makes r prove that the client has tok's key, if tokens are bound to keys.
func (p *Provider) bind(ctx context.Context, r *request, tok *oauth2.Token) {
	if p.dpop != nil {
		r.useKey(p.dpop.key(ctx, tok))
	}
}

// useKey makes r prove that the client has the key.
func (r *request) useKey(key *proofKey, err error) {
	if r.key = key; err != nil && r.err == nil {
		r.err = fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
	}
}

// prove adds the proof of r to the header of req, which is to be sent.
func (r *request) prove(req *http.Request, d *dpop) error {
	proof, err := d.proof(req, r.key, r.proves)
	r.secrets = append(r.secrets, proof)
	setProof(req.Header, proof)
	return err
}

// checkDPoP adds errors for settings that DPoP cannot be used with.
func (c *Config) checkDPoP(errs *settings.Errors) {
	if c.DPoP == nil {
		return
	}
	errs.When(c.Response.Format == "text", "dpop", "needs response.format json: the token response has to say token_type DPoP")
	if !c.DPoP.PrivateKey.IsZero() {
		_, err := newDPoP(c.DPoP).read()
		errs.AddSecret("dpop.private_key", err)
	}
}
