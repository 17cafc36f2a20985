// Package otel makes OpenTelemetry metrics and traces of what itsmauth does:
//
//	obs, err := otel.New(nil) // nil: the global providers and propagator
//	if err != nil { ... }
//	conns, err := config.Load("itsmauth.yaml", config.WithObserver(obs), config.WithWrap(obs.Wrap))
//
// docs/monitoring.md lists the metrics and spans. Nothing in them is a secret or text of a server.
package otel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/itsmauth/itsmauth/auth"
)

// Options are the options of [New]. The zero value of each field is OpenTelemetry's global one.
type Options struct {
	MeterProvider  metric.MeterProvider
	TracerProvider trace.TracerProvider
	// Propagator adds the trace to the headers of calls and token requests, so products see it. Do not use
	// [propagation.Baggage] if your baggage is not for them.
	Propagator propagation.TextMapPropagator
}

// Observer is an [auth.Observer] for config.WithObserver. Its Wrap is for config.WithWrap.
type Observer struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator

	exchanges     metric.Int64Counter
	duration      metric.Float64Histogram
	retried       metric.Int64Counter
	limited       metric.Int64Counter
	tokenExpiry   metric.Float64Gauge
	consentExpiry metric.Float64Gauge
	storeUp       metric.Int64Gauge

	lost sync.Map // the connectors that need a login
}

const scope = "github.com/itsmauth/itsmauth/observe/otel"

// New makes an Observer. Its error is that of a MeterProvider that refuses an instrument.
func New(o *Options) (*Observer, error) {
	if o == nil {
		o = &Options{}
	}
	meter := cmp.Or(o.MeterProvider, otel.GetMeterProvider()).Meter(scope)
	obs := &Observer{
		tracer:     cmp.Or(o.TracerProvider, otel.GetTracerProvider()).Tracer(scope),
		propagator: cmp.Or(o.Propagator, otel.GetTextMapPropagator()),
	}
	var errs [7]error
	obs.exchanges, errs[0] = meter.Int64Counter("itsmauth_exchanges_total", metric.WithDescription("Exchanges, by their result."))
	obs.duration, errs[1] = meter.Float64Histogram("itsmauth_exchange_duration_seconds", metric.WithUnit("s"),
		metric.WithDescription("How long exchanges took, with their retries."),
		metric.WithExplicitBucketBoundaries(.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60))
	obs.retried, errs[2] = meter.Int64Counter("itsmauth_calls_retried_total", metric.WithDescription("Attempts that were followed by another: a retry, or a replay after a rejected token."))
	obs.limited, errs[3] = meter.Int64Counter("itsmauth_calls_limited_total", metric.WithDescription("Calls that waited for a rate limit or max_concurrency, or were refused because the wait would have been too long."))
	obs.tokenExpiry, errs[4] = meter.Float64Gauge("itsmauth_token_expiry_timestamp_seconds", metric.WithUnit("s"), metric.WithDescription("When the newest access token expires."))
	obs.consentExpiry, errs[5] = meter.Float64Gauge("itsmauth_consent_expiry_timestamp_seconds", metric.WithUnit("s"), metric.WithDescription("When somebody has to log in again, unless the login is renewed before."))
	obs.storeUp, errs[6] = meter.Int64Gauge("itsmauth_store_up", metric.WithDescription("1 unless the token store fails."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	obs.storeUp.Record(context.Background(), 1)
	return obs, nil
}

// Observe implements [auth.Observer].
func (o *Observer) Observe(ctx context.Context, e auth.Event) {
	attrs := []attribute.KeyValue{attribute.String("connector", e.Connector), attribute.String("provider", e.Provider)}
	with := func(more ...attribute.KeyValue) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(append(attrs, more...)...))
	}
	switch e.Kind {
	case auth.EventTokenObtained:
		if e.Op != "store" {
			o.exchange(ctx, e, "ok", with)
		}
		record(ctx, o.tokenExpiry, e.Expiry, with())
		if _, lost := o.lost.LoadAndDelete(e.Connector); lost && e.ConsentExpiry.IsZero() {
			o.consentExpiry.Record(ctx, math.Inf(1), with())
		}
		record(ctx, o.consentExpiry, e.ConsentExpiry, with())
	case auth.EventExchangeFailed:
		o.exchange(ctx, e, class(e.Err), with)
		if errors.Is(e.Err, auth.ErrConsentRequired) {
			o.lost.Store(e.Connector, true)
			record(ctx, o.consentExpiry, time.Now(), with())
		}
	case auth.EventConsentEnding:
		record(ctx, o.consentExpiry, e.Expiry, with())
	case auth.EventCallRetried:
		o.retried.Add(ctx, 1, with(attribute.String("op", e.Op)))
		o.note(ctx, e, attribute.Float64("wait_seconds", e.Wait.Seconds()))
	case auth.EventCallLimited:
		result := "waited"
		if e.Err != nil {
			result = "refused"
		}
		o.limited.Add(ctx, 1, with(attribute.String("result", result)))
		o.note(ctx, e, attribute.Float64("wait_seconds", e.Wait.Seconds()))
	case auth.EventStoreAway:
		o.storeUp.Record(ctx, 0)
	case auth.EventStoreBack:
		o.storeUp.Record(ctx, 1)
	}
}

