package generic

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/jwt"
	"github.com/itsmauth/itsmauth/internal/settings"
)

// Assertion says how the JWT is made that is the grant, or that authenticates the client (RFC 7523). Each token
// request gets a new one, signed with the key as it is then. If it does both, the grant's is as set here; the
// client's differs in that issuer and subject are the client id and that it has no Claims (RFC 7523 section 3).
type Assertion struct {
	// PrivateKey is the key that signs: PEM (PKCS#1, PKCS#8 or SEC 1) or a JSON Web Key (RFC 7517), not
	// encrypted; RSA of at least 2048 bits, EC (P-256, P-384, P-521) or Ed25519.
	PrivateKey auth.Secret `yaml:"private_key"`
	// Signer signs in place of PrivateKey. It may be a KMS or an HSM. Its errors are shown. It must return
	// soon: the exchange waits for it.
	Signer crypto.Signer `yaml:"-" json:"-" xml:"-"`
	// Certificate is the key's certificate in PEM, also with its chain. Its SHA-256 thumbprint is in the
	// JWT's header as x5t#S256 (RFC 7515 section 4.1.8), by which Entra finds the key. It is read as often as
	// the key is.
	Certificate auth.Secret `yaml:"certificate" literal:"true"`
	// KeyID is in the JWT's header as kid (RFC 7515 section 4.1.4). The default is the kid of a JSON Web Key.
	KeyID string `yaml:"key_id"`
	// Algorithm is the algorithm of the signature (RFC 7518 section 3.1, RFC 8037 section 3.1). The default is
	// the alg of a JSON Web Key, else RS256 for RSA, ES256, ES384 or ES512 for EC, and EdDSA for Ed25519.
	Algorithm string `yaml:"algorithm" enum:"RS256,RS384,RS512,PS256,PS384,PS512,ES256,ES384,ES512,EdDSA"`
	// Issuer is the claim iss. The default is the client id.
	Issuer string `yaml:"issuer"`
	// Subject is the claim sub. The default is the client id, but for the grant jwt_bearer the username, if
	// there is one.
	Subject string `yaml:"subject"`
	// Audience is the claim aud. The default is the token URL.
	Audience string `yaml:"audience"`
	// Lifetime is how long the JWT is valid, in whole seconds: exp less iat. It only has to reach the product.
	Lifetime time.Duration `yaml:"lifetime" default:"3m"`
	// Claims are further claims: texts, numbers and flags. They are part of the credential's identity.
	Claims map[string]any `yaml:"claims"`

	hidden func() crypto.Signer // Signer, where printing a provider does not show it
}

// Format prints the settings without Signer, which may be a key.
func (a Assertion) Format(f fmt.State, verb rune) {
	type plain Assertion
	a.Signer = nil
	fmt.Fprintf(f, fmt.FormatString(f, verb), plain(a))
}

// The names of RFC 7523 section 2, as they are sent.
const (
	jwtBearerGrant     = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	jwtBearerAssertion = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// assertionIsGrant and assertionIsClient report what the assertion is for.
func (c *Config) assertionIsGrant() bool  { return c.Grant == "jwt_bearer" }
func (c *Config) assertionIsClient() bool { return c.CredentialsIn == "private_key_jwt" }

// sendsClientAssertion reports whether the client is authenticated by a JWT that was signed elsewhere.
func (c *Config) sendsClientAssertion() bool { return c.CredentialsIn == "client_assertion" }

// A party is whom an assertion is from and about.
type party struct {
	issuer, subject string
	claims          map[string]any
}

// grantParty is the party of the assertion that is the grant.
func (c *Config) grantParty() party {
	a := &c.Assertion
	return party{cmp.Or(a.Issuer, c.ClientID), cmp.Or(a.Subject, c.Username, c.ClientID), a.Claims}
}

// clientParty is the party of the assertion that authenticates the client.
func (c *Config) clientParty() party {
	if a := &c.Assertion; !c.assertionIsGrant() {
		return party{cmp.Or(a.Issuer, c.ClientID), cmp.Or(a.Subject, c.ClientID), a.Claims}
	}
	return party{issuer: c.ClientID, subject: c.ClientID}
}

func (c *Config) audience() string { return cmp.Or(c.Assertion.Audience, c.TokenURL.String()) }

// assertion returns a new JWT. Its error is an [*auth.KeyError].
func (c *Config) assertion(p party) (string, error) {
	s, err := c.Assertion.signing()
	if err != nil {
		return "", err
	}
	claims := map[string]any{}
	maps.Copy(claims, p.claims)
	issued := time.Now().Unix()
	claims["iss"], claims["sub"], claims["aud"] = p.issuer, p.subject, c.audience()
	claims["iat"], claims["exp"], claims["jti"] = issued, issued+int64(c.Assertion.Lifetime/time.Second), rand.Text()
	return s.sign(claims)
}

// A signing is a key with what JWTs say of it.
type signing struct {
	key       privateKey
	at        string // its setting
	algorithm jose.SignatureAlgorithm
	header    map[jose.HeaderKey]any
}

// signing reads key and certificate. Its error is an [*auth.KeyError].
func (a *Assertion) signing() (*signing, error) {
	s := &signing{at: "assertion.private_key", header: map[jose.HeaderKey]any{"typ": "JWT"}}
	refuse := func(key string, err error) (*signing, error) { return nil, &auth.KeyError{Key: key, Err: err} }
	if a.hidden != nil {
		s.at, s.key.Signer = "assertion", a.hidden()
	} else if text, err := a.PrivateKey.Value(); err != nil {
		return refuse(s.at, err)
	} else if s.key, err = parsePrivateKey(text); err != nil {
		return refuse(s.at, err)
	}
	fit, err := s.key.algorithms()
	if err != nil {
		return refuse(s.at, err)
	}
	s.algorithm = cmp.Or(jose.SignatureAlgorithm(a.Algorithm), fit[0])
	if !slices.Contains(fit, s.algorithm) {
		return refuse("assertion.algorithm", unusable("does not fit the private key, which is for "+join(fit)))
	}
	if id := cmp.Or(a.KeyID, s.key.id); id != "" {
		s.header["kid"] = id
	}
	if !a.Certificate.IsZero() {
		text, err := a.Certificate.Value()
		if err == nil {
			s.header["x5t#S256"], err = s.key.thumbprint(text)
		}
		if err != nil {
			return refuse("assertion.certificate", err)
		}
	}
	return s, nil
}

// sign returns the JWT of the claims.
func (s *signing) sign(claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", &auth.KeyError{Key: "assertion.claims", Err: unusable("cannot be written as JSON")}
	}
	token, err := s.key.signJWT(s.algorithm, &jose.SignerOptions{ExtraHeaders: s.header}, payload)
	if err != nil {
		return "", &auth.KeyError{Key: s.at, Err: err}
	}
	return token, nil
}

