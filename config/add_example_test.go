package config_test

import (
	"context"
	"fmt"
	"io"
	"net/url"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/providers/beyondtrust"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

// A tenant comes and goes while the service runs.
func ExampleConnectors_Add() {
	product := beyondtrusttest.NewServer(nil)
	defer product.Close()
	base, err := url.Parse(product.URL)
	if err != nil {
		fmt.Println(err)
		return
	}

	conns := config.New()
	defer conns.Close()
	tenant, err := conns.Add("tenant-7", config.Settings{
		BaseURL: base,
		Provider: func(env auth.Env) (auth.Provider, error) {
			return beyondtrust.New(beyondtrust.Config{ClientID: beyondtrusttest.DefaultClientID, ClientSecret: auth.SecretString(beyondtrusttest.DefaultClientSecret)}, env)
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	req, err := tenant.NewRequest(context.Background(), "GET", "/api/command?action=get_api_info", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := tenant.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	fmt.Println(resp.Status)
	fmt.Println(conns.Remove("tenant-7"))
	// Output:
	// 200 OK
	// <nil>
}
