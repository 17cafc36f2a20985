package providers_test

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/emulator/memnet"
)

// A tokenVendor is what a product with a token endpoint documents. Requests are written as wireWith writes
// them. TOKEN and REFRESH stand for tokens, which are new in each response, and the name of an environment variable for
// its value.
type tokenVendor struct {
	preset, way string
	more        string // further keys of the connector
	login       string // the login page, if a person must log in
	token       string // the first token request, if seed is empty
	seed        string // the refresh token that the connector begins with
	refresh     string // the token requests after a response with REFRESH
	answer      string
	keeps       bool   // the response to refresh has no refresh token
	then        string // the request after that, or ""
	cookie      string // what the last of these responses sets
	call        string // the headers of a call
	expired     string // the response to a call with a dead token; 401 {} if empty
	refusal     string // of everything that is sent to the token endpoint
	refused     error
}

var tokenVendors = []tokenVendor{{
	preset: "servicenow", way: "the client alone",
	token:   "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&grant_type=client_credentials",
	answer:  `{"access_token":"TOKEN","scope":"useraccount","token_type":"Bearer","expires_in":1799}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error_description":"access_denied","error":"server_error"}`, refused: auth.ErrCredentials,
}, {
	preset: "servicenow", way: "a user's name and password",
	token:   "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&grant_type=password&password=SERVICENOW_PASSWORD&username=your-username",
	refresh: "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","scope":"useraccount","token_type":"Bearer","expires_in":1799}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error_description":"access_denied","error":"server_error"}`, refused: auth.ErrCredentials,
}, {
	preset: "servicenow", way: "a person's login",
	login:   "https://acme.service-now.com/oauth_auth.do?client_id=your-client-id&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&state=STATE",
	token:   "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&code=CODE&grant_type=authorization_code&redirect_uri=http://127.0.0.1:8400/callback",
	refresh: "POST https://acme.service-now.com/oauth_token.do form client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","scope":"useraccount","token_type":"Bearer","expires_in":1799}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error_description":"access_denied","error":"server_error"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "jira",
	login: "https://auth.atlassian.com/authorize?audience=api.atlassian.com&client_id=your-client-id&prompt=consent" +
		"&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=read:jira-work read:jira-user offline_access&state=STATE",
	token:   `POST https://auth.atlassian.com/oauth/token json {"client_id":"your-client-id","client_secret":"JIRA_CLIENT_SECRET","code":"CODE","grant_type":"authorization_code","redirect_uri":"http://127.0.0.1:8400/callback"}`,
	refresh: `POST https://auth.atlassian.com/oauth/token json {"client_id":"your-client-id","client_secret":"JIRA_CLIENT_SECRET","grant_type":"refresh_token","refresh_token":"REFRESH"}`,
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","expires_in":3600,"scope":"read:jira-work","token_type":"Bearer"}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `403 {"error":"invalid_grant","error_description":"Unknown or invalid refresh token."}`, refused: auth.ErrConsentRequired,
}, {
	preset: "zendesk", way: "the client alone",
	token:   `POST https://acme.zendesk.com/oauth/tokens json {"client_id":"your-client-id","client_secret":"ZENDESK_CLIENT_SECRET","expires_in":7200,"grant_type":"client_credentials","scope":"read"}`,
	answer:  `{"access_token":"TOKEN","token_type":"bearer","scope":"read","expires_in":7200}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error":"invalid_client","error_description":"No such client"}`, refused: auth.ErrCredentials,
}, {
	preset: "zendesk", way: "a person's login",
	login:   "https://acme.zendesk.com/oauth/authorizations/new?client_id=your-client-id&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=read&state=STATE",
	token:   `POST https://acme.zendesk.com/oauth/tokens json {"client_id":"your-client-id","client_secret":"ZENDESK_CLIENT_SECRET","code":"CODE","expires_in":7200,"grant_type":"authorization_code","redirect_uri":"http://127.0.0.1:8400/callback","scope":"read"}`,
	refresh: `POST https://acme.zendesk.com/oauth/tokens json {"client_id":"your-client-id","client_secret":"ZENDESK_CLIENT_SECRET","expires_in":7200,"grant_type":"refresh_token","refresh_token":"REFRESH"}`,
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","token_type":"bearer","scope":"read","expires_in":7200,"refresh_token_expires_in":2592000}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_grant","error_description":"The provided authorization grant is invalid"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "pagerduty", way: "the app alone",
	token:   "POST https://identity.pagerduty.com/oauth/token form client_id=your-client-id&client_secret=PAGERDUTY_CLIENT_SECRET&grant_type=client_credentials&scope=as_account-us.acme incidents.read services.read",
	answer:  `{"access_token":"TOKEN","scope":"as_account-us.acme incidents.read services.read","token_type":"bearer","expires_in":864000}`,
	call:    "Accept: application/vnd.pagerduty+json;version=2; Authorization: Bearer TOKEN",
	refusal: `401 {"error":"invalid_client"}`, refused: auth.ErrCredentials,
}, {
	preset: "pagerduty", way: "a person's login",
	login: "https://identity.pagerduty.com/oauth/authorize?client_id=your-client-id&code_challenge=CHALLENGE&code_challenge_method=S256" +
		"&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=incidents.read services.read&state=STATE",
	token:   "POST https://identity.pagerduty.com/oauth/token form client_id=your-client-id&client_secret=PAGERDUTY_CLIENT_SECRET&code=CODE&code_verifier=VERIFIER&grant_type=authorization_code&redirect_uri=http://127.0.0.1:8400/callback",
	refresh: "POST https://identity.pagerduty.com/oauth/token form client_id=your-client-id&client_secret=PAGERDUTY_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","token_type":"bearer","expires_in":864000}`,
	call:    "Accept: application/vnd.pagerduty+json;version=2; Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_grant"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "servicedesk_plus", way: "a person's login",
	login: "https://accounts.zoho.com/oauth/v2/auth?access_type=offline&client_id=your-client-id&prompt=consent" +
		"&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=SDPOnDemand.requests.ALL,SDPOnDemand.users.READ&state=STATE",
	more:    "scopes: [SDPOnDemand.requests.ALL, SDPOnDemand.users.READ]",
	token:   "POST https://accounts.zoho.com/oauth/v2/token form client_id=your-client-id&client_secret=SDP_CLIENT_SECRET&code=CODE&grant_type=authorization_code&redirect_uri=http://127.0.0.1:8400/callback",
	refresh: "POST https://accounts.zoho.com/oauth/v2/token form client_id=your-client-id&client_secret=SDP_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","api_domain":"https://www.zohoapis.com","token_type":"Bearer","expires_in":3600}`,
	keeps:   true,
	call:    "Accept: application/vnd.manageengine.sdp.v3+json; Authorization: Zoho-oauthtoken TOKEN",
	refusal: `200 {"error":"invalid_code"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "servicedesk_plus", way: "a refresh token of a self client",
	seed:    "SDP_REFRESH_TOKEN",
	refresh: "POST https://accounts.zoho.com/oauth/v2/token form client_id=your-client-id&client_secret=SDP_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","api_domain":"https://www.zohoapis.com","token_type":"Bearer","expires_in":3600}`,
	keeps:   true,
	call:    "Accept: application/vnd.manageengine.sdp.v3+json; Authorization: Zoho-oauthtoken TOKEN",
	refusal: `400 {"error":"Access Denied","error_description":"You have made too many requests continuously."}`, refused: auth.ErrUnavailable,
}, {
	preset:  "ivanti",
	token:   `POST https://acme.saasit.com/api/rest/authentication/login json {"password":"IVANTI_PASSWORD","role":"SelfService","tenant":"acme.saasit.com","username":"your-username"}`,
	answer:  `"TOKEN"`,
	call:    "Authorization: TOKEN",
	expired: `401 {"code":"ISM_4001","description":"Invalid session key or session timed out","message":["Authentication required"]}`,
	refusal: `401 {"code":"ISM_4001","message":["Authentication required"]}`, refused: auth.ErrCredentials,
}, {
	preset:  "cherwell",
	token:   "POST https://cherwell.example.com/CherwellAPI/token form client_id=your-client-id&grant_type=password&password=CHERWELL_PASSWORD&username=your-username",
	refresh: "POST https://cherwell.example.com/CherwellAPI/token form client_id=your-client-id&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","token_type":"bearer","expires_in":1199,"refresh_token":"REFRESH","as:client_id":"your-client-id","username":"your-username",".issued":"Mon, 17 June 2019 15:31:39 GMT"}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_grant","error_description":"BADREQUEST"}`, refused: auth.ErrCredentials,
}, {
	preset: "salesforce", way: "the client alone",
	token:   "POST https://acme.my.salesforce.com/services/oauth2/token form client_id=your-consumer-key&client_secret=SALESFORCE_CLIENT_SECRET&grant_type=client_credentials",
	answer:  `{"access_token":"TOKEN","signature":"c2ln","instance_url":"https://acme.my.salesforce.com","id":"https://login.salesforce.com/id/00D/005","token_type":"Bearer","issued_at":"1667000000000"}`,
	call:    "Authorization: Bearer TOKEN",
	expired: `401 [{"message":"Session expired or invalid","errorCode":"INVALID_SESSION_ID"}]`,
	refusal: `400 {"error":"invalid_client","error_description":"invalid client credentials"}`, refused: auth.ErrCredentials,
}, {
	preset: "salesforce", way: "a person's login",
	login:   "https://acme.my.salesforce.com/services/oauth2/authorize?client_id=your-consumer-key&redirect_uri=http://127.0.0.1:8400/callback&response_type=code&scope=api refresh_token&state=STATE",
	token:   "POST https://acme.my.salesforce.com/services/oauth2/token form client_id=your-consumer-key&client_secret=SALESFORCE_CLIENT_SECRET&code=CODE&grant_type=authorization_code&redirect_uri=http://127.0.0.1:8400/callback",
	refresh: "POST https://acme.my.salesforce.com/services/oauth2/token form client_id=your-consumer-key&client_secret=SALESFORCE_CLIENT_SECRET&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","refresh_token":"REFRESH","instance_url":"https://acme.my.salesforce.com","token_type":"Bearer","issued_at":"1667000000000"}`,
	keeps:   true,
	call:    "Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_grant","error_description":"expired access/refresh token"}`, refused: auth.ErrConsentRequired,
}, {
	preset: "entra", way: "a secret of the client",
	token: "POST https://login.microsoftonline.com/acme.onmicrosoft.com/oauth2/v2.0/token form " +
		"client_id=00000000-0000-0000-0000-000000000000&client_secret=ENTRA_CLIENT_SECRET&grant_type=client_credentials&scope=https://graph.microsoft.com/.default",
	answer:  `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"TOKEN"}`,
	call:    "Authorization: Bearer TOKEN",
	expired: `401 {"error":{"code":"InvalidAuthenticationToken","message":"Lifetime validation failed, the token is expired."}}`,
	refusal: `401 {"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided.","error_codes":[7000215]}`, refused: auth.ErrCredentials,
}, {
	preset: "halo",
	token: "POST https://acme.haloitsm.com/auth/token?tenant=acme form " +
		"client_id=00000000-0000-0000-0000-000000000000&client_secret=HALO_CLIENT_SECRET&grant_type=client_credentials&scope=all",
	answer:  `{"scope":"all","token_type":"Bearer","access_token":"TOKEN","expires_in":3600,"id_token":null}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `400 {"error":"invalid_client","error_description":"The specified client credentials are invalid."}`, refused: auth.ErrCredentials,
}, {
	preset: "xurrent", way: "the client alone",
	token:   "POST https://oauth.xurrent.com/token form client_id=your-client-id&client_secret=XURRENT_CLIENT_SECRET&grant_type=client_credentials",
	answer:  `{"access_token":"TOKEN","token_type":"Bearer","expires_in":3600}`,
	call:    "Authorization: Bearer TOKEN; X-Xurrent-Account: acme",
	refusal: `400 {"error":"invalid_client"}`, refused: auth.ErrCredentials,
}, {
	preset: "xurrent", way: "a region",
	token:   "POST https://oauth.au.xurrent.com/token form client_id=your-client-id&client_secret=XURRENT_CLIENT_SECRET&grant_type=client_credentials",
	answer:  `{"access_token":"TOKEN"}`,
	call:    "Authorization: Bearer TOKEN; X-Xurrent-Account: acme",
	refusal: `400 {"error":"invalid_client"}`, refused: auth.ErrCredentials,
}, {
	preset:  "xmatters",
	token:   "POST https://acme.xmatters.com/api/xm/1/oauth2/token form client_id=your-client-id&grant_type=password&password=XMATTERS_PASSWORD&username=your-username",
	refresh: "POST https://acme.xmatters.com/api/xm/1/oauth2/token form client_id=your-client-id&grant_type=refresh_token&refresh_token=REFRESH",
	answer:  `{"access_token":"TOKEN","token_type":"bearer","refresh_token":"REFRESH","expires_in":14399,"scope":"all","jti":"c0"}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"code":401,"reason":"Unauthorized","message":"Authentication failed"}`, refused: auth.ErrCredentials,
}, {
	preset:  "sysaid",
	token:   `POST https://acme.sysaidit.com/connect/v1/access-tokens json {"clientId":"your-client-id","clientSecret":"SYSAID_CLIENT_SECRET"}; X-Sysaid-Accountid: acme`,
	answer:  `{"token":"TOKEN","expiresIn":3600,"tokenType":"Bearer"}`,
	call:    "Authorization: Bearer TOKEN; X-Sysaid-Accountid: acme",
	refusal: `401 {"message":"Unauthorized"}`, refused: auth.ErrCredentials,
}, {
	preset: "glpi", way: "the user alone",
	token:   "GET https://glpi.example.com/apirest.php/initSession; Authorization: user_token GLPI_USER_TOKEN",
	answer:  `{"session_token":"TOKEN"}`,
	call:    "Session-Token: TOKEN",
	expired: `401 ["ERROR_SESSION_TOKEN_INVALID","session_token seems invalid"]`,
	refusal: `401 ["ERROR_GLPI_LOGIN_USER_TOKEN","parameter user_token seems invalid"]`, refused: auth.ErrCredentials,
}, {
	preset: "glpi", way: "an application's token, too",
	token:   "GET https://glpi.example.com/apirest.php/initSession; App-Token: GLPI_APP_TOKEN; Authorization: user_token GLPI_USER_TOKEN",
	answer:  `{"session_token":"TOKEN"}`,
	call:    "App-Token: GLPI_APP_TOKEN; Session-Token: TOKEN",
	expired: `401 ["ERROR_SESSION_TOKEN_INVALID","session_token seems invalid"]`,
	refusal: `400 ["ERROR_WRONG_APP_TOKEN_PARAMETER","parameter app_token seems wrong"]`, refused: auth.ErrCredentials,
}, {
	preset: "servicenow", way: "a user, by a signed JWT",
	token: "POST https://acme.service-now.com/oauth_token.do form assertion=JWT(alg=RS256 aud=your-client-id iss=your-client-id kid=your-key-id sub=user@example.com)" +
		"&client_id=your-client-id&client_secret=SERVICENOW_CLIENT_SECRET&grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer",
	answer:  `{"access_token":"TOKEN","scope":"useraccount","token_type":"Bearer","expires_in":1799}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error_description":"access_denied","error":"server_error"}`, refused: auth.ErrCredentials,
}, {
	preset: "salesforce", way: "a user, by a signed JWT",
	token: "POST https://acme.my.salesforce.com/services/oauth2/token form " +
		"assertion=JWT(alg=RS256 aud=https://login.salesforce.com iss=your-consumer-key sub=user@example.com)" +
		"&client_id=your-consumer-key&grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer",
	answer:  `{"access_token":"TOKEN","scope":"api","instance_url":"https://acme.my.salesforce.com","token_type":"Bearer"}`,
	call:    "Authorization: Bearer TOKEN",
	expired: `401 [{"message":"Session expired or invalid","errorCode":"INVALID_SESSION_ID"}]`,
	refusal: `400 {"error":"invalid_grant","error_description":"user hasn't approved this consumer"}`, refused: auth.ErrCredentials,
}, {
	preset: "entra", way: "a certificate of the client",
	token: "POST https://login.microsoftonline.com/acme.onmicrosoft.com/oauth2/v2.0/token form " +
		"client_assertion=JWT(alg=PS256 aud=https://login.microsoftonline.com/acme.onmicrosoft.com/oauth2/v2.0/token " +
		"iss=00000000-0000-0000-0000-000000000000 sub=00000000-0000-0000-0000-000000000000 x5t#S256)" +
		"&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer&client_id=00000000-0000-0000-0000-000000000000" +
		"&grant_type=client_credentials&scope=https://graph.microsoft.com/.default",
	answer:  `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"TOKEN"}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error":"invalid_client","error_description":"AADSTS700027: The certificate is not registered."}`, refused: auth.ErrCredentials,
}, {
	preset: "entra", way: "a workload identity",
	token: "POST https://login.microsoftonline.com/acme.onmicrosoft.com/oauth2/v2.0/token form " +
		"client_assertion=JWT(alg=RS256 aud=api://AzureADTokenExchange iss=https://cluster.example.com sub=system:serviceaccount:a:b)" +
		"&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer&client_id=00000000-0000-0000-0000-000000000000" +
		"&grant_type=client_credentials&scope=https://graph.microsoft.com/.default",
	answer:  `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"TOKEN"}`,
	call:    "Authorization: Bearer TOKEN",
	refusal: `401 {"error":"invalid_client","error_description":"AADSTS700213: No matching federated identity record."}`, refused: auth.ErrCredentials,
}, {
	preset: "okta",
	token: "POST https://acme.okta.com/oauth2/v1/token form client_assertion=JWT(alg=RS256 aud=https://acme.okta.com/oauth2/v1/token " +
		"iss=your-client-id kid=your-key-id sub=your-client-id)&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer" +
		"&client_id=your-client-id&grant_type=client_credentials&scope=okta.users.read",
	answer:  `{"token_type":"Bearer","expires_in":3600,"access_token":"TOKEN","scope":"okta.users.read"}`,
	call:    "Authorization: Bearer TOKEN",
	expired: `401 {"errorCode":"E0000011","errorSummary":"Invalid token provided"}`,
	refusal: `401 {"error":"invalid_client","error_description":"The client_assertion signature is invalid."}`, refused: auth.ErrCredentials,
}, {
	preset: "password_safe", way: "an application user",
	token: "POST https://passwordsafe.example.com/BeyondTrust/api/public/v3/Auth/connect/token form " +
		"client_id=your-client-id&client_secret=PASSWORD_SAFE_CLIENT_SECRET&grant_type=client_credentials",
	answer:  `{"access_token":"TOKEN","expires_in":3600,"token_type":"Bearer","scope":"publicapi"}`,
	then:    "POST https://passwordsafe.example.com/BeyondTrust/api/public/v3/Auth/SignAppIn; Authorization: Bearer TOKEN",
	cookie:  "ASP.NET_SessionId=session-TOKEN; path=/; HttpOnly",
	call:    "Authorization: Bearer TOKEN; Cookie: ASP.NET_SessionId=session-TOKEN",
	refusal: `400 {"error":"invalid_client"}`, refused: auth.ErrCredentials,
}, {
	preset: "password_safe", way: "an API key and a user",
	token:   "POST https://passwordsafe.example.com/BeyondTrust/api/public/v3/Auth/SignAppin; Authorization: PS-Auth key=PASSWORD_SAFE_API_KEY; runas=your-username;",
	answer:  `{"UserId":1,"UserName":"your-username","EmailAddress":"you@example.com"}`,
	cookie:  "ASP.NET_SessionId=TOKEN; path=/; HttpOnly",
	call:    "Cookie: ASP.NET_SessionId=TOKEN",
	refusal: `401 "Authorization has been denied for this request."`, refused: auth.ErrCredentials,
}}

