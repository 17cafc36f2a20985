package transport

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
)

// ProxyFromEnvironment is [http.ProxyFromEnvironment], but returns an error that wraps
// [auth.ErrInsecure] if HTTP_PROXY or HTTPS_PROXY is not the address of a proxy. net/http would use no
// proxy then, or take another part of the text for the host, such as the end of the password.
func ProxyFromEnvironment(req *http.Request) (*url.URL, error) {
	name, host := wrongVariables()[req.URL.Scheme], req.URL.Hostname()
	direct := host == "localhost" || net.ParseIP(host).IsLoopback() // as net/http does it
	if name != "" && !direct && !listed(variable("NO_PROXY"), req.URL) {
		return nil, &auth.Error{Op: "request", Err: fmt.Errorf("%w: the environment variable %s must be a URL such as "+
			"http://user:password@proxy:3128, with special characters as %%XX", auth.ErrInsecure, name)}
	}
	return http.ProxyFromEnvironment(req)
}

// wrongVariables has, for each scheme, the variable that is not the address of a proxy. It reads them
// once, as net/http does.
var wrongVariables = sync.OnceValue(func() map[string]string {
	wrong := map[string]string{}
	for _, scheme := range []string{"http", "https"} {
		name := strings.ToUpper(scheme) + "_PROXY"
		if v := variable(name); v != "" && !proxyAddress(v) {
			wrong[scheme] = name
		}
	}
	return wrong
})

// variable reads a variable whose name may also be in lower case.
func variable(name string) string { return cmp.Or(os.Getenv(name), os.Getenv(strings.ToLower(name))) }

// proxyAddress reports whether net/http understands v as it is meant: a URL, or host:port with or without
// a user.
func proxyAddress(v string) bool {
	if !strings.Contains(v, "//") {
		v = "http://" + v
	}
	u, err := url.Parse(v)
	return err == nil && u.Hostname() != "" && slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) &&
		!strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") && endpoint.Check(u) == nil
}
