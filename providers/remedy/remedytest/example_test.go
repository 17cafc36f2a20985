package remedytest_test

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"

	"github.com/itsmauth/itsmauth/providers/remedy/remedytest"
)

// From a login in the browser to an API call, with net/http only.
func Example() {
	s := remedytest.NewServer(nil)
	defer s.Close()

	redirect, err := s.Consent(s.SSOURL + "/oauth2/authorize?" + url.Values{
		"response_type": {"code"},
		"client_id":     {remedytest.DefaultClientID},
		"redirect_uri":  {remedytest.DefaultRedirectURI},
		"state":         {"st4te"},
	}.Encode())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("state:", redirect.Query().Get("state"))

	resp, err := http.PostForm(s.SSOURL+"/oauth2/token", url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {redirect.Query().Get("code")},
		"redirect_uri":  {remedytest.DefaultRedirectURI},
		"client_id":     {remedytest.DefaultClientID},
		"client_secret": {remedytest.DefaultClientSecret},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	var tok struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&tok); err != nil {
		log.Fatal(err)
	}
	fmt.Println("expires in:", tok.ExpiresIn)

	call := func() {
		req, err := http.NewRequest("GET", s.URL+"/api/arsys/v1/entry/HPD:IncidentInterface", nil)
		if err != nil {
			log.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+tok.AccessToken)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Println("call:", resp.Status)
	}
	call()
	s.RevokeAll()
	call()
	fmt.Println("rejected:", s.Stats().Rejected)
	// Output:
	// state: st4te
	// expires in: 3600
	// call: 200 OK
	// call: 401 Unauthorized
	// rejected: 1
}
