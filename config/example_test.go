package config_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/providers"
)

// keycard is a product of our own, whose token is its key.
type keycard struct {
	Key auth.Secret `yaml:"key" required:"true"`
}

func (k keycard) Exchange(context.Context, *oauth2.Token) (*oauth2.Token, error) {
	key, err := k.Key.Value()
	return &oauth2.Token{AccessToken: key, ExpiresIn: 3600}, err
}

func (keycard) Header(tok *oauth2.Token) http.Header {
	return http.Header{"X-Key": {tok.AccessToken}}
}

func (keycard) Rejects(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 }

func Example() {
	product := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.URL, "with", r.Header.Get("X-Key"))
	}))
	defer product.Close()
	yaml := fmt.Sprintf(`
version: 1
connectors:
  door:
    provider: keycard
    base_url: %s/api
    key: ${env:DOOR_KEY:-open sesame}
`, product.URL)

	new := func(k keycard, _ auth.Env) (auth.Provider, error) { return k, nil }
	conns, err := config.Parse("itsmauth.yaml", []byte(yaml), config.WithProvider(providers.Define("keycard", new)))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conns.Close()
	door, err := conns.Get("door")
	if err != nil {
		fmt.Println(err)
		return
	}
	req, err := door.NewRequest(context.Background(), "GET", "/doors?floor=1", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := door.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Print(string(body))
	// Output: /api/doors?floor=1 with open sesame
}

func ExampleParse_problems() {
	_, err := config.Parse("itsmauth.yaml", []byte(`
version: 1
connectors:
  door: {provider: keycard, base_url: "http://door.example", kee: hunter2, transport: {timeout: 60}}
`), config.WithProvider(providers.Define("keycard", func(k keycard, _ auth.Env) (auth.Provider, error) { return k, nil })))
	fmt.Println(err)
	// Output:
	// itsmauth.yaml:4:3: connectors.door.key: missing
	// itsmauth.yaml:4:39: connectors.door.base_url: plain http sends credentials in the clear; use https, or set transport.allow_http: true
	// itsmauth.yaml:4:62: connectors.door.kee: unknown key; did you mean key?
	// itsmauth.yaml:4:97: connectors.door.transport.timeout: must be a duration with its unit, such as 500ms, 30s or 5m
}
