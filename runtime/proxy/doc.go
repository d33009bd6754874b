// Package proxy passes CRI calls between the kubelet and the container runtime
// as raw gRPC frames, and lets named unary methods be taken over by hooks.
//
// Nothing that is not hooked is decoded: services, methods, fields and streams
// that do not exist yet pass as well as those of today. Metadata, headers,
// trailers, deadlines, cancellation, half-closes and status codes with their
// details pass both ways unchanged. Only what HTTP/2 defines per hop differs:
// the user agent, the authority and the compression. Messages may have up to
// [MaxMessageSize] bytes.
//
// A [Proxy] connects to its upstream sockets with the first call, and again after
// a connection is lost. While a socket does not answer, calls to it fail at once
// with codes.Unavailable. When it is back, calls work again without a restart.
//
// A Proxy lives from [New] to [Proxy.Close]. It serves one listener once:
// after [Proxy.Serve] returned it cannot serve again, but its upstream
// connections are good until Close.
package proxy
