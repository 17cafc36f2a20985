package remedytest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// incidents is the only form.
const incidents = "HPD:IncidentInterface"

func (s *Server) routeAR(mux *http.ServeMux) {
	mux.HandleFunc("POST /api/jwt/login", s.login)
	mux.HandleFunc("POST /api/jwt/logout", s.logout)
	mux.HandleFunc("GET /api/arsys/v1/entry/{form}", s.authenticated(s.list))
	mux.HandleFunc("POST /api/arsys/v1/entry/{form}", s.authenticated(s.create))
	mux.HandleFunc("GET /api/arsys/v1/entry/{form}/{id}", s.authenticated(s.get))
	mux.HandleFunc("PUT /api/arsys/v1/entry/{form}/{id}", s.authenticated(s.put))
}

// An arError is one error of an error response. Its numbers are from the list of AR System error
// messages.
type arError struct {
	Type     string `json:"messageType"`
	Text     string `json:"messageText"`
	Number   int    `json:"messageNumber"`
	Appended string `json:"messageAppendedText"`
}

func refuseAR(w http.ResponseWriter, status, number int, text, appended string) {
	answer(w, status, []arError{{"ERROR", text, number, appended}})
}

func unauthenticated(w http.ResponseWriter, appended string) {
	refuseAR(w, http.StatusUnauthorized, 623, "Authentication failed", appended)
}

// malformed sends no number, because the product's is not documented.
func malformed(w http.ResponseWriter, appended string) {
	refuseAR(w, http.StatusBadRequest, 0, "Bad request", appended)
}

// login responds with the token as plain text.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	f, problem := form(r)
	switch {
	case problem != "":
		malformed(w, problem)
	case f.Get("username") != s.opts.Username || f.Get("password") != s.opts.Password:
		unauthenticated(w, f.Get("username"))
	default:
		jwt := s.issue(arJWT, &consent{user: s.opts.Username})
		s.count(func(n *Stats) { n.Exchanges++ })
		w.Header().Set("Content-Type", "text/plain;charset=UTF-8")
		io.WriteString(w, jwt)
	}
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	value, ok := s.bearer(r, "AR-JWT")
	if !ok {
		unauthenticated(w, "")
		return
	}
	s.Revoke(value)
	w.WriteHeader(http.StatusNoContent)
}

// bearer returns the token of r. ok reports whether it is valid and has one of the schemes.
func (s *Server) bearer(r *http.Request, schemes ...string) (value string, ok bool) {
	h := r.Header.Values("Authorization")
	if len(h) != 1 {
		return "", false
	}
	scheme, value, _ := strings.Cut(h[0], " ")
	kind := accessToken
	if strings.EqualFold(scheme, "AR-JWT") {
		kind = arJWT
	}
	known := slices.ContainsFunc(schemes, func(s string) bool { return strings.EqualFold(s, scheme) })
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[value]
	return value, known && t.validLocked() && t.kind == kind
}

func (s *Server) authenticated(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, ok := s.bearer(r, "Bearer", "AR-JWT"); !ok {
			s.count(func(n *Stats) { n.Rejected++ })
			unauthenticated(w, s.opts.Username)
			return
		}
		s.mu.Lock()
		busy := s.busy > 0
		if busy {
			s.busy--
		}
		s.mu.Unlock()
		switch {
		case busy:
			refuseAR(w, http.StatusInternalServerError, 9093,
				"User is currently connected from another machine or incompatible session", s.opts.Username)
		case r.PathValue("form") != incidents:
			refuseAR(w, http.StatusNotFound, 303, "Form does not exist on server", r.PathValue("form"))
		default:
			next(w, r)
		}
	}
}

// An entry of the form has values by field name.
type entry map[string]any

func (e entry) id() string { return e["Incident Number"].(string) }

func newEntry(n int, submitter string, values entry) entry {
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000-0700")
	e := entry{
		"Status": "New", "Impact": "4-Minor/Localized", "Urgency": "4-Low", "Assignee": nil,
		"Service Type": "User Service Restoration",
	}
	maps.Copy(e, values)
	maps.Copy(e, entry{
		"Incident Number": fmt.Sprintf("INC%012d", n),
		"Submitter":       submitter, "Submit Date": now, "Last Modified Date": now,
	})
	return e
}