func record(ctx context.Context, g metric.Float64Gauge, at time.Time, with metric.MeasurementOption) {
	if !at.IsZero() {
		g.Record(ctx, float64(at.UnixMilli())/1000, with)
	}
}

// exchange counts an exchange and makes its span, in the trace of the call that began it.
func (o *Observer) exchange(ctx context.Context, e auth.Event, result string, with func(...attribute.KeyValue) metric.MeasurementOption) {
	o.exchanges.Add(ctx, 1, with(attribute.String("result", result)))
	if e.Attempt == 0 {
		return // no token request was sent
	}
	o.duration.Record(ctx, e.Took.Seconds(), with())
	end := time.Now()
	_, span := o.tracer.Start(ctx, "itsmauth exchange", trace.WithTimestamp(end.Add(-e.Took)), trace.WithAttributes(
		attribute.String("itsmauth.connector", e.Connector), attribute.String("itsmauth.provider", e.Provider),
		attribute.String("itsmauth.result", result), attribute.Int("itsmauth.requests", e.Attempt)))
	if result != "ok" {
		span.SetAttributes(attribute.String("error.type", result))
		span.SetStatus(codes.Error, result)
	}
	span.End(trace.WithTimestamp(end))
}

// note adds e to the call's span.
func (o *Observer) note(ctx context.Context, e auth.Event, attrs ...attribute.KeyValue) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.AddEvent("itsmauth."+string(e.Kind), trace.WithAttributes(append(attrs,
			attribute.String("connector", e.Connector), attribute.String("op", e.Op), attribute.Int("status", e.Status), attribute.Int("attempt", e.Attempt))...))
	}
}

// class names what kind of failure err is, in the words of auth's errors.
func class(err error) string {
	for _, c := range classes {
		if errors.Is(err, c.is) {
			return c.name
		}
	}
	return "other"
}

var classes = []struct {
	is   error
	name string
}{
	{auth.ErrConsentRequired, "consent_required"}, {auth.ErrCredentials, "credentials_refused"}, {auth.ErrStore, "store"},
	{auth.ErrRateLimited, "rate_limited"}, {auth.ErrUnavailable, "unavailable"}, {auth.ErrProtocol, "protocol"},
	{auth.ErrInsecure, "insecure"}, {auth.ErrSecret, "secret"},
}

// Wrap makes a span for each attempt and each token request, by OpenTelemetry's conventions for HTTP clients, and
// adds the trace to the request's headers. The span ends with the response's headers. It shows the URL without its
// query, and of an error its type alone.
func (o *Observer) Wrap(connector string, next http.RoundTripper) http.RoundTripper {
	return &roundTripper{o, connector, next}
}

type roundTripper struct {
	*Observer
	connector string
	next      http.RoundTripper
}

func (t *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	method := cmp.Or(req.Method, http.MethodGet)
	ctx, span := t.tracer.Start(req.Context(), method, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("http.request.method", method), attribute.String("server.address", req.URL.Hostname()),
		attribute.Int("server.port", port(req.URL)), attribute.String("url.full", withoutQuery(req.URL)),
		attribute.String("itsmauth.connector", t.connector)))
	defer span.End()
	out := req.Clone(ctx)
	t.propagator.Inject(ctx, propagation.HeaderCarrier(out.Header))
	resp, err := t.next.RoundTrip(out)
	if err != nil {
		fail(span, errorType(err))
		return resp, err
	}
	span.SetAttributes(attribute.Int("http.response.status_code", resp.StatusCode))
	if resp.StatusCode >= 400 {
		fail(span, strconv.Itoa(resp.StatusCode))
	}
	return resp, nil
}

func fail(span trace.Span, errorType string) {
	span.SetAttributes(attribute.String("error.type", errorType))
	span.SetStatus(codes.Error, "")
}

// errorType never shows text of err, which may quote a server.
func errorType(err error) string {
	var t net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.As(err, &t) && t.Timeout():
		return "timeout"
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", err), "*")
}

func port(u *url.URL) int {
	if n, err := strconv.Atoi(u.Port()); err == nil {
		return n
	}
	if u.Scheme == "http" {
		return 80
	}
	return 443
}

func withoutQuery(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}
