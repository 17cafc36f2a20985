package remedytest

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func loginAR(t *testing.T, s *Server) string {
	t.Helper()
	got := post(t, s.URL+"/api/jwt/login", url.Values{"username": {DefaultUsername}, "password": {DefaultPassword}})
	if got.status != 200 || !strings.HasPrefix(got.header.Get("Content-Type"), "text/plain") || strings.Count(got.body, ".") != 2 || strings.ContainsAny(got.body, "\"{\n") {
		t.Fatalf("%d %s %q", got.status, got.header.Get("Content-Type"), got.body)
	}
	return got.body
}

func TestLogin(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	to := s.URL + "/api/jwt/login"
	good := url.Values{"username": {DefaultUsername}, "password": {DefaultPassword}}
	for name, tt := range map[string]struct {
		got    reply
		status int
	}{
		"password":      {post(t, to, with(good, "password", "x")), 401},
		"username":      {post(t, to, with(good, "username", "x")), 401},
		"nothing":       {post(t, to, nil), 401},
		"in the URL":    {post(t, to+"?"+good.Encode(), good), 400},
		"JSON":          {do(t, http.DefaultClient, "POST", to, `{}`, "Content-Type", "application/json"), 400},
		"another verb":  {do(t, http.DefaultClient, "GET", to, ""), 405},
		"one too often": {do(t, http.DefaultClient, "POST", to, good.Encode()+"&username=x", "Content-Type", "application/x-www-form-urlencoded"), 400},
	} {
		if tt.got.status != tt.status || strings.Contains(tt.got.body, "623") != (tt.status == 401) {
			t.Errorf("%s: %d %s", name, tt.got.status, tt.got.body)
		}
	}
	loginAR(t, s)
	if got := s.Stats(); got.Exchanges != 1 || got.TokenRequests != 8 || got.APICalls != 0 {
		t.Errorf("%+v", got)
	}
}

func TestSchemes(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	access, refreshed := login(t, s)
	jwt := loginAR(t, s)
	for _, tt := range []struct {
		header []string
		status int
	}{
		{[]string{"Authorization", "Bearer " + access}, 200},
		{[]string{"Authorization", "bearer " + access}, 200},
		{[]string{"Authorization", "AR-JWT " + jwt}, 200},
		{[]string{"Authorization", "AR-JWT " + access}, 401},
		{[]string{"Authorization", "Bearer " + jwt}, 401},
		{[]string{"Authorization", "Bearer " + refreshed}, 401},
		{[]string{"Authorization", "Basic " + access}, 401},
		{[]string{"Authorization", access}, 401},
		{[]string{"Authorization", "Bearer " + access, "Authorization", "Bearer " + access}, 401},
		{nil, 401},
	} {
		got := do(t, http.DefaultClient, "GET", s.URL+"/api/arsys/v1/entry/HPD:IncidentInterface/INC000000000001", "", tt.header...)
		if got.status != tt.status {
			t.Errorf("%.24q: %d, want %d", tt.header, got.status, tt.status)
		}
		if got.status == 401 && got.body != refused623 {
			t.Errorf("refused with %s", got.body)
		}
	}
	logout := func(token string) int {
		return do(t, http.DefaultClient, "POST", s.URL+"/api/jwt/logout", "", "Authorization", "AR-JWT "+token).status
	}
	if got := [...]int{logout("x"), logout(access), logout(jwt), logout(jwt)}; got != [...]int{401, 401, 204, 401} {
		t.Errorf("logout: %v", got)
	}
	if got := do(t, http.DefaultClient, "POST", s.URL+"/api/jwt/logout", "", "Authorization", "Bearer "+access); got.status != 401 {
		t.Errorf("logout as Bearer: %d", got.status)
	}
	if got := api(t, s, access); got.status != 200 {
		t.Errorf("a logout killed another's token: %d", got.status)
	}
	if got := s.Stats().APICalls; got != 11 {
		t.Errorf("%d API calls, logins and logouts not included", got)
	}
}

func TestEntries(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	access, _ := login(t, s)
	call := func(method, path, body string) reply {
		return do(t, http.DefaultClient, method, s.URL+path, body, "Authorization", "Bearer "+access, "Content-Type", "application/json")
	}
	const form = "/api/arsys/v1/entry/HPD:IncidentInterface"
	for _, tt := range []struct {
		method, path, body string
		status             int
		number             int // of the error
	}{
		{"GET", form + "/INC000000000009", "", 404, 302},
		{"PUT", form + "/INC000000000009", `{"values":{"Status":"Closed"}}`, 404, 302},
		{"GET", "/api/arsys/v1/entry/None", "", 404, 303},
		{"POST", form, `{"values":{"Status":"New"}}`, 400, 307},
		{"POST", form, `{"values":{}}`, 400, 0},
		{"POST", form, `<html>`, 400, 0},
		{"PUT", form + "/INC000000000001", `[]`, 400, 0},
		{"GET", form + "?limit=x", "", 400, 0},
		{"GET", form + "?q=x", "", 400, 0},
	} {
		got := call(tt.method, tt.path, tt.body)
		var errs []arError
		if err := json.Unmarshal([]byte(got.body), &errs); err != nil || len(errs) != 1 {
			t.Fatalf("%s %s: %q", tt.method, tt.path, got.body)
		}
		if got.status != tt.status || errs[0].Number != tt.number || errs[0].Type != "ERROR" || errs[0].Text == "" {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, got.status, got.body)
		}
	}
	if got := s.Stats().Writes; got != 0 {
		t.Errorf("%d refused writes were counted", got)
	}

	made := call("POST", form, `{"values":{"Description":"It + / = & %","Incident Number":"mine"}}`)
	if want := s.URL + form + "/INC000000000004"; made.status != 201 || made.body != "" || made.header.Get("Location") != want {
		t.Fatalf("%d %q at %q", made.status, made.body, made.header.Get("Location"))
	}
	if got := call("PUT", form+"/INC000000000004", `{"values":{"Status":"Closed","Incident Number":"other"}}`); got.status != 204 {
		t.Errorf("PUT: %d %s", got.status, got.body)
	}
	one := call("GET", form+"/INC000000000004?fields=values(Description,Status,Incident%20Number)", "").json(t)
	want := map[string]any{
		"values": map[string]any{"Description": "It + / = & %", "Status": "Closed", "Incident Number": "INC000000000004"},
		"_links": map[string]any{"self": []any{map[string]any{"href": s.URL + form + "/INC000000000004"}}},
	}
	if d := cmp.Diff(want, one); d != "" {
		t.Error(d)
	}
	for query, n := range map[string]int{"": 4, "?offset=1&limit=2": 2, "?offset=3": 1, "?offset=9": 0, "?limit=0": 0} {
		entries, ok := call("GET", form+query, "").json(t)["entries"].([]any)
		if !ok || len(entries) != n {
			t.Errorf("%q lists %d", query, len(entries))
		}
	}
	if got := s.Stats().Writes; got != 2 {
		t.Errorf("%d writes", got)
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	access, _ := login(t, s)
	s.Busy(2)
	statuses := []int{api(t, s, "x").status}
	for range 3 {
		got := api(t, s, access)
		statuses = append(statuses, got.status)
		if got.status == 500 && !strings.HasPrefix(got.body, `[{"messageType":"ERROR","messageText":"User is currently connected from another machine`) || got.status == 500 && !strings.Contains(got.body, `"messageNumber":9093`) {
			t.Errorf("busy: %s", got.body)
		}
	}
	if d := cmp.Diff([]int{401, 500, 500, 200}, statuses); d != "" {
		t.Error(d)
	}
}
