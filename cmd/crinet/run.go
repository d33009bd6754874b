package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/crinet-project/crinet/cni/wire"
)

// defaultSocket is crinetd's socket with the default --run-dir.
const defaultSocket = "/run/crinet/cni.sock"

// run reads the call from the environment and stdin, prints a CNI result or a CNI
// error, and returns the exit code.
func run(getenv func(string) string, stdin io.Reader, stdout io.Writer) int {
	request := &wire.Request{
		Command:     getenv("CNI_COMMAND"),
		ContainerID: getenv("CNI_CONTAINERID"),
		NetNS:       getenv("CNI_NETNS"),
		IfName:      getenv("CNI_IFNAME"),
		Args:        getenv("CNI_ARGS"),
		Path:        getenv("CNI_PATH"),
		Inside:      getenv(wire.InsideVariable),
		TraceParent: getenv("TRACEPARENT"),
		TraceState:  getenv("TRACESTATE"),
	}
	cniVersion, result, err := answer(request, stdin)
	if err != nil {
		result = encodeError(cniVersion, err)
	}
	if _, writeErr := stdout.Write(result); writeErr != nil || err != nil {
		return 1 // if standard output is broken, the exit code is all that is left
	}
	return 0
}

// answer returns what to print, and the CNI version for an error. The result is
// empty if the spec prescribes no output. The error is a *wire.Error.
func answer(request *wire.Request, stdin io.Reader) (cniVersion string, result []byte, err error) {
	input, err := io.ReadAll(io.LimitReader(stdin, wire.MaxStdin+1))
	if err != nil {
		return "", nil, wire.Errorf(wire.CodeIO, "reading the network configuration from standard input: %v", err)
	}
	if len(input) > wire.MaxStdin {
		return "", nil, wire.Errorf(wire.CodeInvalidConfig, "the network configuration on standard input has more than %d bytes", wire.MaxStdin)
	}
	if request.Command == wire.CommandVersion {
		return versions(input)
	}
	if err := request.CheckEnvironment(); err != nil {
		return "", nil, err
	}
	conf, err := wire.DecodeConf(request.Command, input)
	if err != nil {
		return conf.CNIVersion, nil, err
	}
	if conf.Socket == "" {
		conf.Socket = defaultSocket
	}
	request.Stdin = input
	reply, err := exchange(conf.Socket, request)
	if err != nil {
		return conf.CNIVersion, nil, unavailable(request.Command, err)
	}
	if reply.Error != nil {
		return conf.CNIVersion, nil, reply.Error
	}
	return conf.CNIVersion, reply.Result, nil
}

// exchange sends the call and waits for the reply. It has no time limit: a runtime
// that gives up kills this process, and crinetd sees that.
func exchange(socket string, request *wire.Request) (*wire.Reply, error) {
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // the reply has been read, or the error is known
	writeErr := wire.WriteRequest(conn, request)
	// A daemon that refuses may answer before it has read the whole request.
	reply, err := wire.ReadReply(conn)
	if err != nil {
		return nil, fmt.Errorf("crinetd at %s: %w", socket, errors.Join(writeErr, err))
	}
	return reply, nil
}

// unavailable returns the error for a crinetd that does not answer, with the code
// that the spec has for the command. Running pods keep their network.
func unavailable(command string, err error) *wire.Error {
	code := wire.CodeTryAgainLater
	if command == wire.CommandStatus {
		code = wire.CodeNotAvailable
	}
	return &wire.Error{Code: code, Msg: "crinetd does not answer, it may be down or restarting", Details: err.Error()}
}

// versions answers VERSION (CNI spec, section 5, "Version"). Old runtimes send no
// input with it.
func versions(input []byte) (cniVersion string, result []byte, err error) {
	var conf wire.Conf
	if input = bytes.TrimSpace(input); len(input) > 0 {
		if err := json.Unmarshal(input, &conf); err != nil {
			return "", nil, wire.Errorf(wire.CodeDecode, "VERSION: standard input is not a JSON object with a cniVersion: %v", err)
		}
	}
	supported := wire.SupportedVersions()
	if conf.CNIVersion == "" {
		conf.CNIVersion = supported[len(supported)-1]
	}
	result, err = json.Marshal(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{conf.CNIVersion, supported})
	if err != nil {
		return "", nil, wire.Errorf(wire.CodeInternal, "VERSION: encoding the answer: %v", err)
	}
	return conf.CNIVersion, result, nil
}

// encodeError encodes err as the spec's error result.
func encodeError(cniVersion string, err error) []byte {
	if cniVersion == "" {
		supported := wire.SupportedVersions()
		cniVersion = supported[len(supported)-1]
	}
	var e *wire.Error
	if !errors.As(err, &e) {
		e = &wire.Error{Code: wire.CodeInternal, Msg: err.Error()}
	}
	printed := *e
	printed.CNIVersion = cniVersion
	out, err := json.Marshal(printed)
	if err != nil { // cannot happen: strings and a number
		return []byte(`{"code":999,"msg":"encoding the error"}`)
	}
	return out
}