// A keyVendor is what a product without a token endpoint documents.
type keyVendor struct {
	preset, way string
	call        string // the first call, as wireWith writes it
	refusal     string // the response to wrong credentials; 401 {} if empty
}

var keyVendors = []keyVendor{{
	preset: "jira_token", call: "GET https://acme.atlassian.net/rest/api/3/myself; Authorization: Basic you@example.com:JIRA_TOKEN",
}, {
	preset: "zendesk_token", call: "GET https://acme.zendesk.com/api/v2/users/me.json; Authorization: Basic you@example.com/token:ZENDESK_TOKEN",
	refusal: `401 {"error":"Couldn't authenticate you"}`,
}, {
	preset: "freshservice", call: "GET https://acme.freshservice.com/api/v2/tickets?per_page=1; Authorization: Basic FRESHSERVICE_API_KEY:X",
	refusal: `401 {"code":"invalid_credentials","message":"You have to be logged in to perform this action."}`,
}, {
	preset: "pagerduty_token", call: "GET https://api.pagerduty.com/abilities; Accept: application/vnd.pagerduty+json;version=2; Authorization: Token token=PAGERDUTY_TOKEN",
}, {
	preset: "servicedesk_plus_onpremises", call: "GET https://sdp.example.com:8080/api/v3/requests; Accept: application/vnd.manageengine.sdp.v3+json; Authtoken: SDP_AUTHTOKEN",
	refusal: `401 {"response_status":{"status_code":4000,"messages":[{"status_code":401,"message":"Authentication failed."}],"status":"failed"}}`,
}, {
	preset: "topdesk", call: "GET https://acme.topdesk.net/tas/api/version; Authorization: Basic your-login:TOPDESK_APPLICATION_PASSWORD",
}, {
	preset: "ivanti_token", call: "GET https://acme.saasit.com/api/odata/businessobject/incidents?$top=1; Authorization: rest_api_key=IVANTI_API_KEY",
	refusal: `401 {"code":"ISM_4001","message":["Authentication required"]}`,
}, {
	preset: "solarwinds", way: "the United States",
	call: "GET https://api.samanage.com/incidents.json?per_page=1; Accept: application/vnd.samanage.v2.1+json; X-Samanage-Authorization: Bearer SOLARWINDS_TOKEN",
}, {
	preset: "solarwinds", way: "a region",
	call: "GET https://apieu.samanage.com/incidents.json?per_page=1; Accept: application/vnd.samanage.v2.1+json; X-Samanage-Authorization: Bearer SOLARWINDS_TOKEN",
}, {
	preset: "opsgenie", way: "the global region", call: "GET https://api.opsgenie.com/v2/alerts?limit=1; Authorization: GenieKey OPSGENIE_API_KEY",
	refusal: `401 {"message":"Could not authenticate","took":0.0,"requestId":"a"}`,
}, {
	preset: "opsgenie", way: "a region", call: "GET https://api.eu.opsgenie.com/v2/alerts?limit=1; Authorization: GenieKey OPSGENIE_API_KEY",
}, {
	preset: "gitlab", call: "GET https://gitlab.com/api/v4/version; Private-Token: GITLAB_TOKEN",
	refusal: `401 {"message":"401 Unauthorized"}`,
}, {
	preset: "azure_devops", call: "GET https://dev.azure.com/acme/_apis/projects?api-version=7.1; Authorization: Basic :AZURE_DEVOPS_TOKEN",
	refusal: "203 <html>Sign In</html>",
}, {
	preset: "datadog", call: "GET https://api.datadoghq.com/api/v1/validate; Dd-Api-Key: DD_API_KEY; Dd-Application-Key: DD_APP_KEY",
	refusal: `403 {"errors":["Forbidden"]}`,
}}

