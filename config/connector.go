package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
)

// A Connector is one configured product. It is safe for concurrent use.
type Connector struct {
	// Name is the connector's key in the file.
	Name string
	// Provider is the adapter's name, such as "beyondtrust".
	Provider string
	// BaseURL is the product's API, without a trailing slash. Do not change it.
	BaseURL *url.URL
	// Probe is a path of the API that is safe to call, or "".
	Probe string

	client    *http.Client
	calls     *calls
	session   *auth.Session
	endpoints []*url.URL
	proxy     func(*http.Request) (*url.URL, error)
}

// Format prints the connector's name, for every verb.
func (c *Connector) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "config.Connector(%s)", c.Name) }

// Client is the authenticated client: it adds the token, retries, keeps the rate limits and checks the
// origin.
func (c *Connector) Client() *http.Client { return c.client }

// Authenticator provides only the token.
func (c *Connector) Authenticator() auth.Authenticator { return c.session }

// Endpoints are the URLs to which the connector sends requests, one for each origin: BaseURL and the
// URLs among the provider's own settings, such as sso_url.
func (c *Connector) Endpoints() []*url.URL { return slices.Clone(c.endpoints) }

// Proxy is the proxy for requests to u, without its user and password, or nil if there is none.
func (c *Connector) Proxy(u *url.URL) (*url.URL, error) {
	proxy, err := c.proxy(&http.Request{URL: u})
	if proxy == nil {
		return nil, err
	}
	return &url.URL{Scheme: proxy.Scheme, Host: proxy.Host}, err
}

var absolute = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*:)?//[^/?#]*`)

// NewRequest is [http.NewRequestWithContext] for a path below BaseURL, which may have a query. An
// absolute URL of the same origin, such as a link to the next page, is used in place of BaseURL. An
// absolute URL of another origin, or a path that leaves BaseURL with "..", is refused with
// [auth.ErrInsecure]. What a path or query cannot have (RFC 3986 section 3.3, 3.4), such as a space, " or
// {, and a % that begins no escape, is percent-encoded; what is encoded is left.
func (c *Connector) NewRequest(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	authority := absolute.FindString(path)
	isURL := authority != ""
	path = path[len(authority):]
	if !isURL && path != "" && !strings.ContainsAny(path[:1], "/?") {
		path = "/" + path
	}
	ref, err := url.Parse(authority + percentEncode(path))
	if err != nil {
		return nil, fmt.Errorf("%s: the path is not one a URL can have", c.Name)
	}
	u := *c.BaseURL
	switch {
	case isURL && (ref.User != nil || endpoint.Origin(ref) != endpoint.Origin(&u)):
		return nil, c.insecure("the URL is not below base_url")
	case isURL:
		u.Path, u.RawPath = ref.Path, ref.RawPath
	case escapes(ref.Path):
		return nil, c.insecure("the path leaves base_url")
	default:
		u.Path, u.RawPath = c.BaseURL.Path+ref.Path, c.BaseURL.EscapedPath()+ref.EscapedPath()
	}
	u.RawPath = percentEncode(u.RawPath)
	u.RawQuery, u.ForceQuery = ref.RawQuery, ref.ForceQuery
	return http.NewRequestWithContext(ctx, method, u.String(), body)
}

// disallowed matches what a path or query cannot have, and escapes, so that their % is not matched alone.
var disallowed = regexp.MustCompile("%[0-9A-Fa-f]{2}|[][ \"%<>\\\\^`{|}]|[^\\x00-\\x7f]")

// percentEncode encodes what some servers, such as Tomcat, refuse.
func percentEncode(s string) string {
	return disallowed.ReplaceAllStringFunc(s, func(match string) string {
		if match[0] == '%' && len(match) == 3 {
			return match
		}
		return url.PathEscape(match)
	})
}

func (c *Connector) insecure(why string) error {
	return &auth.Error{Connector: c.Name, Provider: c.Provider, Op: "request", Err: fmt.Errorf("%w: %s", auth.ErrInsecure, why)}
}

// parameters of a path's segment, which servlet containers remove: for them ..;x means .. too.
var parameters = regexp.MustCompile(`;[^/]*`)

// escapes reports whether a path leads above its start on any server, with \ for / or parameters dropped.
func escapes(below string) bool {
	below = parameters.ReplaceAllString(strings.ReplaceAll(below, `\`, "/"), "")
	clean := path.Clean(strings.TrimLeft(below, "/"))
	return clean == ".." || strings.HasPrefix(clean, "../")
}

// Do is Client().Do, except that the URL in its [*url.Error] is req's, also after a redirect, and has no
// query, fragment or user.
func (c *Connector) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.client.Do(req)
	var failed *url.Error
	if errors.As(err, &failed) && req.URL != nil {
		u := req.URL
		if at, err := url.Parse(failed.URL); err != nil || at.Scheme != u.Scheme || at.Host != u.Host || at.EscapedPath() != u.EscapedPath() {
			failed.Op += " (redirected)"
		}
		failed.URL = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
	}
	return resp, err
}

// Session is the connector's token: its state, and the login of a person.
func (c *Connector) Session() *auth.Session { return c.session }

// Status is [auth.Session.Status]: what is known about the token, without a token request.
func (c *Connector) Status(ctx context.Context) (auth.Status, error) { return c.session.Status(ctx) }
