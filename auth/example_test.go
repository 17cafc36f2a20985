package auth_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/transport"
)

// hmacProvider is for a product that knows its clients by a key and wants each request signed with the key's
// secret, over method, path, date and body. There is no token endpoint: the token is the key's name.
type hmacProvider struct {
	key    string
	secret auth.Secret
}

func (p hmacProvider) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	return &oauth2.Token{AccessToken: p.key, ExpiresIn: 24 * 60 * 60}, nil
}

func (p hmacProvider) Header(tok *oauth2.Token) http.Header {
	return http.Header{"X-Key": {tok.AccessToken}}
}

// Rejects is false, because there is no other key.
func (p hmacProvider) Rejects(*http.Response, []byte) bool { return false }

func (p hmacProvider) Sign(req *http.Request, _ *oauth2.Token) error {
	body, err := bodyHash(req)
	if err != nil {
		return err
	}
	secret, err := p.secret.Value()
	if err != nil {
		return err
	}
	date := time.Now().UTC().Format(http.TimeFormat)
	req.Header.Set("Date", date)
	req.Header.Set("X-Signature", signature(secret, req.Method, req.URL.RequestURI(), date, body))
	return nil
}

// bodyHash reads a copy of the body: req.Body itself is for the server.
func bodyHash(req *http.Request) (string, error) {
	h := sha256.New()
	if req.Body != nil && req.Body != http.NoBody {
		if req.GetBody == nil {
			return "", errors.New("the body cannot be read twice: give http.NewRequest a *bytes.Reader or a *strings.Reader")
		}
		body, err := req.GetBody()
		if err != nil {
			return "", err
		}
		defer body.Close()
		if _, err := io.Copy(h, body); err != nil {
			return "", err
		}
	}
	return base64.StdEncoding.EncodeToString(h.Sum(nil)), nil
}

func signature(secret string, parts ...string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	io.WriteString(mac, strings.Join(parts, "\n"))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// A product that wants each request signed with an HMAC.
func ExampleSigner() {
	product := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		sum := sha256.Sum256(body)
		want := signature("s3cret", r.Method, r.URL.RequestURI(), r.Header.Get("Date"), base64.StdEncoding.EncodeToString(sum[:]))
		if !hmac.Equal([]byte(r.Header.Get("X-Signature")), []byte(want)) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "%s %s by %s: %s", r.Method, r.URL.RequestURI(), r.Header.Get("X-Key"), body)
	}))
	defer product.Close()

	session := auth.New(hmacProvider{"sync", auth.SecretString("s3cret")}, nil)
	defer session.Close(context.Background())
	base, _ := url.Parse(product.URL)
	client, err := transport.NewClient(session, &transport.Options{BaseURL: base})
	if err != nil {
		log.Fatal(err)
	}
	resp, err := client.Post(product.URL+"/tickets?notify=1", "application/json", strings.NewReader(`{"title":"printer"}`))
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(answer))
	// Output: 200 POST /tickets?notify=1 by sync: {"title":"printer"}
}
