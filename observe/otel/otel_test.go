package otel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	promclient "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/observe/otel"
	"github.com/itsmauth/itsmauth/providers/beyondtrust/beyondtrusttest"
)

// service is what a service has: metrics to be scraped, and spans.
type service struct {
	*otel.Observer
	registry *promclient.Registry
	spans    *tracetest.SpanRecorder
	tracer   trace.Tracer
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{registry: promclient.NewRegistry(), spans: tracetest.NewSpanRecorder()}
	exporter, err := prometheus.New(prometheus.WithRegisterer(s.registry))
	if err != nil {
		t.Fatal(err)
	}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(s.spans))
	s.tracer = tracers.Tracer("service")
	s.Observer, err = otel.New(&otel.Options{MeterProvider: metric.NewMeterProvider(metric.WithReader(exporter)), TracerProvider: tracers, Propagator: propagation.TraceContext{}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// scrape returns the samples, without the labels of the scope.
func (s *service) scrape() string {
	w := httptest.NewRecorder()
	promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return strings.ReplaceAll(regexp.MustCompile(`,?otel_scope_\w+="[^"]*"`).ReplaceAllString(w.Body.String(), ""), "{}", "")
}

// events is one event of each kind that changes a metric.
func events(now time.Time) []auth.Event {
	event := func(kind auth.EventKind, f func(*auth.Event)) auth.Event {
		e := auth.Event{Kind: kind, Connector: "desk", Provider: "remedy"}
		f(&e)
		return e
	}
	return []auth.Event{
		event(auth.EventTokenObtained, func(e *auth.Event) {
			e.Op, e.Attempt, e.Took, e.Expiry, e.ConsentExpiry = "exchange", 2, 200*time.Millisecond, now.Add(time.Hour), now.Add(24*time.Hour)
		}),
		event(auth.EventTokenObtained, func(e *auth.Event) { e.Op, e.Expiry = "store", now.Add(2*time.Hour) }),
		event(auth.EventExchangeFailed, func(e *auth.Event) {
			e.Op, e.Attempt, e.Took, e.Err = "exchange", 1, time.Second, &auth.Error{Err: auth.ErrUnavailable}
		}),
		event(auth.EventExchangeFailed, func(e *auth.Event) { e.Op, e.Err = "store", &auth.Error{Err: auth.ErrStore} }),
		event(auth.EventTokenRejected, func(e *auth.Event) { e.Status = 401 }),
		event(auth.EventCallRetried, func(e *auth.Event) { e.Op, e.Attempt, e.Status, e.Wait = "retry", 1, 503, time.Second }),
		event(auth.EventCallRetried, func(e *auth.Event) { e.Op, e.Attempt, e.Status = "replay", 1, 401 }),
		event(auth.EventCallLimited, func(e *auth.Event) { e.Wait = time.Second }),
		event(auth.EventCallLimited, func(e *auth.Event) { e.Err = auth.ErrRateLimited }),
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	s, now := newService(t), time.Unix(1800000000, 0)
	for _, e := range events(now) {
		s.Observe(t.Context(), e)
	}
	check := func(want ...string) {
		t.Helper()
		got := s.scrape()
		for _, line := range want {
			if !strings.Contains(got, line+"\n") {
				t.Errorf("%s is missing in\n%s", line, got)
			}
		}
	}
	const id = `connector="desk",provider="remedy"`
	check(
		`itsmauth_exchanges_total{`+id+`,result="ok"} 1`, `itsmauth_exchanges_total{`+id+`,result="unavailable"} 1`, `itsmauth_exchanges_total{`+id+`,result="store"} 1`,
		`itsmauth_exchange_duration_seconds_count{`+id+`} 2`, `itsmauth_exchange_duration_seconds_sum{`+id+`} 1.2`, `itsmauth_exchange_duration_seconds_bucket{`+id+`,le="0.25"} 1`,
		`itsmauth_calls_retried_total{`+`connector="desk",op="retry",provider="remedy"} 1`, `itsmauth_calls_retried_total{connector="desk",op="replay",provider="remedy"} 1`,
		`itsmauth_calls_limited_total{`+id+`,result="waited"} 1`, `itsmauth_calls_limited_total{`+id+`,result="refused"} 1`,
		`itsmauth_token_expiry_timestamp_seconds{`+id+`} 1.8000072e+09`, `itsmauth_consent_expiry_timestamp_seconds{`+id+`} 1.8000864e+09`, `itsmauth_store_up 1`,
	)
	s.Observe(t.Context(), auth.Event{Kind: auth.EventStoreAway})
	s.Observe(t.Context(), auth.Event{Kind: auth.EventConsentEnding, Connector: "desk", Provider: "remedy", Expiry: now})
	check(`itsmauth_store_up 0`, `itsmauth_consent_expiry_timestamp_seconds{`+id+`} 1.8e+09`)
	s.Observe(t.Context(), auth.Event{Kind: auth.EventStoreBack})
	s.Observe(t.Context(), auth.Event{Kind: auth.EventExchangeFailed, Connector: "desk", Provider: "remedy", Err: auth.ErrConsentRequired})
	check(`itsmauth_store_up 1`)
	if strings.Contains(s.scrape(), `itsmauth_consent_expiry_timestamp_seconds{`+id+`} 1.8`) {
		t.Error("a refused refresh token still counts as a login")
	}
	s.Observe(t.Context(), auth.Event{Kind: auth.EventTokenObtained, Op: "login", Connector: "desk", Provider: "remedy"})
	check(`itsmauth_consent_expiry_timestamp_seconds{` + id + `} +Inf`)
}

// TestOperations checks that the dashboard and the rules name only metrics and labels that are emitted, and all of
// the metrics.
func TestOperations(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, e := range events(time.Now()) {
		s.Observe(t.Context(), e)
	}
	emitted := map[string][]string{} // labels by metric
	for line := range strings.Lines(s.scrape()) {
		m := regexp.MustCompile(`^(itsmauth_\w+?)(?:_bucket|_sum|_count)?(?:{(.*)})? `).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[2], -1) {
			emitted[m[1]] = append(emitted[m[1]], l[1])
		}
		emitted[m[1]] = append(emitted[m[1]], "")
	}
	if len(emitted) != 7 {
		t.Fatalf("%d metrics: %v", len(emitted), emitted)
	}
	for _, name := range []string{"dashboard.json", "rules.yaml", "../monitoring.md"} {
		file, err := os.ReadFile("../../docs/operations/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(file), `\"`, `"`)
		named := map[string]bool{}
		for _, m := range regexp.MustCompile(`\b(itsmauth_[a-z_]+?)(?:_bucket|_sum|_count)?(?:{([^}]*)})?(?:[^a-z_{]|$)`).FindAllStringSubmatch(text, -1) {
			named[m[1]] = true
			if emitted[m[1]] == nil {
				t.Errorf("%s: %s is not emitted", name, m[1])
			}
			for _, l := range regexp.MustCompile(`(\w+)[!=]?[~=]`).FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(emitted[m[1]], l[1]) {
					t.Errorf("%s: %s has no label %s", name, m[1], l[1])
				}
			}
		}
		for _, m := range regexp.MustCompile(`\bby ?\(([^)]*)\)`).FindAllStringSubmatch(text, -1) {
			for label := range strings.SplitSeq(m[1], ",") {
				if label = strings.TrimSpace(label); !slices.Contains([]string{"connector", "provider", "result", "op", "le", "instance"}, label) {
					t.Errorf("%s: no metric has a label %s", name, label)
				}
			}
		}
		for metric := range emitted {
			if !named[metric] {
				t.Errorf("%s does not show %s", name, metric)
			}
		}
	}
}

// TestThroughConfig runs a connector against an emulator, whose API refuses a token and breaks once.
func TestThroughConfig(t *testing.T) {
	t.Parallel()
	product := beyondtrusttest.NewServer(&beyondtrusttest.Options{PerSecond: -1, PerHour: -1})
	defer product.Close()
	var calls, untraced atomic.Int64
	product.Break(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Traceparent") == "" {
			untraced.Add(1)
		}
		if r.Method == "GET" && calls.Add(1) == 3 {
			w.WriteHeader(503)
			return true
		}
		return false
	})
	s := newService(t)
	conns, err := config.Parse("t.yaml", fmt.Appendf(nil, `version: 1
connectors:
  desk:
    provider: beyondtrust
    base_url: %s
    client_id: %s
    client_secret: %s
    transport: {retry: {min_backoff: 1ms}}
`, product.URL, beyondtrusttest.DefaultClientID, beyondtrusttest.DefaultClientSecret), config.WithObserver(s), config.WithWrap(s.Wrap))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	desk, err := conns.Get("desk")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		ctx, span := s.tracer.Start(t.Context(), fmt.Sprint("call ", i))
		req, err := desk.NewRequest(ctx, "GET", "/api/command?action=get_api_info", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := desk.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		span.End()
		product.RevokeAll()
	}
	conns.Close()
	if calls.Load() != 4 || untraced.Load() != 0 {
		t.Errorf("%d calls, %d requests without a trace", calls.Load(), untraced.Load())
	}

	roots := map[trace.SpanID]string{}
	for _, span := range s.spans.Ended() {
		if strings.HasPrefix(span.Name(), "call") {
			roots[span.SpanContext().SpanID()] = span.Name()
		}
	}
	var got []string
	for _, span := range s.spans.Ended() {
		text := roots[span.Parent().SpanID()] + " > " + span.Name()
		for _, a := range span.Attributes() {
			if strings.Contains(fmt.Sprint(a.Value.AsInterface()), "get_api_info") {
				t.Errorf("a span shows the query: %v", a)
			}
			switch a.Key {
			case "http.response.status_code", "itsmauth.result", "error.type":
				text += fmt.Sprint(" ", a.Value.AsInterface())
			case "itsmauth.connector":
				if a.Value.AsString() != "desk" {
					t.Error(a)
				}
			}
		}
		for _, e := range span.Events() {
			text += " " + e.Name
		}
		got = append(got, text)
	}
	slices.Sort(got)
	want := []string{
		" > call 0", " > call 1 itsmauth.call_retried itsmauth.call_retried",
		"call 0 > GET 200", "call 0 > POST 200", "call 0 > itsmauth exchange ok",
		"call 1 > GET 200", "call 1 > GET 401 401", "call 1 > GET 503 503", "call 1 > POST 200", "call 1 > itsmauth exchange ok",
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("spans\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := s.scrape(); !strings.Contains(got, `itsmauth_exchanges_total{connector="desk",provider="beyondtrust",result="ok"} 2`) {
		t.Error(got)
	}
}

type failing struct{ error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.error }

// A span shows the type of an error and nothing of its text.
func TestErrors(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, tt := range []struct {
		err  error
		want string
	}{{errors.New("canary"), "errors.errorString"}, {context.DeadlineExceeded, "timeout"}, {fmt.Errorf("canary: %w", context.Canceled), "canceled"}} {
		req := httptest.NewRequest("GET", "http://u:canary@127.0.0.1/x?canary", nil)
		if _, err := s.Wrap("desk", failing{tt.err}).RoundTrip(req); err != tt.err {
			t.Error(err)
		}
		all := s.spans.Ended()
		span := all[len(all)-1]
		if text := fmt.Sprint(span.Name(), span.Attributes(), span.Status(), span.Events()); strings.Contains(text, "canary") ||
			!slices.Contains(span.Attributes(), attribute.String("error.type", tt.want)) || !slices.Contains(span.Attributes(), attribute.Int("server.port", 80)) {
			t.Error(text)
		}
		if req.Header.Get("Traceparent") != "" {
			t.Error("the caller's request was changed")
		}
	}
}
