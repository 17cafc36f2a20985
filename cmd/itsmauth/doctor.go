package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/itsmauth/itsmauth/config"
)

// A finding is one line of the doctor's.
type finding struct {
	Check   string `json:"check"`
	Status  string `json:"status"` // ok, warning, failed or skipped
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

type diagnosis struct {
	Connector string    `json:"connector"`
	Provider  string    `json:"provider"`
	BaseURL   string    `json:"base_url"`
	Checks    []finding `json:"checks"`
}

// harmless are paths that change nothing and that any account may ask for, by provider.
var harmless = map[string]string{"beyondtrust": "/api/command?action=get_api_info"}

const (
	patience     = 15 * time.Second
	maxSkew      = 30 * time.Second
	soonCert     = 14 * 24 * time.Hour
	soonConsent  = 7 * 24 * time.Hour
	exchangeTime = 45 * time.Second // an exchange's own deadline, and a little
)

// counted counts what is sent over a connector's innermost RoundTripper: exchanges. The doctor itself
// goes around it.
type counted struct {
	http.RoundTripper
	n *atomic.Int64
}

func (c counted) RoundTrip(req *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.RoundTripper.RoundTrip(req)
}

// A patient is one connector while it is looked at.
type patient struct {
	*config.Connector
	*diagnosis
	app  *app
	wire http.RoundTripper

	exchanges *atomic.Int64 // of all connectors: those of one identity share theirs
	before    int64
	refusal   string // the stored token's, by the probe
	errs      *[]error
}

// online looks at each connector: its network, its token, its API. The error says how many checks
// failed, and is what the worst of them were.
func (a *app) online(ctx context.Context) error {
	wires := map[string]http.RoundTripper{}
	var exchanges atomic.Int64
	conns, err := a.load(ctx, config.WithWrap(func(connector string, next http.RoundTripper) http.RoundTripper {
		if wires[connector] == nil {
			wires[connector] = next
		}
		return counted{next, &exchanges}
	}))
	if err != nil {
		return err
	}
	var list []*diagnosis
	var errs []error
	total := 0
	for _, conn := range all(conns) {
		d := &diagnosis{conn.Name, conn.Provider, conn.BaseURL.String(), []finding{}}
		list = append(list, d)
		if isTerminal(a.stdout) && a.output != "json" {
			a.printf("%s %s %s\n", painter(a.stdout)(bold, conn.Name), d.Provider, d.BaseURL)
		}
		p := &patient{Connector: conn, diagnosis: d, app: a, wire: wires[conn.Name], exchanges: &exchanges, before: exchanges.Load(), errs: &errs}
		p.examine(ctx)
		total += len(d.Checks)
	}
	if err := a.finishing(ctx, conns.Close); err != nil {
		errs = append(errs, err)
	}
	if err = a.unwritten; a.output == "json" {
		err = a.json(list)
	}
	if len(errs) == 0 {
		return err
	}
	return reworded{errors.Join(append(errs, err)...), fmt.Sprintf("%d of %d checks failed", len(errs), total)}
}

// progress says what is being waited for, on a terminal and until there is a finding.
func (p *patient) progress(what string) {
	if redraws(p.app.stdout) && p.app.output != "json" {
		redraw(p.app.stdout, "  "+painter(p.app.stdout)(dim, "… "+what))
	}
}

var signs = map[string]struct {
	symbol string
	style  style
}{"ok": {"✓", green}, "warning": {"!", yellow}, "failed": {"✗", red}, "skipped": {"-", dim}}

func (p *patient) found(check, status, message, fix string) {
	p.Checks = append(p.Checks, finding{check, status, message, fix})
	out := p.app.stdout
	if p.app.output == "json" {
		return
	}
	if !isTerminal(out) {
		p.app.printf("%s: %s: %s: %s\n", p.Name, check, status, strings.Join(strings.Fields(message+strings.Repeat("; "+fix, min(1, len(fix)))), " "))
		return
	}
	s, paint := signs[status], painter(out)
	lines := wrap(message, width-18)
	if redraws(out) {
		redraw(out, "")
	}
	p.app.printf("  %s %-13s %s\n", paint(s.style, s.symbol), check, strings.Join(lines, "\n"+strings.Repeat(" ", 18)))
	if fix != "" {
		p.app.printf("%18s%s\n", "", paint(s.style, "→ "+strings.Join(wrap(fix, width-20), "\n"+strings.Repeat(" ", 20))))
	}
}

func (p *patient) ok(check, message string) { p.found(check, "ok", message, "") }

func (p *patient) failed(check, message, fix string, err error) {
	*p.errs = append(*p.errs, cmp.Or(err, errors.New(message)))
	p.found(check, "failed", message, fix)
}

func (p *patient) examine(ctx context.Context) {
	reached := true
	for _, u := range p.Endpoints() {
		reached = p.reach(ctx, u) && reached
	}
	if !reached {
		p.found("token", "skipped", "there is no way to the product yet", "")
		return
	}
	tok := p.token(ctx)
	if tok == nil {
		return
	}
	p.consent(ctx)
	path := cmp.Or(p.Probe, harmless[p.Connector.Provider])
	if path == "" {
		p.found("probe", "skipped", "no path to try", "set probe in the file to a harmless path of the API, such as /api/ping")
		return
	}
	p.probe(ctx, path, tok)
}