// TestPresets connects to a server of each product's shape, as its documentation shows the connector.
func TestPresets(t *testing.T) {
	t.Parallel()
	for _, v := range tokenVendors {
		t.Run(v.preset+"/"+v.way, func(t *testing.T) {
			t.Parallel()
			dir := presetDir(t)
			synctest.Test(t, func(t *testing.T) { v.test(t, dir) })
		})
	}
	for _, v := range keyVendors {
		t.Run(v.preset+"/"+v.way, func(t *testing.T) {
			t.Parallel()
			dir := presetDir(t)
			synctest.Test(t, func(t *testing.T) { v.test(t, dir) })
		})
	}
}

// Each way to authenticate of each preset has a test.
func TestPresetsAreTested(t *testing.T) {
	t.Parallel()
	tested := map[string]bool{}
	for _, v := range tokenVendors {
		tested[v.preset+"/"+v.way] = true
	}
	for _, v := range keyVendors {
		tested[v.preset+"/"+v.way] = true
	}
	for _, p := range config.Presets() {
		for _, way := range append(p.Ways, config.PresetWay{})[:max(1, len(p.Ways))] {
			if !tested[p.Name+"/"+way.About] {
				t.Errorf("%s/%s is not tested", p.Name, way.About)
			}
		}
	}
}

