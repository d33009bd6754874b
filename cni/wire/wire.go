// Package wire holds what the CNI plugin crinet (the shim) and the daemon
// crinetd say to each other over cni.sock, the rules of the CNI specification
// that both ends enforce, and the CNI error. It uses the standard library alone
// and not much of it, since every pod pays for the shim's start-up time.
//
// One connection carries one exchange: the plugin writes one [Request], the
// daemon answers with one [Reply]. Each is JSON behind its length in four
// bytes, big endian. The plugin keeps the connection open while it waits and
// sends nothing more: when it is killed, the daemon sees the connection end.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Version is the version of this protocol. Both ends ignore fields that they do
// not know, so that a field can be added without a new version; a change that an
// earlier release would misread needs one. A plugin of another version is told
// so.
const Version = 1

// InsideVariable is the environment variable by which crinetd marks the plugins
// that it runs, and what these execute.
const InsideVariable = "CRINETD_STATE"

// Limits in bytes.
const (
	MaxStdin  = 1 << 20 // network configuration that the runtime gives
	MaxResult = 4 << 20 // result that the runtime gets

	// maxTrace is more than a trace context has. A longer one is not sent.
	maxTrace = 4096

	// JSON carries bytes as base64, and the environment besides.
	maxRequest = MaxStdin*4/3 + 256<<10
	maxReply   = MaxResult*4/3 + 256<<10
)

// ErrVersion is in the error of a read if the other end speaks another version
// of this protocol.
var ErrVersion = errors.New("crinet and crinetd are of different releases")

// Request is what the runtime gave to the plugin: the CNI_* environment
// variables and standard input (CNI spec, section 2, "Parameters").
type Request struct {
	Version     int    `json:"version"`
	Command     string `json:"command"`
	ContainerID string `json:"containerID,omitempty"`
	NetNS       string `json:"netns,omitempty"`
	IfName      string `json:"ifname,omitempty"`
	Args        string `json:"args,omitempty"`
	Path        string `json:"path,omitempty"`
	// Inside is the value of [InsideVariable]: empty, unless the plugin was
	// executed by a plugin that a crinetd runs. Plugins from before this field
	// do not send it.
	Inside string `json:"inside,omitempty"`
	// TraceParent and TraceState are the caller's trace context (W3C), from the
	// environment variables TRACEPARENT and TRACESTATE; mostly empty. Plugins from
	// before these fields do not send them, and daemons ignore them.
	TraceParent string `json:"traceparent,omitempty"`
	TraceState  string `json:"tracestate,omitempty"`
	Stdin       []byte `json:"stdin,omitempty"`
}

// Reply tells the plugin what to do: print Result and succeed, or print Error
// and fail.
type Reply struct {
	Version int    `json:"version"`
	Result  []byte `json:"result,omitempty"`
	Error   *Error `json:"error,omitempty"`
}

// WriteRequest sends r as this version.
func WriteRequest(w io.Writer, r *Request) error {
	if len(r.Stdin) > MaxStdin {
		return fmt.Errorf("sending the request: the network configuration has %d bytes, %d is the limit", len(r.Stdin), MaxStdin)
	}
	stamped := *r
	stamped.Version = Version
	if len(r.TraceParent)+len(r.TraceState) > maxTrace {
		stamped.TraceParent, stamped.TraceState = "", ""
	}
	return writeFrame(w, "request", &stamped, maxRequest)
}

// ReadRequest receives a request. Its error is ErrVersion if the request could
// be decoded but has another version.
func ReadRequest(r io.Reader) (*Request, error) {
	var request Request
	if err := readFrame(r, "request", &request, maxRequest); err != nil {
		return nil, err
	}
	if request.Version != Version {
		return nil, fmt.Errorf("receiving the request: %w: the plugin speaks protocol %d, the daemon %d", ErrVersion, request.Version, Version)
	}
	if len(request.Stdin) > MaxStdin {
		return nil, fmt.Errorf("receiving the request: the network configuration has %d bytes, %d is the limit", len(request.Stdin), MaxStdin)
	}
	return &request, nil
}

// WriteReply sends r as this version.
func WriteReply(w io.Writer, r *Reply) error {
	if len(r.Result) > MaxResult {
		return fmt.Errorf("sending the reply: the result has %d bytes, %d is the limit", len(r.Result), MaxResult)
	}
	stamped := *r
	stamped.Version = Version
	return writeFrame(w, "reply", &stamped, maxReply)
}

// ReadReply receives a reply. One with an Error is accepted in any version, so
// that a daemon can refuse a plugin of another version.
func ReadReply(r io.Reader) (*Reply, error) {
	var reply Reply
	if err := readFrame(r, "reply", &reply, maxReply); err != nil {
		return nil, err
	}
	if reply.Version != Version && reply.Error == nil {
		return nil, fmt.Errorf("receiving the reply: %w: the plugin speaks protocol %d, the daemon %d", ErrVersion, Version, reply.Version)
	}
	return &reply, nil
}

func writeFrame(w io.Writer, what string, v any, limit int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding the %s: %w", what, err)
	}
	if len(body) > limit {
		return fmt.Errorf("sending the %s: it has %d bytes, %d is the limit", what, len(body), limit)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	if _, err := w.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("sending the %s: %w", what, err)
	}
	return nil
}

func readFrame(r io.Reader, what string, v any, limit int) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("receiving the %s: %w", what, err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if int64(size) > int64(limit) {
		return fmt.Errorf("receiving the %s: it announces %d bytes, %d is the limit", what, size, limit)
	}
	// The buffer grows with what arrives, not with what is announced.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(size)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("receiving the %s: %w", what, err)
	}
	if err := json.Unmarshal(body.Bytes(), v); err != nil {
		return fmt.Errorf("decoding the %s: %w", what, err)
	}
	return nil
}
