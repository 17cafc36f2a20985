package generic

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
	"github.com/itsmauth/itsmauth/internal/jwt"
	"github.com/itsmauth/itsmauth/internal/settings"
)

func (c *Config) check() error {
	var errs settings.Errors
	errs.Check(c)
	otherEncoding := map[string]string{"form": "json", "json": "form"}
	errs.When(c.CredentialsIn == otherEncoding[c.Encoding], "credentials_in", "must not be "+c.CredentialsIn+" with encoding "+c.Encoding)
	errs.Add("token_url", CheckURL(c.TokenURL))
	errs.Add("auth_url", CheckURL(c.AuthURL))
	errs.Add("revoke_url", CheckURL(c.RevokeURL))
	errs.Add("redirect_uri", CheckRedirectURI(c.RedirectURI))
	if c.Then != nil {
		errs.Add("then.url", CheckURL(c.Then.URL))
	}
	if c.Response.Cookie != "" {
		errs.When(!settings.IsHeaderName(c.Response.Cookie), "response.cookie", "is not a cookie's name") // RFC 6265 section 4.1.1
		errs.When(c.Response.AccessToken != "/access_token", "response.access_token", "not used with response.cookie")
	}
	c.checkGrant(&errs)
	c.checkClient(&errs)
	c.checkAssertion(&errs)
	c.checkDPoP(&errs)
	for k, v := range c.Params {
		_, isScalar := paramText(v)
		errs.When(!isScalar, "params."+k, "must be text, a number, true or false")
		errs.When(c.settingOf(k) != "", "params."+k, "has a setting of its own: "+c.settingOf(k))
	}
	for k := range c.SecretParams {
		_, twice := c.Params[k]
		errs.When(c.settingOf(k) != "", "secret_params."+k, "has a setting of its own: "+c.settingOf(k))
		errs.When(twice, "secret_params."+k, "is also in params")
	}
	for key, fields := range map[string][]string{"refresh.fields": c.Refresh.Fields, "code_fields": c.CodeFields} {
		for i, f := range fields {
			_, plain := c.Params[f]
			_, secret := c.SecretParams[f]
			errs.When(!plain && !secret && f != "scope" && f != "redirect_uri", fmt.Sprintf("%s.%d", key, i),
				"must be a name from params or secret_params, redirect_uri or scope")
		}
	}
	c.checkParamNames(&errs)
	errs.When(strings.ContainsFunc(c.ScopeSeparator, unicode.IsControl), "scope_separator", "must not hold a control character")
	for key, pointer := range map[string]string{
		"access_token": c.Response.AccessToken, "refresh_token": c.Response.RefreshToken, "expires_in": c.Response.ExpiresIn,
		"token_type": c.Response.TokenType, "error": c.Response.Error,
		"expires_at": c.Response.ExpiresAt,
	} {
		unused := key == "expires_at" && pointer == ""
		whole := key == "access_token" && pointer == WholeAnswer
		if !unused && !whole {
			errs.Add("response."+key, jsonbody.CheckPointer(pointer))
		}
	}
	c.checkHeaders(&errs)
	jsonbody.CheckConditions(&errs, "rejected_when", c.RejectedWhen)
	jsonbody.CheckConditions(&errs, "not_rejected_when", c.NotRejectedWhen)
	for i, e := range c.Response.Errors {
		Condition{Status: e.Status, Pointer: e.Pointer, Equals: e.Equals}.Check(&errs, fmt.Sprintf("response.errors.%d", i))
	}
	slices.SortStableFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs.Err()
}