const verifier = "verifier-of-at-least-forty-three-characters-x"

func (v tokenVendor) test(t *testing.T, dir string) {
	v.expired = cmp.Or(v.expired, "401 {}")
	s := &tokenServer{tokenVendor: v, current: v.seed}
	c := connectPreset(t, s, dir, v.preset, v.way, v.more)
	session := c.Session()
	if flow := session.CodeFlow(); flow != nil {
		page, err := url.Parse(flow.URL("STATE", verifier))
		if err != nil {
			t.Fatal(err)
		}
		challenge := oauth2.S256ChallengeFromVerifier(verifier)
		if got := strings.ReplaceAll(address(page), challenge, "CHALLENGE"); got != v.login {
			t.Errorf("the login page is\n%s\nnot\n%s", got, v.login)
		}
		if err := session.Redeem(t.Context(), "CODE", verifier); err != nil {
			t.Fatal(err)
		}
	} else if v.login != "" {
		t.Error("nobody needs to log in")
	}
	works := func(when string, exchanges, refusedCalls int) {
		t.Helper()
		status, body, err := call(t.Context(), c, "GET", c.Probe, "")
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil || status != 200 || s.exchanges != exchanges || s.refusedCalls != refusedCalls || s.wrong != "" {
			t.Errorf("%s: %d %s %v, %d exchanges, %d calls refused, want %d and %d%s", when, status, body, err, s.exchanges, s.refusedCalls, exchanges, refusedCalls, s.wrong)
		}
	}
	works("at first", 1, 0)
	works("again", 1, 0)
	s.revoke()
	works("after a revocation", 2, 1)
	life, known := s.lifetime()
	time.Sleep(life)
	if known {
		works("after the token expired", 3, 1)
	} else {
		works("after the session ended", 3, 2)
	}
	s.refuse()
	if status, body, err := call(t.Context(), c, "GET", c.Probe, ""); err != nil || fmt.Sprint(status) != v.expired[:3] {
		t.Errorf("with dead credentials: %d %s %v", status, body, err)
	}
	if _, err := session.Token(t.Context()); !errors.Is(err, v.refused) {
		t.Errorf("with dead credentials: %v, want %v", err, v.refused)
	}
	if v.refused != auth.ErrConsentRequired {
		return
	}
	time.Sleep(10 * time.Minute)
	if _, err := session.Token(t.Context()); !errors.Is(err, v.refused) || s.refusals != 1 {
		t.Errorf("a dead refresh token was sent %d times: %v", s.refusals, err)
	}
}

