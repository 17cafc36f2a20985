package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/config"
)

func (a *app) token() *cobra.Command {
	var asHeader bool
	cmd := &cobra.Command{
		Use:   "token NAME",
		Short: "Print a valid access token",
		Long: `Print a valid access token and nothing else. A stored token is used as long as
it is valid; otherwise a new one is requested and stored. A connector with
provider: static has no token: the value of its header is printed. If it has
several headers, use --header.`,
		Example: `  curl -H "$(itsmauth token --header support)" https://support.example.com/api/...`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withConnector(cmd.Context(), args[0], func(_ *config.Connectors, conn *config.Connector) error {
				tok, err := conn.Authenticator().Token(cmd.Context())
				if err != nil {
					return err
				}
				header := conn.Authenticator().Header(tok)
				if err := checkSendable(tok, header); err != nil {
					return fmt.Errorf("%s: %w", conn.Name, err)
				}
				text := tok.AccessToken
				if conn.Session().StaticCredentials() != nil && (a.output == "json" || !asHeader) {
					if text, err = onlyValue(header, a.output == "json"); err != nil {
						return usage(fmt.Errorf("%s: %w", conn.Name, err))
					}
				}
				switch {
				case a.output == "json":
					return a.json(struct {
						Connector   string     `json:"connector"`
						AccessToken string     `json:"access_token"`
						TokenType   string     `json:"token_type"`
						Expiry      *time.Time `json:"expiry"`
					}{conn.Name, text, tokenType(header, tok.TokenType), exact(tok.Expiry)})
				case asHeader:
					_, err = fmt.Fprint(a.stdout, headerLines(header))
					return err
				}
				_, err = fmt.Fprintln(a.stdout, text)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&asHeader, "header", false, "print the request headers that carry the token")
	return cmd
}

// checkSendable refuses a token that would print more than a token: other headers, or codes of a terminal. The
// product chose its text, and the store may have changed it.
func checkSendable(tok *oauth2.Token, header http.Header) error {
	for name, values := range header {
		if slices.ContainsFunc(values, unsendable) {
			return fmt.Errorf("the header %s has characters that cannot be sent: log in again, or see the token_type that the product gives", name)
		}
	}
	if unsendable(tok.AccessToken) {
		return errors.New("the token has characters that cannot be sent: log in again, or see the product's token response")
	}
	return nil
}

// unsendable reports whether v is no value for a header (RFC 9110 section 5.5), or is for a terminal.
func unsendable(v string) bool {
	return !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) })
}

// onlyValue returns the value of the one header in h. withoutScheme leaves out what tokenType returns.
func onlyValue(h http.Header, withoutScheme bool) (value string, err error) {
	if len(h) != 1 {
		return "", errors.New("it sends several headers, and no token; --header prints them")
	}
	for _, values := range h {
		value = values[0]
	}
	if withoutScheme {
		value = strings.TrimPrefix(value, tokenType(h, "")+" ")
	}
	return value, nil
}

// tokenType returns the scheme in the Authorization header or, if there is none, the token's own type.
func tokenType(h http.Header, own string) string {
	if scheme, _, ok := strings.Cut(h.Get("Authorization"), " "); ok {
		return scheme
	}
	return own
}

// headerLines returns h as lines, sorted by name.
func headerLines(h http.Header) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			fmt.Fprintf(&b, "%s: %s\n", name, value)
		}
	}
	return b.String()
}
