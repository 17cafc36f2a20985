package webcommandertest_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/itsmauth/itsmauth/providers/webcommander/webcommandertest"
)

func Example() {
	s := webcommandertest.NewServer(nil)
	defer s.Close()

	body, _ := json.Marshal(map[string]string{
		"grant_type":    "client_credentials",
		"auth_string":   base64.StdEncoding.EncodeToString([]byte(webcommandertest.DefaultUsername + ":" + webcommandertest.DefaultPassword)),
		"redirect_uri":  webcommandertest.DefaultRedirectURI,
		"client_id":     webcommandertest.DefaultClientID,
		"client_secret": webcommandertest.DefaultClientSecret,
	})
	resp, err := http.Post(s.URL+"/api/v4/oauth2/token", "application/json", strings.NewReader(string(body)))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	var token struct {
		AccessToken string `json:"access_token"`
	}
	json.NewDecoder(resp.Body).Decode(&token)
	fmt.Println(resp.Status)

	call := func(set func(http.Header)) {
		req, _ := http.NewRequest("GET", s.URL+"/api/v4/products", nil)
		set(req.Header)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			fmt.Println(err)
			return
		}
		defer resp.Body.Close()
		fmt.Println(resp.Status)
	}
	call(func(h http.Header) { h["access_token"] = []string{token.AccessToken} })
	call(func(h http.Header) { h.Set("access_token", token.AccessToken) }) // sent as Access_token
	s.RevokeAll()
	call(func(h http.Header) { h["access_token"] = []string{token.AccessToken} })
	// Output:
	// 201 Created
	// 200 OK
	// 400 Bad Request
	// 401 Unauthorized
}