func seed() []entry {
	return []entry{
		newEntry(1, "Allen", entry{"Description": "VPN drops every hour", "Status": "Assigned", "Assignee": "Mary Mann"}),
		newEntry(2, "Bob", entry{"Description": "Printer on floor 3 prints \"+ / = & %\"", "Urgency": "2-High"}),
		newEntry(3, "Allen", entry{"Description": "New laptop for Zoë", "Service Type": "User Service Request"}),
	}
}

type link struct {
	Href string `json:"href"`
}

type links map[string][]link

func self(r *http.Request, path ...string) links {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	u := &url.URL{Scheme: scheme, Host: r.Host, Path: "/api/arsys/v1/entry/" + strings.Join(path, "/")}
	return links{"self": {{u.String()}}}
}

type item struct {
	Values entry `json:"values"`
	Links  links `json:"_links"`
}

// chosen returns e with the fields of fields=values(A,B), or with all.
func (e entry) chosen(r *http.Request) item {
	values := maps.Clone(e)
	if list, ok := strings.CutPrefix(r.URL.Query().Get("fields"), "values("); ok {
		names := strings.Split(strings.TrimSuffix(list, ")"), ",")
		maps.DeleteFunc(values, func(name string, _ any) bool { return !slices.Contains(names, name) })
	}
	return item{values, self(r, incidents, e.id())}
}

// list accepts the parameters limit, offset and fields. The product accepts more.
func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	n := map[string]int{"offset": 0, "limit": 2000}
	for name := range q {
		if _, number := n[name]; number {
			v, err := strconv.ParseUint(q.Get(name), 10, 31)
			if err != nil {
				malformed(w, name+" is not a number")
				return
			}
			n[name] = int(v)
		} else if name != "fields" {
			malformed(w, "the emulator does not know the parameter "+name)
			return
		}
	}
	s.mu.Lock()
	items := []item{}
	for _, e := range s.entries[min(n["offset"], len(s.entries)):] {
		if len(items) < n["limit"] {
			items = append(items, e.chosen(r))
		}
	}
	s.mu.Unlock()
	answer(w, http.StatusOK, map[string]any{"entries": items, "_links": self(r, incidents)})
}

// findLocked returns the entry that r names, or nil.
func (s *Server) findLocked(r *http.Request) entry {
	for _, e := range s.entries {
		if e.id() == r.PathValue("id") {
			return e
		}
	}
	return nil
}

func missing(w http.ResponseWriter, r *http.Request) {
	refuseAR(w, http.StatusNotFound, 302, "Entry does not exist in database", r.PathValue("id"))
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	e := s.findLocked(r)
	var found item
	if e != nil {
		found = e.chosen(r)
	}
	s.mu.Unlock()
	if e == nil {
		missing(w, r)
		return
	}
	answer(w, http.StatusOK, found)
}

// readValues reads {"values": {...}}.
func readValues(w http.ResponseWriter, r *http.Request) (entry, bool) {
	var body struct{ Values entry }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body.Values) == 0 {
		malformed(w, `the body is not {"values": {...}}`)
		return nil, false
	}
	return body.Values, true
}

// create responds with the new entry's URL and no body.
func (s *Server) create(w http.ResponseWriter, r *http.Request) {
	values, ok := readValues(w, r)
	if !ok {
		return
	}
	if d, _ := values["Description"].(string); d == "" {
		refuseAR(w, http.StatusBadRequest, 307, "Required field (without a default) not specified", "Description")
		return
	}
	s.mu.Lock()
	e := newEntry(len(s.entries)+1, s.opts.Username, values)
	s.entries = append(s.entries, e)
	s.stats.Writes++
	location := self(r, incidents, e.id())["self"][0].Href
	s.mu.Unlock()
	w.Header().Set("Location", location)
	w.WriteHeader(http.StatusCreated)
}

func (s *Server) put(w http.ResponseWriter, r *http.Request) {
	values, ok := readValues(w, r)
	if !ok {
		return
	}
	s.mu.Lock()
	e := s.findLocked(r)
	if e != nil {
		values["Incident Number"] = e.id()
		maps.Copy(e, values)
		s.stats.Writes++
	}
	s.mu.Unlock()
	if e == nil {
		missing(w, r)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
