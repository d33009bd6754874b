// Package tracing makes OpenTelemetry traces of what crinetd does for a sandbox:
// RunPodSandbox, its four steps, each run of a plugin, StopPodSandbox and
// RemovePodSandbox.
//
// It is configured by OpenTelemetry's standard environment variables alone. Without an
// endpoint in them there is no [Tracer]: nothing is wrapped, no span is made, and the
// caller's trace context passes to the runtime as it came.
//
// The caller's trace context (W3C, traceparent and tracestate) comes in the metadata of
// the CRI call. The runtime gets that of crinetd's span in its place, so that the
// runtime's spans hang below. Plugins get it as TRACEPARENT and TRACESTATE in their
// environment. The runtime's ADD and DEL mostly come back without one: ADD finds its
// RunPodSandbox by the engine's flight, DEL its StopPodSandbox by the sandbox's id. A
// runtime that traces itself passes TRACEPARENT on to its CNI plugin; then they hang
// below the runtime's own span in the same trace.
//
// Spans wait in a queue that drops what it cannot hold. An exporter that fails is
// logged once, and never seen by a pod.
//
// Sources: OpenTelemetry's environment variable specification 1.x, W3C Trace Context,
// OpenTelemetry's proposal for environment variables as carriers (TRACEPARENT).
package tracing
