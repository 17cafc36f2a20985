package consent_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/itsmauth/itsmauth/auth/consent"
)

// A command that logs its user in.
func ExampleLogin() {
	var tickets consent.Connector // name, provider and session of a connector

	err := consent.Login(context.Background(), tickets, &consent.LoginOptions{
		Show: func(url string) { fmt.Println("Open in a browser:", url) },
	})
	if err != nil {
		log.Fatal(err)
	}
}

// A service whose administrators connect its products in their own browser.
func ExampleNewHandler() {
	var (
		tickets consent.Connector               // redirect_uri: https://itsm.example.com/connections/callback
		admins  func(http.Handler) http.Handler // the service's own authorization
	)
	h := consent.NewHandler([]consent.Connector{tickets}, &consent.HandlerOptions{Path: "/connections"})
	http.Handle("/connections", admins(h))
	http.Handle("/connections/callback", admins(h))
}
