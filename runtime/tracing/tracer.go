package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// scope names what makes the spans.
const scope = "github.com/crinet-project/crinet"

// serviceName is OTEL_SERVICE_NAME's default.
const serviceName = "crinetd"

// maxMessage bounds an error's text in a span, in bytes.
const maxMessage = 1024

// Tracer makes the spans. A nil Tracer makes none. Its methods are safe for concurrent
// use.
type Tracer struct {
	tracer     trace.Tracer
	provider   *sdktrace.TracerProvider
	propagator propagation.TraceContext

	mu     sync.Mutex
	ending map[string]*ending // sandbox -> the call under way that ends it; guarded by mu
	making map[string]int     // pod's UID -> its calls under way that make it; guarded by mu
}

// ending is a call that ends a sandbox. Spans themselves cannot be compared.
type ending struct{ span trace.Span }

// Wanted says whether the environment asks for traces, or what of it crinetd cannot do.
func Wanted() (bool, error) {
	first := func(names ...string) string {
		for _, name := range names {
			if value := os.Getenv(name); value != "" {
				return value
			}
		}
		return ""
	}
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	if first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") == "" {
		return false, nil
	}
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "", "otlp":
	case "none":
		return false, nil
	default:
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER=%q: crinetd has otlp and none", exporter)
	}
	if protocol := first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); protocol != "" && protocol != "grpc" {
		return false, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%q: crinetd speaks grpc", protocol)
	}
	return true, nil
}

// New returns a Tracer as the environment configures it, nil if it asks for none.
// It does not wait for the receiver. An environment that crinetd cannot follow is
// logged: pods do not depend on it.
func New(ctx context.Context, version string, log *slog.Logger) *Tracer {
	wanted, err := Wanted()
	var exporter sdktrace.SpanExporter
	if wanted && err == nil {
		exporter, err = otlptracegrpc.New(ctx)
	}
	if err != nil {
		log.Error("crinetd makes no traces", "err", err)
	}
	if !wanted || err != nil {
		return nil
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", serviceName), attribute.String("service.version", version)),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		log.Warn("traces do not say all that the environment has them say of crinetd", "err", err)
	}
	t := newTracer(sdktrace.NewTracerProvider(
		sdktrace.WithResource(about),
		sdktrace.WithBatcher(&exporting{SpanExporter: exporter, log: log}),
	))
	log.Info("crinetd makes traces")
	return t
}

func newTracer(provider *sdktrace.TracerProvider) *Tracer {
	return &Tracer{
		tracer: provider.Tracer(scope), provider: provider,
		ending: make(map[string]*ending), making: make(map[string]int),
	}
}

// Close sends what is still queued, for at most that time.
func (t *Tracer) Close(ctx context.Context, most time.Duration) error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("send the last traces: %w", err)
	}
	return nil
}

// exporting logs an exporter's failure once, until it works again. The SDK would
// log each, by a logger of its own.
type exporting struct {
	sdktrace.SpanExporter
	log *slog.Logger

	failing bool // the SDK exports one batch at a time
}

// ExportSpans is sdktrace.SpanExporter's.
func (e *exporting) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil && !e.failing:
		e.log.Warn("traces cannot be sent, and are dropped until they can", "err", err)
	case err == nil && e.failing:
		e.log.Info("traces are sent again")
	}
	e.failing = err != nil
	return nil
}

// start begins a span.
func (t *Tracer) start(ctx context.Context, name string, kind trace.SpanKind, attributes ...attribute.KeyValue) (context.Context, trace.Span) {
	return t.tracer.Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attributes...))
}

// end ends a span with an outcome.
func end(span trace.Span, err error) {
	if err != nil {
		text := err.Error()
		span.SetStatus(codes.Error, strings.ToValidUTF8(text[:min(len(text), maxMessage)], ""))
	}
	span.End()
}