// Without a token endpoint, a refusal is the caller's, and only a key that has changed is sent again.
func (v keyVendor) test(t *testing.T, dir string) {
	v.refusal = cmp.Or(v.refusal, "401 {}")
	var mu sync.Mutex
	want, calls, last := v.call, 0, ""
	c := connectPreset(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if last = wireWith(r, nil, "Accept"); last == want {
			respond(w, "200 {}")
		} else {
			respond(w, v.refusal)
		}
	}), dir, v.preset, v.way, "")
	works := func(when string, wantStatus, wantCalls int) {
		t.Helper()
		calls = 0
		status, body, err := call(t.Context(), c, "GET", c.Probe, "")
		if err != nil || status != wantStatus || calls != wantCalls {
			t.Errorf("%s: %d %s %v after %d requests, want %d after %d\ngot  %s\nwant %s", when, status, body, err, calls, wantStatus, wantCalls, last, want)
		}
	}
	refused, _ := strconv.Atoi(v.refusal[:3])
	works("at first", 200, 1)
	secret := regexp.MustCompile(`[A-Z_]{8,}`).FindString(v.call)
	want = strings.ReplaceAll(v.call, secret, "new-key")
	works("while only the product has the new key", refused, 1)
	write(t, filepath.Join(dir, secret), "new-key\n")
	works("when the file has just changed", 200, 2)
	works("after the rotation", 200, 1)
	if state, err := c.Status(t.Context()); err != nil || !state.Expiry.IsZero() {
		t.Errorf("%+v %v", state, err)
	}
}

