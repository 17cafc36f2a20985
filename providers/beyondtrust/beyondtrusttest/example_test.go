package beyondtrusttest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

func Example() {
	s := beyondtrusttest.NewServer(nil)
	defer s.Close()

	req, _ := http.NewRequest("POST", s.URL+"/oauth2/token", strings.NewReader("grant_type=client_credentials"))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(beyondtrusttest.DefaultClientID, beyondtrusttest.DefaultClientSecret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	var token struct {
		AccessToken string `json:"access_token"`
	}
	json.NewDecoder(resp.Body).Decode(&token)

	call := func() {
		req, _ := http.NewRequest("GET", s.URL+"/api/command?action=get_api_info", nil)
		req.Header.Set("Authorization", "Bearer "+token.AccessToken)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			fmt.Println(err)
			return
		}
		defer resp.Body.Close()
		fmt.Println(resp.Status)
	}
	call()
	s.RevokeAll()
	call()
	fmt.Println(s.Stats().Exchanges, "exchange,", s.Stats().Rejected, "call refused for its token")
	// Output:
	// 200 OK
	// 401 Unauthorized
	// 1 exchange, 1 call refused for its token
}