// assertionSettings are what tells assertions apart, if there are any, as key and value.
func (c *Config) assertionSettings() (list [][2]string) {
	who := c.grantParty()
	switch {
	case c.assertionIsGrant():
	case c.assertionIsClient():
		who = c.clientParty()
	default:
		return nil
	}
	list = [][2]string{{"issuer", who.issuer}, {"subject", who.subject}, {"audience", c.Assertion.Audience}, {"key_id", c.Assertion.KeyID}}
	for _, name := range slices.Sorted(maps.Keys(who.claims)) {
		list = append(list, [2]string{"claims." + name, fmt.Sprint(who.claims[name])})
	}
	return list
}

// assertion makes a JWT and adds it to secrets.
func (r *request) assertion(p party) string {
	token, err := r.c.assertion(p)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
	}
	r.secrets = append(r.secrets, token)
	return token
}

// setClientAssertion adds the JWT that authenticates the client (RFC 7523 section 2.2). The client id need not be
// sent with it, but Entra wants it.
func (r *request) setClientAssertion(token string) {
	r.set("client_id", r.c.ClientID)
	r.set("client_assertion_type", jwtBearerAssertion)
	r.set("client_assertion", token)
}

// assertionHint names the setting of the JWT that the product refused, or is "" if it refused no JWT.
func (r *request) assertionHint() string {
	c := r.c
	other := c.sendsClientAssertion() || r.code == "invalid_client" && !c.ClientSecret.IsZero() // may have been refused
	switch expiry, ok := jwt.Expiry(r.fields.Get("client_assertion")); {
	case c.assertionIsGrant() && (r.code == "invalid_grant" || !other), c.assertionIsClient():
		return "the product may not know the key of assertion.private_key, or may expect another key_id, algorithm, issuer, subject or audience"
	case c.sendsClientAssertion() && ok && expiry.Before(time.Now()):
		return "client_assertion expired at " + expiry.UTC().Format(time.RFC3339) + ": what should renew it has stopped"
	case c.sendsClientAssertion():
		return "the product may not trust the issuer of client_assertion, or may expect another subject or audience"
	}
	return ""
}

// ownClaims are the claims that are set for each JWT, and where.
var ownClaims = map[string]string{"iss": "issuer", "sub": "subject", "aud": "audience", "exp": "lifetime", "iat": "", "jti": ""}

// checkAssertion adds errors for what is missing, not used, or cannot sign.
func (c *Config) checkAssertion(errs *settings.Errors) {
	a := &c.Assertion
	isClient := c.assertionIsClient()
	if !c.assertionIsGrant() && !isClient {
		given := *a
		given.Lifetime = 0 // it has a default
		errs.When(!reflect.ValueOf(given).IsZero(), "assertion", "only used by grant jwt_bearer and credentials_in private_key_jwt")
		return
	}
	errs.When(isClient && c.ClientID == "", "client_id", "required for credentials_in private_key_jwt")
	errs.When(c.grantParty().issuer == "" && !isClient, "assertion.issuer", "required without client_id")
	errs.When(c.grantParty().subject == "" && !isClient, "assertion.subject", "required without username and client_id")
	errs.When(a.Lifetime > 0 && a.Lifetime < time.Second, "assertion.lifetime", "must be at least 1s")
	for _, name := range slices.Sorted(maps.Keys(a.Claims)) {
		if own, ok := ownClaims[name]; own != "" {
			errs.When(true, "assertion.claims."+name, "has a setting of its own: assertion."+own)
		} else if ok {
			errs.When(true, "assertion.claims."+name, "is set for each JWT")
		}
	}
	switch hasKey := !a.PrivateKey.IsZero(); {
	case a.hidden == nil && !hasKey:
		errs.When(true, "assertion.private_key", "required")
	case a.hidden != nil && hasKey:
		errs.When(true, "assertion.private_key", "not used with a Signer")
	case errs.Has("assertion.algorithm"):
	default:
		_, err := a.signing()
		if err == nil && hasKey { // a Signer's use may cost, or fail for now
			_, err = c.assertion(c.grantParty())
		}
		if errors.Is(err, auth.ErrSecret) { // else it was not read, which may pass
			*errs = append(*errs, err)
		}
	}
}
