package generic_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"

	"github.com/go-jose/go-jose/v4"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers/generic"
)

// A kms signs by a key management service. Here a key in memory stands for the service.
type kms struct{ service crypto.Signer }

// Public returns the public key, which a real client reads once.
func (k kms) Public() crypto.PublicKey { return k.service.Public() }

// Sign has the service sign the digest. opts say which hash it is, and whether RSA is to be PSS.
func (k kms) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.service.Sign(rand.Reader, digest, opts)
}

// A private key in a KMS or an HSM authenticates the client.
func ExampleAssertion() {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	product := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assertion, err := jose.ParseSignedCompact(r.PostFormValue("client_assertion"), []jose.SignatureAlgorithm{jose.ES256})
		if err == nil {
			_, err = assertion.Verify(key.Public())
		}
		if err != nil {
			http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"access_token":%q}`, "signed by "+assertion.Signatures[0].Header.KeyID)
	}))
	defer product.Close()
	base, _ := url.Parse(product.URL)

	p, err := generic.New(generic.Config{
		TokenURL:      base.JoinPath("token"),
		ClientID:      "sync",
		CredentialsIn: "private_key_jwt",
		Assertion:     generic.Assertion{Signer: kms{key}, KeyID: "k1"},
	}, auth.Env{})
	if err != nil {
		fmt.Println(err)
		return
	}
	tok, err := p.Exchange(context.Background(), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(tok.AccessToken)
	// Output: signed by k1
}

// A product whose JSON fields have names of their own.
func Example() {
	product := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"data":{"sessionKey":"abc","validFor":"900"}}`)
	}))
	defer product.Close()
	base, _ := url.Parse(product.URL)

	p, err := generic.New(generic.Config{
		TokenURL:     base.JoinPath("api/login"),
		Grant:        "none",
		Encoding:     "json",
		Username:     "sync",
		Password:     auth.SecretString("p+a/s=s"),
		Response:     generic.Response{AccessToken: "/data/sessionKey", ExpiresIn: "/data/validFor"},
		TokenHeaders: []generic.Header{{Name: "X-Session", Template: "{access_token}"}},
	}, auth.Env{})
	if err != nil {
		fmt.Println(err)
		return
	}
	tok, err := p.Exchange(context.Background(), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Header(tok), tok.ExpiresIn)
	// Output: map[X-Session:[abc]] 900
}
