// Package tlsfile makes a TLS client configuration from files.
package tlsfile

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/itsmauth/itsmauth/internal/follow"
	"github.com/itsmauth/itsmauth/internal/settings"
	"github.com/itsmauth/itsmauth/internal/textfile"
)

// Config is tls_config in YAML.
type Config struct {
	CAFile             string `yaml:"ca_file" path:"true"`
	CertFile           string `yaml:"cert_file" path:"true"`
	KeyFile            string `yaml:"key_file" path:"true"`
	ServerName         string `yaml:"server_name"`
	MinVersion         string `yaml:"min_version" enum:"TLS12,TLS13" default:"TLS12"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify" warn:"any server can pose as this one and get the credentials; set ca_file"`
}

var versions = map[string]uint16{"TLS12": tls.VersionTLS12, "TLS13": tls.VersionTLS13}

// Files are the keys of Config that name files.
var Files = []string{"ca_file", "cert_file", "key_file"}

// Client makes the configuration, from what files reads. The certificate is read again at each handshake, so that
// renewing it needs no restart. If that fails, or hangs, the last one stays in force: a certificate and its key
// are not written at once. cas returns the certificate authorities of ca_file, which is read again a second after
// the last time; if that fails, or hangs, or gives no certificate, the last ones. cas is nil if ca_file is not
// set. The error joins an [auth.KeyError] for each wrong setting.
func (c Config) Client(files *textfile.Files) (t *tls.Config, cas func(context.Context) *x509.CertPool, _ error) {
	var errs settings.Errors
	errs.Check(&c)
	t = &tls.Config{ServerName: c.ServerName, MinVersion: versions[c.MinVersion], InsecureSkipVerify: c.InsecureSkipVerify}
	for _, path := range []string{c.CAFile, c.CertFile, c.KeyFile} {
		if path != "" {
			files.Begin(path)
		}
	}
	if c.CAFile != "" {
		var err error
		t.RootCAs, err = authorities(files.Read, c.CAFile)
		errs.Add("ca_file", err)
		cas = follow.New(time.Second, follow.Patience, func() (*x509.CertPool, error) {
			return authorities(textfile.Read, c.CAFile)
		}).Know(t.RootCAs).Get
	}
	errs.When(c.CertFile != "" && c.KeyFile == "", "cert_file", "needs key_file")
	errs.When(c.CertFile == "" && c.KeyFile != "", "key_file", "needs cert_file")
	if c.CertFile != "" && c.KeyFile != "" {
		first, wrong := c.certificate(files.Read)
		errs = append(errs, wrong...)
		latest := follow.New(0, follow.Patience, func() (*tls.Certificate, error) {
			cert, wrong := c.certificate(textfile.Read)
			return cert, wrong.Err()
		}).Know(first)
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return latest.Get(context.Background()), nil
		}
		// IIS asks for the certificate when it knows the request's path. TLS 1.3 has no renegotiation.
		t.Renegotiation = tls.RenegotiateOnceAsClient
	}
	return t, cas, errs.Err()
}

// A reader returns the content of a file.
type reader func(path string) (string, error)

// certificate reads cert_file and key_file.
func (c Config) certificate(read reader) (*tls.Certificate, settings.Errors) {
	var errs settings.Errors
	cert, err := read.text(c.CertFile)
	errs.Add("cert_file", err)
	key, err := read.text(c.KeyFile)
	errs.Add("key_file", err)
	if errs != nil {
		return nil, errs
	}
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	errs.Add("cert_file", err)
	return &pair, errs
}

// authorities reads the certificates of a file.
func authorities(read reader, path string) (*x509.CertPool, error) {
	pem, err := read.text(path)
	if err != nil {
		return nil, err
	}
	cas := x509.NewCertPool()
	if !cas.AppendCertsFromPEM([]byte(pem)) {
		return nil, fmt.Errorf("%s has no PEM certificate", path)
	}
	return cas, nil
}

func (read reader) text(path string) (string, error) {
	raw, err := read(path)
	if err != nil {
		return "", err
	}
	text, err := textfile.Decode(raw)
	if err != nil {
		return "", fmt.Errorf("%s %w", path, err)
	}
	return text, nil
}