// connectPreset makes the connector that the documentation shows, whose requests all go to the server.
func connectPreset(t *testing.T, server http.Handler, dir, name, way, more string) *config.Connector {
	t.Helper()
	l := memnet.Listen()
	s := &http.Server{Handler: server}
	go s.Serve(l)
	client := l.Client()
	wrap := func(string, http.RoundTripper) http.RoundTripper { return anywhere{client.Transport} }
	conns, err := config.Parse(filepath.Join(dir, "itsmauth.yaml"), []byte(presetYAML(name, way)+"    "+more+"\n"), config.WithWrap(wrap))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conns.Close()
		client.CloseIdleConnections()
		s.Close()
	})
	return get(t, conns, name)
}

var references = regexp.MustCompile(`\$\{env:([A-Z0-9_]+)\}`)

// presetYAML is the connector that the documentation shows, with files in place of environment variables.
func presetYAML(name, way string) string {
	text := "version: 1\nconnectors:\n  " + name + ":\n    provider: " + name + "\n"
	list := config.Presets()
	p := list[slices.IndexFunc(list, func(p config.Preset) bool { return p.Name == name })]
	keys := p.Keys
	for _, w := range p.Ways {
		if w.About == way {
			keys = slices.Concat(keys, w.Keys)
		}
	}
	for _, k := range keys {
		text += "    " + strings.ReplaceAll(strings.TrimSpace(k.Example), "\n", "\n    ") + "\n"
	}
	return references.ReplaceAllString(text, "$${file:$1}")
}

