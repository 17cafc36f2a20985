// Package acme is the provider for Acme Desk, where each login is signed.
package acme

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
)

type Provider struct {
	User string      `yaml:"user" required:"true"`
	Key  auth.Secret `yaml:"key" required:"true"`
	url  string
}

func New(p Provider, env auth.Env) (auth.Provider, error) {
	p.url = env.BaseURL.JoinPath("session").String()
	return &p, nil
}

func (p *Provider) Exchange(ctx context.Context, _ *oauth2.Token) (*oauth2.Token, error) {
	key, err := p.Key.Value()
	if err != nil {
		return nil, err
	}
	now, mac := time.Now().UTC().Format(time.RFC3339), hmac.New(sha256.New, []byte(key))
	fmt.Fprint(mac, p.User, now)
	login, _ := json.Marshal(map[string]string{"user": p.User, "time": now, "signature": fmt.Sprintf("%x", mac.Sum(nil))})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(login))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, body, err := auth.Send(req)
	if err != nil {
		return nil, err
	}
	var answer struct{ Session string }
	if json.Unmarshal(body, &answer); answer.Session == "" {
		return nil, auth.ResponseError(resp, body, "", auth.ErrCredentials)
	}
	return &oauth2.Token{AccessToken: answer.Session, ExpiresIn: 15 * 60}, nil
}

func (p *Provider) Header(tok *oauth2.Token) http.Header {
	return http.Header{"X-Acme-Session": {tok.AccessToken}}
}

func (p *Provider) Rejects(resp *http.Response, _ []byte) bool { return resp.StatusCode == 401 }
func (p *Provider) Identity() []string                         { return []string{p.url, p.User} }
