package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/settings"
	"github.com/itsmauth/itsmauth/internal/textfile"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
)

// Config says where Redis is.
//
// To use a single server, give its address:
//
//	rediss://user:password@host:6379/0
//
// The scheme is rediss, or redis without TLS. The user is an ACL user; without one it is the default
// user. The path is the number of the database. User and password are read again for each connection.
//
// To use servers watched by Sentinel, give the addresses of all Sentinels, and the set's name as
// master_name. sentinel_username and sentinel_password log in to the Sentinels.
//
//	rediss://user:password@host1:26379/0?addr=host2:26379&addr=host3:26379&master_name=main
//
// To use a Cluster, give the addresses of several nodes, or of one and cluster=true:
//
//	rediss://user:password@host1:6379?addr=host2:6379&addr=host3:6379
type Config struct {
	// URL is where Redis is, for example rediss://user:password@host:6379/0. It is a secret because of
	// the password. docs/operations.md has the URLs for Sentinel and Cluster.
	URL auth.Secret `yaml:"url" required:"true"`
	// KeyPrefix is the prefix of every key in Redis. It must not contain braces. The default is itsmauth:.
	KeyPrefix string `yaml:"key_prefix"`
	// TLS is for URLs that begin with rediss. The certificate is for servers that require one.
	TLS tlsfile.Config `yaml:"tls_config"`
}

// prepare checks c. It returns the dialer, and connect, which makes the connections of a pool.
func (c Config) prepare() (d *dialer, connect func(dialFunc) redis.UniversalClient, err error) {
	var errs settings.Errors
	errs.When(strings.ContainsAny(c.KeyPrefix, "{}"), "key_prefix", "must not contain braces")
	a, err := c.address()
	if err != nil {
		errs.Add("url", err)
		return nil, nil, errs.Err()
	}
	d = newDialer(a)
	switch tls, cas, err := c.TLS.Client(textfile.NewFiles(textfile.Read)); {
	case err != nil:
		for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
			var k *auth.KeyError
			errors.As(e, &k)
			errs.Add("tls_config."+k.Key, k.Err)
		}
	case a.tls:
		d.tls, d.rootCAs = tls, cas
	case c.TLS != tlsfile.Config{}:
		errs.Add("tls_config", errors.New("needs a url that begins with rediss://"))
	}
	return d, func(dial dialFunc) redis.UniversalClient {
		o := options
		o.Addrs, o.DB, o.Dialer = a.addrs, a.db, dial
		o.CredentialsProviderContext = func(context.Context) (string, string, error) {
			a, err := c.address()
			if err != nil {
				err = fmt.Errorf("%w: %w", errCredentials, err)
			}
			return a.username, a.password, err
		}
		if !a.cluster {
			r := redis.NewClient(o.Simple())
			r.AddHook(helloHook{})
			return r
		}
		clusterOptions := o.Cluster()
		clusterOptions.DisableRoutingPolicies = true // they cost a round trip and are for other commands
		r := redis.NewClusterClient(clusterOptions)
		r.OnNewNode(func(node *redis.Client) { node.AddHook(helloHook{}) })
		return r
	}, errs.Err()
}

// options are those of all connections. This package does the retries, and has attempts that end a
// connection.
var options = redis.UniversalOptions{
	Protocol:              2, // version 3 has nothing that is needed here, and costs more for each connection
	DisableIdentity:       true,
	ContextTimeoutEnabled: true,
	DialTimeout:           attemptTimeout,
	DialerRetries:         1,
	MaxRetries:            -1,
	MinRetryBackoff:       minRetryWait, // for a Cluster's redirects
	MaxRetryBackoff:       maxRetryWait,
	ReadTimeout:           attemptTimeout,
	WriteTimeout:          attemptTimeout,
	PoolTimeout:           attemptTimeout,
	PoolSize:              poolSize,
	PipelinePoolSize:      -1,
}

// address is a parsed URL.
type address struct {
	tls                                bool
	addrs                              []string
	db                                 int
	username, password                 string
	masterName                         string
	cluster                            bool
	sentinelUsername, sentinelPassword string
}

// address reads the URL. Its errors contain no part of the URL except names of parameters.
func (c Config) address() (a address, err error) {
	text, err := c.URL.Value()
	if err != nil {
		return a, err
	}
	return parseURL(text)
}

var errURL = errors.New("must be a URL such as rediss://user:password@host:6379/0; in a password, write % / ? # @ as %25 %2F %3F %23 %40")

func parseURL(text string) (a address, err error) {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || u.Scheme != "redis" && u.Scheme != "rediss" || u.Hostname() == "" || u.Fragment != "" {
		return a, errURL
	}
	if err := endpoint.Check(u); err != nil {
		return a, err
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return a, errURL
	}
	a.tls = u.Scheme == "rediss"
	a.username = u.User.Username()
	a.password, _ = u.User.Password()
	port := "6379"
	if q.Has("master_name") {
		port = "26379"
	}
	a.addrs = []string{net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))}
	if path := strings.Trim(u.Path, "/"); path != "" {
		if a.db, err = strconv.Atoi(path); err != nil || a.db < 0 {
			return a, errors.New("the path must be the number of a database; in a password, write % / ? # @ as %25 %2F %3F %23 %40")
		}
	}
	for name, values := range q {
		switch name {
		case "addr":
			for _, addr := range values {
				if _, _, err := net.SplitHostPort(addr); err != nil || endpoint.Check(&url.URL{Host: addr}) != nil {
					return a, errors.New("each addr must be host:port")
				}
				a.addrs = append(a.addrs, addr)
			}
			continue
		case "master_name":
			a.masterName = values[0]
		case "sentinel_username":
			a.sentinelUsername = values[0]
		case "sentinel_password":
			a.sentinelPassword = values[0]
		case "cluster":
			if a.cluster, err = strconv.ParseBool(values[0]); err != nil {
				return a, errors.New("cluster must be true or false")
			}
		default: // do not show it: it may be part of a password with a ? in it
			return a, errors.New("has an unknown parameter; the known ones are addr, master_name, sentinel_username, sentinel_password and cluster")
		}
		if len(values) > 1 {
			return a, fmt.Errorf("%s appears twice", name)
		}
	}
	a.cluster = a.cluster || a.masterName == "" && len(a.addrs) > 1
	switch {
	case a.cluster && a.masterName != "":
		return a, errors.New("cannot have both cluster and master_name")
	case a.cluster && a.db != 0:
		return a, errors.New("a Cluster has only database 0")
	case q.Has("master_name") && a.masterName == "":
		return a, errors.New("master_name must not be empty")
	}
	return a, nil
}
