package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
)

type callFlags struct {
	data    string
	headers []string
	include bool
}

func (a *app) call() *cobra.Command {
	var f callFlags
	cmd := &cobra.Command{
		Use:   "call NAME [METHOD] PATH",
		Short: "Make one authenticated request",
		Long: `Make one authenticated request to PATH below the connector's base_url. PATH may
have a query. Data that begins with { or [ is sent as JSON, other data as a form,
unless -H sets a Content-Type. The body of the response is printed unchanged.
The status line and the headers (-i) are printed unchanged too if stdout is a pipe
or a file; on a terminal, characters that are not printable are escaped.

The exit status is 1 if the status of the response is 400 or more, or a redirect
that is not followed: one to another host with a body, or 301 or 302 of anything
but GET, which would become a GET. It is 3 or 4 if the token was refused and no
new one can be requested: because a person must log in, or because the
credentials were refused.`,
		Example: `  itsmauth call support /api/command?action=get_api_info
  itsmauth call shop POST /api/v4/customers/change-password -d @passwords.json
  itsmauth call remedy DELETE /api/arsys/v1/entry/HPD:IncidentInterface/INC01 -i`,
		Args: cobra.RangeArgs(2, 3), ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			method, path := http.MethodGet, args[len(args)-1]
			if cmd.Flags().Changed("data") {
				method = http.MethodPost
			}
			if len(args) == 3 {
				method = strings.ToUpper(args[1])
			}
			return a.withConnector(cmd.Context(), args[0], func(_ *config.Connectors, conn *config.Connector) error {
				req, err := a.request(cmd.Context(), conn, method, path, f)
				if err != nil && cmd.Context().Err() != nil {
					return fmt.Errorf("%s: %w", conn.Name, err)
				} else if err != nil {
					return usage(err)
				}
				return a.send(conn, req, f.include)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.data, "data", "d", "", "`DATA` to send, or @FILE, or @- for stdin")
	flags.StringArrayVarP(&f.headers, "header", "H", nil, "a header, `'K: V'`; can be repeated")
	flags.BoolVarP(&f.include, "include", "i", false, "also print the status line and the headers")
	return cmd
}

var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110 section 5.6.2

// request returns the request that the arguments and flags describe.
func (a *app) request(ctx context.Context, conn *config.Connector, method, path string, f callFlags) (*http.Request, error) {
	data, err := a.data(ctx, f.data)
	if err != nil {
		return nil, err
	}
	var body io.Reader
	if data != "" {
		body = strings.NewReader(data)
	}
	req, err := conn.NewRequest(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	for _, h := range f.headers {
		name, value, ok := strings.Cut(h, ":")
		if name = strings.TrimSpace(name); !ok || !headerName.MatchString(name) || strings.ContainsAny(value, "\r\n\x00") {
			return nil, errors.New("-H needs 'K: V'")
		}
		if strings.EqualFold(name, "Host") {
			req.Host = strings.TrimSpace(value)
		}
		req.Header.Add(name, strings.TrimSpace(value))
	}
	if data != "" && req.Header.Get("Content-Type") == "" {
		t := "application/x-www-form-urlencoded"
		if s := strings.TrimSpace(data); s != "" && strings.ContainsRune("{[", rune(s[0])) {
			t = "application/json"
		}
		req.Header.Set("Content-Type", t)
	}
	return req, nil
}

// data returns the value of -d, or the content of the file that it names.
func (a *app) data(ctx context.Context, flag string) (string, error) {
	name, isFile := strings.CutPrefix(flag, "@")
	if !isFile {
		return flag, nil
	}
	b, err := await(ctx, func() ([]byte, error) {
		if name == "-" {
			return io.ReadAll(a.stdin)
		}
		return os.ReadFile(name)
	})
	return string(b), err
}

func (a *app) send(conn *config.Connector, req *http.Request, include bool) error {
	resp, err := conn.Do(req)
	if err != nil {
		if e := (*auth.Error)(nil); errors.As(err, &e) {
			return e // without the URL that net/http adds; it names the connector
		}
		return fmt.Errorf("%s: %w", conn.Name, err)
	}
	defer resp.Body.Close()
	if include {
		head := fmt.Sprintf("%s %s\n%s\n", resp.Proto, resp.Status, headerLines(resp.Header))
		if isTerminal(a.stdout) {
			head = visible(head)
		}
		if _, err := io.WriteString(a.stdout, head); err != nil {
			return err
		}
	}
	if _, err := io.Copy(a.stdout, resp.Body); err != nil {
		return fmt.Errorf("%s: %s %s: %w", conn.Name, req.Method, req.URL.Path, err)
	}
	redirected := slices.Contains([]int{301, 302, 303, 307, 308}, resp.StatusCode)
	if resp.StatusCode < 400 && !redirected {
		return nil
	}
	err = fmt.Errorf("%s: %s %s: the product answered %s", conn.Name, req.Method, req.URL.Path, statusText(resp.StatusCode))
	if redirected {
		return fmt.Errorf("%w, and this redirect is not followed; call the address in its header Location, which -i shows", err)
	}
	// If the product refused the token, and no other could be obtained, the session knows why.
	st, _ := conn.Session().Status(req.Context())
	for _, why := range []error{auth.ErrCredentials, auth.ErrConsentRequired, auth.ErrStore} {
		if st.State != auth.StateStale && errors.Is(st.Failure, why) {
			if conn.Session().StaticCredentials() != nil {
				return fmt.Errorf("%w: %w", err, st.Failure)
			}
			return fmt.Errorf("%w, and there is no other token: %w", err, st.Failure)
		}
	}
	return err
}

// visible returns lines with what is not printable as Go writes it in quotes: a server could move the cursor.
func visible(lines string) string {
	var b strings.Builder
	for len(lines) > 0 {
		r, size := utf8.DecodeRuneInString(lines)
		if char := lines[:size]; r == '\n' || unicode.IsPrint(r) && utf8.ValidString(char) {
			b.WriteString(char)
		} else {
			b.WriteString(strings.Trim(strconv.Quote(char), `"`))
		}
		lines = lines[size:]
	}
	return b.String()
}

// statusText returns a status with our text, because a server's reason phrase may contain anything.
func statusText(status int) string {
	return strings.TrimSpace(fmt.Sprint(status, " ", http.StatusText(status)))
}
