package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/itsmauth/itsmauth/config"
)

// A finding is the result of one check.
type finding struct {
	Check   string `json:"check"`
	Status  string `json:"status"` // ok, warning, failed or skipped
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

type connectorReport struct {
	Connector string    `json:"connector"`
	Provider  string    `json:"provider"`
	BaseURL   string    `json:"base_url"`
	Checks    []finding `json:"checks"`
}

// defaultProbes are paths that any account may read, by provider.
var defaultProbes = map[string]string{"beyondtrust": "/api/command?action=get_api_info"}

const (
	checkUserAgent = "itsmauth-check"
	requestTimeout = 15 * time.Second
	tokenTimeout   = 45 * time.Second // an exchange's own 30 s, and some
	maxSkew        = 30 * time.Second
	certWarning    = 14 * 24 * time.Hour
	consentWarning = 7 * 24 * time.Hour
)

// An onlineCheck tests one connector.
type onlineCheck struct {
	*config.Connector
	connectorReport
	app       *app
	storeType string
	transport http.RoundTripper // without retries and token
	started   time.Time
	static    bool   // there is no token
	newToken  bool   // the token is not the stored one
	refusal   string // the response with which the product refused the stored token
	errs      []error
}

// checkOnline tests each connector. The error says how many checks failed, and wraps their errors.
func (a *app) checkOnline(ctx context.Context) error {
	return a.withConnectors(ctx, func(conns *config.Connectors) error {
		var reports []connectorReport
		var errs []error
		total := 0
		for _, conn := range all(conns) {
			c := &onlineCheck{Connector: conn, app: a, storeType: conns.Store(), static: conn.Session().StaticCredentials() != nil, transport: a.network.transports[conn.Name], started: time.Now(),
				connectorReport: connectorReport{conn.Name, conn.Provider, conn.BaseURL.String(), []finding{}}}
			if isTerminal(a.stdout) && a.output != "json" {
				a.printf("%s %s %s\n", painter(a.stdout)(bold, conn.Name), conn.Provider, conn.BaseURL)
			}
			c.run(ctx)
			reports, errs, total = append(reports, c.connectorReport), append(errs, c.errs...), total+len(c.Checks)
		}
		err := a.printErr
		if a.output == "json" {
			err = a.json(reports)
		}
		if len(errs) == 0 {
			return err
		}
		return reworded{errors.Join(append(errs, err)...), fmt.Sprintf("%d of %d checks failed", len(errs), total)}
	})
}

func (c *onlineCheck) run(ctx context.Context) {
	reached := true
	for _, u := range c.Endpoints() {
		reached = c.checkNetwork(ctx, u) && reached
	}
	if !reached {
		c.found("token", "skipped", "the product cannot be reached", "")
		return
	}
	c.checkStore(ctx)
	tok := c.checkToken(ctx)
	if tok == nil {
		return
	}
	c.checkConsent(ctx)
	path := cmp.Or(c.Probe, defaultProbes[c.Connector.Provider])
	if path == "" {
		c.found("probe", "skipped", "no path to request", "set probe in the file to a harmless path of the API, such as /api/ping")
		return
	}
	c.checkProbe(ctx, path, tok)
}

// progress shows on a terminal what is waited for, until the next finding.
func (c *onlineCheck) progress(what string) {
	if canRedraw(c.app.stdout) && c.app.output != "json" {
		redraw(c.app.stdout, "  "+painter(c.app.stdout)(dim, "… "+what))
	}
}

var signs = map[string]struct {
	symbol string
	style  style
}{"ok": {"✓", green}, "warning": {"!", yellow}, "failed": {"✗", red}, "skipped": {"-", dim}}

// found adds a finding to the report and, unless that is JSON, prints it.
func (c *onlineCheck) found(check, status, message, fix string) {
	message, fix = strings.Map(withoutControls, message), strings.Map(withoutControls, fix)
	c.Checks = append(c.Checks, finding{check, status, message, fix})
	out := c.app.stdout
	if c.app.output == "json" {
		return
	}
	if !isTerminal(out) {
		if fix != "" {
			message += "; " + fix
		}
		c.app.printf("%s: %s: %s: %s\n", c.Name, check, status, strings.Join(strings.Fields(message), " "))
		return
	}
	if canRedraw(out) {
		redraw(out, "")
	}
	const indent = 18
	s, paint := signs[status], painter(out)
	lines := wrap(message, width-indent)
	c.app.printf("  %s %-13s %s\n", paint(s.style, s.symbol), check, strings.Join(lines, "\n"+strings.Repeat(" ", indent)))
	if fix != "" {
		lines = wrap(fix, width-indent-2)
		c.app.printf("%*s%s\n", indent, "", paint(s.style, "→ "+strings.Join(lines, "\n"+strings.Repeat(" ", indent+2))))
	}
}

// withoutControls is for text that may contain what a server sent, such as its description of an error. Marks
// that reorder text are removed too.
func withoutControls(r rune) rune {
	if !unicode.IsPrint(r) {
		return ' '
	}
	return r
}

func (c *onlineCheck) ok(check, message string) { c.found(check, "ok", message, "") }

func (c *onlineCheck) failed(check, message, fix string, err error) {
	c.errs = append(c.errs, cmp.Or(err, errors.New(message)))
	c.found(check, "failed", message, fix)
}
