package redisstore

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/tlsfile"
)

func TestURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]address{
		"redis://localhost":           {addrs: []string{"localhost:6379"}},
		" rediss://h:1/2\n":           {tls: true, addrs: []string{"h:1"}, db: 2},
		"redis://:p%2F%25%40%3F@h/":   {addrs: []string{"h:6379"}, password: "p/%@?"},
		"redis://user:p+a=s&w@[::1]":  {addrs: []string{"[::1]:6379"}, username: "user", password: "p+a=s&w"},
		"redis://h?addr=i:1&addr=j:2": {addrs: []string{"h:6379", "i:1", "j:2"}, cluster: true},
		"redis://h?cluster=true":      {addrs: []string{"h:6379"}, cluster: true},
		"redis://u:p@h/1?master_name=main&addr=i:2&sentinel_username=s&sentinel_password=p%2Bq": {
			addrs: []string{"h:26379", "i:2"}, db: 1, username: "u", password: "p", masterName: "main", sentinelUsername: "s", sentinelPassword: "p+q"},
	} {
		got, err := parseURL(text)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(address{})); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", text, err, diff)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	const secret = "s3cr+t"
	for _, tt := range []struct {
		config Config
		url    string
		want   string
	}{
		{url: "", want: "url: must be a URL such as"},
		{url: "http://u:s3cr+t@h", want: "url: must be a URL such as"},
		{url: "redis://", want: "url: must be a URL such as"},
		{url: "redis://u:s3cr+t%@h", want: "url: must be a URL such as"},
		{url: "redis://u:s3cr+t@h:port", want: "url: must be a URL such as"},
		{url: "redis://u:s3cr+t@h:99999", want: "url: must have a port from 1 to 65535"},
		{url: "redis://redis://u:s3cr+t@h", want: "url: must have one scheme, not two"},
		{url: "redis://h?x=%s3cr+t", want: "url: must be a URL such as"},
		{url: "redis://u:s3cr+t@h/zero", want: "url: the path must be the number of a database"},
		{url: "redis://h/-1", want: "url: the path must be the number of a database"},
		{url: "redis://h?password=s3cr+t", want: "url: has an unknown parameter"},
		{url: "redis://u:12?s3cr+t&s3cr+t&x@h", want: "url: has an unknown parameter"},
		{url: "redis://h?addr=s3cr+t", want: "url: each addr must be host:port"},
		{url: "redis://h?addr=:6379", want: "url: each addr must be host:port"},
		{url: "redis://h?addr=i:", want: "url: each addr must be host:port"},
		{url: "redis://h?addr=<s3cr>:1", want: "url: each addr must be host:port"},
		{url: "redis://<s3cr>", want: "url: must have a host name"},
		{url: "redis://h?cluster=s3cr+t", want: "url: cluster must be true or false"},
		{url: "redis://h?cluster=true&cluster=true", want: "url: cluster appears twice"},
		{url: "redis://h?cluster=true&master_name=m", want: "url: cannot have both cluster and master_name"},
		{url: "redis://h/1?cluster=true", want: "url: a Cluster has only database 0"},
		{url: "redis://h?master_name=", want: "url: master_name must not be empty"},
		{url: "redis://h", config: Config{KeyPrefix: "a{b}"}, want: "key_prefix: must not contain braces"},
		{url: "redis://h", config: Config{TLS: tlsfile.Config{ServerName: "h"}}, want: "tls_config: needs a url that begins with rediss://"},
		{url: "rediss://h", config: Config{TLS: tlsfile.Config{MinVersion: "TLS10", CertFile: "x"}},
			want: "tls_config.min_version: must be one of TLS12, TLS13\ntls_config.cert_file: needs key_file"},
	} {
		c := tt.config
		c.URL = auth.SecretString(tt.url)
		_, err := Open(c)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.url, err, tt.want)
		}
		shown := fmt.Sprintf("%v %+v %#v", err, err, err)
		if strings.Contains(shown, secret) || strings.Contains(shown, "s3cr t") { // + is a space in a query
			t.Errorf("%q: the error shows the secret: %v", tt.url, err)
		}
		if !errors.As(err, new(*auth.KeyError)) {
			t.Errorf("%q: %T is not a KeyError", tt.url, err)
		}
	}
}

func FuzzURL(f *testing.F) {
	f.Add("rediss://user:pass%2B@host:6379/0?addr=h:1&master_name=m&sentinel_password=p")
	f.Add("redis://h/1?cluster=true")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseURL(text)
		if err == nil && (len(a.addrs) == 0 || a.db < 0 || a.cluster && a.masterName != "") {
			t.Errorf("%q is taken to be %v", text, a)
		}
	})
}