// presetDir has the files to which connectors of presets refer: a variable's has its name in it.
func presetDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cert, key := rsaCertificate(t)
	for _, p := range config.Presets() {
		for _, way := range append(p.Ways, config.PresetWay{}) {
			for _, k := range slices.Concat(p.Keys, way.Keys) {
				for _, m := range references.FindAllStringSubmatch(k.Example, -1) {
					write(t, filepath.Join(dir, m[1]), m[1]+"\n")
				}
				for _, m := range regexp.MustCompile(`\$\{file:([^}]+)\}`).FindAllStringSubmatch(k.Example, -1) {
					text := map[string]string{".pem": key, ".key": key, ".crt": cert, "": workloadIdentity}[filepath.Ext(m[1])]
					write(t, filepath.Join(dir, m[1]), text)
				}
			}
		}
	}
	return dir
}

// workloadIdentity is a JWT of a cluster, whose signature nobody checks.
var workloadIdentity = strings.Join([]string{
	base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`)),
	base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://cluster.example.com","sub":"system:serviceaccount:a:b","aud":"api://AzureADTokenExchange"}`)),
	"c2ln",
}, ".")

// rsaCertificate is a certificate with its key, in PEM.
var rsaCertificate = func() func(t *testing.T) (string, string) {
	var once sync.Once
	var cert, key string
	return func(t *testing.T) (string, string) {
		once.Do(func() {
			k, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)}
			der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
			if err != nil {
				t.Fatal(err)
			}
			pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
			if err != nil {
				t.Fatal(err)
			}
			cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
			key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
		})
		return cert, key
	}
}()

// anywhere sends requests to every address to one server, and tells it their scheme.
type anywhere struct{ next http.RoundTripper }

func (a anywhere) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Scheme", r.URL.Scheme)
	r.URL.Scheme = "http"
	return a.next.RoundTrip(r)
}

// A tokenServer is a product.
type tokenServer struct {
	tokenVendor
	mu           sync.Mutex
	exchanges    int
	refusedCalls int
	current      string // the refresh token
	live         string // the access token
	until        time.Time
	refuses      bool
	refusals     int
	wrong        string
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	want := s.token
	if s.current != "" && s.refresh != "" {
		want = s.filledIn(s.refresh)
	}
	got := wireWith(r, body)
	if s.then != "" && urlOf(got) == urlOf(s.then) {
		if got != s.filledIn(s.then) {
			s.wrong += "\ngot  " + got + "\nwant " + s.filledIn(s.then)
		}
		w.Header().Set("Set-Cookie", s.filledIn(s.cookie))
		respond(w, "200 {}")
	} else if urlOf(got) != urlOf(want) {
		s.api(w, r)
	} else if s.refuses {
		s.refusals++
		respond(w, s.refusal)
	} else if got != want {
		s.wrong += "\ngot  " + got + "\nwant " + want
		respond(w, `400 {"error":"invalid_request"}`)
	} else {
		answer := s.answer
		if s.keeps && want != s.token {
			answer = regexp.MustCompile(`"refresh_token":"REFRESH",?`).ReplaceAllString(answer, "")
		}
		s.exchanges++
		s.live = "token-" + strconv.Itoa(s.exchanges)
		if strings.Contains(answer, "REFRESH") {
			s.current = "refresh-" + strconv.Itoa(s.exchanges)
		}
		life, _ := s.lifetime()
		s.until = time.Now().Add(life)
		if s.cookie != "" && s.then == "" {
			w.Header().Set("Set-Cookie", s.filledIn(s.cookie))
		}
		respond(w, "200 "+s.filledIn(answer))
	}
}