// checkGrant adds errors for settings that the grant requires but are not set, or that are set but the
// grant does not use.
func (c *Config) checkGrant(errs *settings.Errors) {
	known := !errs.Has("grant")
	code, password, none := c.Grant == "authorization_code", c.Grant == "password", c.Grant == "none"
	for _, s := range []struct {
		key                     string
		set, required, optional bool
	}{
		{"client_id", c.ClientID != "", code || c.Grant == "client_credentials", true},
		{"auth_url", c.AuthURL != nil, code, false},
		{"redirect_uri", c.RedirectURI != "", code, true},
		{"pkce", c.PKCE != nil && *c.PKCE, false, code},
		{"code_fields", c.CodeFields != nil, false, code},
		{"username", c.Username != "", password, none || c.assertionIsGrant()},
		{"password", !c.Password.IsZero(), password, none},
		{"refresh_token", !c.RefreshToken.IsZero(), c.Grant == "refresh_token", code},
	} {
		errs.When(known && s.required && !s.set, s.key, "required for grant "+c.Grant)
		errs.When(known && s.set && !s.required && !s.optional, s.key, "not used by grant "+c.Grant)
	}
	errs.When(known && c.interactive() && c.Then != nil, "then", "not used by grant "+c.Grant+": if it failed, the new refresh token would be lost")
	errs.When(c.interactive() && c.Refresh.Fallback == "grant", "refresh.fallback", "must be consent for grant "+c.Grant)
	errs.When(!c.interactive() && c.Refresh.Fallback == "consent", "refresh.fallback", "must be grant for grant "+c.Grant)
	if c.Method == http.MethodGet {
		const inURL = "would be sent in the URL with method GET"
		errs.When(!none && c.Grant != "client_credentials", "grant", inURL)
		errs.When(!c.Password.IsZero(), "password", inURL)
		errs.When(len(c.SecretParams) > 0, "secret_params", inURL)
		errs.When(!c.ClientSecret.IsZero() && c.CredentialsIn == c.Encoding, "client_secret", inURL)
		errs.When(c.assertionIsClient() || c.sendsClientAssertion(), "credentials_in", inURL)
	}
}

// checkClient adds errors for credentials of the client that are missing or not used.
func (c *Config) checkClient(errs *settings.Errors) {
	elsewhere := c.sendsClientAssertion()
	errs.When((elsewhere || c.assertionIsClient()) && !c.ClientSecret.IsZero(), "client_secret", "not used by credentials_in "+c.CredentialsIn)
	errs.When(!elsewhere && !c.ClientAssertion.IsZero(), "client_assertion", "only used by credentials_in client_assertion")
	if elsewhere {
		text, err := c.ClientAssertion.Value()
		errs.When(c.ClientAssertion.IsZero(), "client_assertion", "required for credentials_in client_assertion")
		errs.When(err == nil && text != "" && !jwt.Valid(text), "client_assertion", "is not a JWT")
		errs.AddSecret("client_assertion", err)
	}
}

// settingOf returns the setting that sends the field, other than params and secret_params, or "".
func (c *Config) settingOf(field string) string {
	own := map[string]string{"client_id": "client_id", "client_secret": "client_secret", "username": "username", "password": "password",
		"code": "grant", "code_verifier": "pkce", "scope": "scopes", "redirect_uri": "redirect_uri", c.Refresh.Param: "refresh_token"}
	if c.Grant != "none" {
		own["grant_type"] = "grant"
	}
	if c.assertionIsGrant() {
		own["assertion"] = "assertion"
	}
	if c.assertionIsClient() {
		own["client_assertion"], own["client_assertion_type"] = "assertion", "credentials_in"
	}
	if c.sendsClientAssertion() {
		own["client_assertion"], own["client_assertion_type"] = "client_assertion", "credentials_in"
	}
	return own[field]
}

