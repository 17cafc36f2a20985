package generic_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/providers/generic"
)

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