func (s *tokenServer) api(w http.ResponseWriter, r *http.Request) {
	got, want := headers(r, "Accept-Encoding", "User-Agent", "X-Scheme"), s.filledIn(s.call)
	switch {
	case got == want && time.Now().Before(s.until):
		respond(w, "200 {}")
	case s.live == "" || !time.Now().Before(s.until):
		s.refusedCalls++
		respond(w, s.expired)
	default:
		s.wrong += "\ngot  " + got + "\nwant " + want
		respond(w, "500 {}")
	}
}

var placeholders = regexp.MustCompile(`\b(TOKEN|REFRESH)\b`)

// filledIn replaces TOKEN and REFRESH by the current ones.
func (s *tokenServer) filledIn(text string) string {
	return placeholders.ReplaceAllStringFunc(text, func(name string) string {
		return map[string]string{"TOKEN": s.live, "REFRESH": s.current}[name]
	})
}

func (s *tokenServer) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = ""
}

func (s *tokenServer) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live, s.refuses = "", true
}

var expiresIn = regexp.MustCompile(`"expires_?[iI]n":([0-9]+)`)

// lifetime is how long a token lives, and whether the response says so.
func (s *tokenServer) lifetime() (time.Duration, bool) {
	if m := expiresIn.FindStringSubmatch(s.answer); m != nil {
		n, _ := strconv.Atoi(m[1])
		return time.Duration(n) * time.Second, true
	}
	return 20 * time.Minute, false
}

// respond writes a response such as 401 {}.
func respond(w http.ResponseWriter, text string) {
	code, body, _ := strings.Cut(text, " ")
	status, err := strconv.Atoi(code)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	io.WriteString(w, body)
}

// usual are headers that wireWith leaves out.
var usual = []string{"Accept", "Accept-Encoding", "Connection", "Content-Length", "Content-Type", "User-Agent", "X-Scheme"}

// wireWith writes a request: method, address, encoding and fields in alphabetical order, the headers that are not
// usual, and these.
func wireWith(r *http.Request, body []byte, with ...string) string {
	u := *r.URL
	u.Scheme, u.Host = r.Header.Get("X-Scheme"), r.Host
	text := r.Method + " " + address(&u)
	switch {
	case len(body) == 0:
	case r.Header.Get("Content-Type") == "application/json":
		var fields map[string]any
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		if err := d.Decode(&fields); err != nil {
			return text + " json " + err.Error()
		}
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.Encode(fields)
		text += " json " + strings.TrimSpace(b.String())
	default:
		fields, err := url.ParseQuery(string(body))
		if err != nil || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
			return text + " " + r.Header.Get("Content-Type") + string(body)
		}
		for _, name := range []string{"assertion", "client_assertion"} {
			if fields.Has(name) {
				fields.Set(name, claims(fields.Get(name)))
			}
		}
		text += " form " + strings.ReplaceAll(unescaped(fields), verifier, "VERIFIER")
	}
	without := slices.DeleteFunc(slices.Clone(usual), func(name string) bool { return slices.Contains(with, name) })
	if more := headers(r, without...); more != "" {
		text += "; " + more
	}
	return text
}

// claims writes a JWT's header and claims, without those that always differ. A valid one lives for some minutes.
func claims(token string) string {
	parts, all := strings.Split(token, "."), map[string]any{}
	for _, part := range parts[:min(2, len(parts))] {
		b, err := base64.RawURLEncoding.DecodeString(part)
		if err == nil {
			err = json.Unmarshal(b, &all)
		}
		if err != nil {
			return err.Error()
		}
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		switch name {
		case "typ", "iat", "exp", "nbf", "jti":
		case "x5t#S256":
			list = append(list, name)
		default:
			list = append(list, fmt.Sprint(name, "=", all[name]))
		}
	}
	return "JWT(" + strings.Join(list, " ") + ")"
}

// urlOf is the URL in what wireWith writes.
func urlOf(text string) string { return strings.TrimSuffix(strings.Fields(text)[1], ";") }

// address writes a URL without escapes.
func address(u *url.URL) string {
	text := u.Scheme + "://" + u.Host + u.Path
	if u.RawQuery != "" {
		text += "?" + unescaped(u.Query())
	}
	return text
}

func unescaped(fields url.Values) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		for _, v := range fields[k] {
			list = append(list, k+"="+v)
		}
	}
	return strings.Join(list, "&")
}

// headers writes all headers but some. Basic credentials are decoded.
func headers(r *http.Request, without ...string) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		if slices.Contains(without, name) {
			continue
		}
		value := strings.Join(r.Header[name], ", ")
		if basic, ok := strings.CutPrefix(value, "Basic "); ok {
			decoded, err := base64.StdEncoding.DecodeString(basic)
			value = fmt.Sprint("Basic ", string(decoded))
			if err != nil {
				value = err.Error()
			}
		}
		list = append(list, name+": "+value)
	}
	return strings.Join(list, "; ")
}