// checkParamNames adds errors for names of unknown fields, and for fields that would be sent under one name.
func (c *Config) checkParamNames(errs *settings.Errors) {
	code := c.Grant == "authorization_code"
	jwtClient := c.assertionIsClient() || c.sendsClientAssertion()
	sent := map[string]bool{ // whether the settings send the standard field
		"grant_type": c.Grant != "none", "client_id": c.ClientID != "", "client_secret": !c.ClientSecret.IsZero(),
		"username": c.Username != "", "password": !c.Password.IsZero(), "scope": len(c.Scopes) > 0, "redirect_uri": c.RedirectURI != "",
		"assertion": c.assertionIsGrant(), "client_assertion": jwtClient, "client_assertion_type": jwtClient,
		"code": code, "code_verifier": code && c.usesPKCE(), "refresh_token": c.Refresh.Param == "refresh_token",
	}
	taken := map[string]bool{c.Refresh.Param: c.Refresh.Param != "refresh_token"}
	for field := range sent {
		taken[field] = taken[field] || sent[field] && c.ParamNames[field] == ""
	}
	for name := range c.Params {
		taken[name] = true
	}
	for name := range c.SecretParams {
		taken[name] = true
	}
	for _, field := range slices.Sorted(maps.Keys(c.ParamNames)) {
		key, name := "param_names."+field, c.ParamNames[field]
		_, known := sent[field]
		errs.When(!known, key, "is not a standard field; these are "+strings.Join(slices.Sorted(maps.Keys(sent)), ", "))
		errs.When(field == "refresh_token" && !sent[field], key, "is also in refresh.param")
		errs.When(name == "", key, "must not be empty")
		errs.When(taken[name], key, "is the name of another field that is sent")
		taken[name] = name != ""
	}
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

func (c *Config) checkHeaders(errs *settings.Errors) {
	inHeaders := c.CredentialsIn == "headers"
	errs.When(inHeaders && len(c.CredentialHeaders) == 0, "credential_headers", "required for credentials_in headers")
	elsewhere := slices.Contains([]string{"basic", "form", "json", "private_key_jwt", "client_assertion"}, c.CredentialsIn)
	errs.When(elsewhere && c.CredentialHeaders != nil, "credential_headers", "only used by credentials_in headers")
	errs.When(c.CredentialsIn == "basic" && c.CredentialsEncoding == "raw" && strings.Contains(c.ClientID, ":"), "client_id",
		"must not contain a colon, which ends the id in a raw Basic header")
	credentials := checkTemplates(errs, "credential_headers", c.CredentialHeaders, "{client_id}", "{client_secret}")
	tokens := checkTemplates(errs, "token_headers", c.TokenHeaders, "{access_token}", "{token_type}")
	holdsToken := func(h Header) bool { return strings.Contains(h.Template, "{access_token}") }
	errs.When(!slices.ContainsFunc(c.TokenHeaders, holdsToken), "token_headers", "one of them must contain {access_token}")
	inBasic := map[string]bool{"authorization": c.CredentialsIn == "basic" && !c.ClientSecret.IsZero()}
	static := checkFixedHeaders(errs, "static_headers", c.StaticHeaders, map[string]map[string]bool{
		"is also in token_headers": tokens, "is also in credential_headers": credentials, "is the header of credentials_in basic": inBasic,
		"would replace the Content-Type of every call; that of token requests follows from encoding": {"content-type": true}})
	checkFixedHeaders(errs, "api_headers", c.APIHeaders, map[string]map[string]bool{
		"is also in token_headers": tokens, "is also in static_headers": static, "would replace the Content-Type of every call": {"content-type": true}})
}

// checkFixedHeaders adds errors for headers that net/http would send twice, or not at all, and for those that
// clash with others, which are in lower case. It returns the headers' names in lower case.
func checkFixedHeaders(errs *settings.Errors, setting string, headers map[string]auth.Secret, clashes map[string]map[string]bool) map[string]bool {
	names := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		key, lower := setting+"."+name, strings.ToLower(name)
		value, err := headers[name].Value()
		errs.AddSecret(key, err)
		errs.When(strings.ContainsAny(value, "\r\n\x00"), key, "must not hold a line break")
		errs.When(!settings.IsHeaderName(name), key, "is not a header name")
		for clash, others := range clashes {
			errs.When(others[lower], key, clash)
		}
		errs.When(names[lower], key, "appears twice")
		names[lower] = true
		switch canonical := http.CanonicalHeaderKey(name); canonical {
		case "Host", "Content-Length", "Transfer-Encoding":
			errs.When(true, key, "cannot be set")
		case "User-Agent": // with any other spelling, net/http adds its own too
			errs.When(name != canonical, key, "must be spelled "+canonical)
		}
	}
	return names
}

// checkTemplates returns the headers' names in lower case.
func checkTemplates(errs *settings.Errors, key string, headers []Header, known ...string) map[string]bool {
	names := map[string]bool{}
	for i, h := range headers {
		key := fmt.Sprintf("%s.%d.", key, i)
		lower := strings.ToLower(h.Name)
		errs.When(!settings.IsHeaderName(h.Name), key+"name", "is not a header name")
		errs.When(names[lower], key+"name", "appears twice")
		errs.When(strings.ContainsAny(h.Template, "\r\n\x00"), key+"template", "must not hold a line break")
		for _, p := range placeholder.FindAllString(h.Template, -1) {
			errs.When(!slices.Contains(known, p), key+"template", "may only have the placeholders "+strings.Join(known, ", "))
		}
		names[lower] = true
	}
	return names
}

// CheckURL returns an error unless u is nil or an absolute http or https URL without user and fragment.
func CheckURL(u *url.URL) error {
	switch {
	case u == nil:
		return nil
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return errors.New("must be an absolute http or https URL")
	case u.User != nil:
		return errors.New("must not have a user or password")
	case u.Fragment != "":
		return errors.New("must not have a fragment")
	}
	return endpoint.Check(u)
}

// CheckRedirectURI returns an error unless uri is empty or can be a redirection endpoint (RFC 6749
// section 3.1.2).
func CheckRedirectURI(uri string) error {
	u, err := url.Parse(uri)
	switch {
	case uri == "":
		return nil
	case err != nil || !u.IsAbs() || u.Opaque != "" || strings.Contains(uri, "#"):
		return errors.New("must be an absolute URI without a fragment")
	}
	return endpoint.Check(u)
}
