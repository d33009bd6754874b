package cnihook

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
)

const (
	maxArgs      = 64        // pairs in CNI_ARGS
	maxArgsBytes = 16 << 10  // of CNI_ARGS
	maxPathBytes = 128 << 10 // of CNI_PATH: MAX_ARG_STRLEN of the kernel
)

// call is one checked call of the runtime. ContainerID and IfName are empty for
// GC and STATUS.
type call struct {
	engine.Call
	// cniVersion is the version that the runtime asks for and gets.
	cniVersion string
	// config is the network configuration: all that came on standard input.
	config []byte
}

// subject names what a call is about in messages; empty if nothing is known.
func (c *call) subject() string {
	switch {
	case c.Pod.Namespace != "" || c.Pod.Name != "":
		return "pod " + c.Pod.String()
	case c.ContainerID != "":
		return "sandbox " + c.ContainerID
	default:
		return ""
	}
}

// newCall checks a request. Its error is a *wire.Error; the call then holds what
// could be read.
func newCall(request *wire.Request) (*call, error) {
	call := &call{config: request.Stdin}
	args, pod, argsErr := parseArgs(request.Args)
	call.Args, call.Pod = args, pod // first, so that errors can name the pod
	conf, confErr := wire.DecodeConf(request.Command, request.Stdin)
	call.cniVersion = conf.CNIVersion
	if err := request.CheckEnvironment(); err != nil {
		return call, err
	}
	if request.Command != wire.CommandGC && request.Command != wire.CommandStatus {
		call.ContainerID, call.NetNS, call.IfName = request.ContainerID, request.NetNS, request.IfName
	}
	if argsErr != nil {
		return call, argsErr
	}
	if len(request.Path) > maxPathBytes {
		return call, wire.Errorf(wire.CodeInvalidEnvironment, "CNI_PATH has %d bytes, %d is the limit", len(request.Path), maxPathBytes)
	}
	if confErr != nil {
		return call, confErr
	}
	var rest struct {
		RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(request.Stdin, &rest); err != nil {
		return call, wire.Errorf(wire.CodeDecode, "network configuration: %v", err)
	}
	call.RuntimeConfig = rest.RuntimeConfig
	return call, nil
}

// parseArgs reads CNI_ARGS: pairs KEY=VALUE separated by semicolons.
func parseArgs(text string) ([][2]string, journal.Pod, error) {
	var pod journal.Pod
	if text == "" {
		return nil, pod, nil
	}
	if len(text) > maxArgsBytes {
		return nil, pod, wire.Errorf(wire.CodeInvalidEnvironment, "CNI_ARGS has %d bytes, %d is the limit", len(text), maxArgsBytes)
	}
	pairs := strings.Split(text, ";")
	if len(pairs) > maxArgs {
		return nil, pod, wire.Errorf(wire.CodeInvalidEnvironment, "CNI_ARGS has %d pairs, %d is the limit", len(pairs), maxArgs)
	}
	known := map[string]*string{
		"K8S_POD_NAMESPACE": &pod.Namespace,
		"K8S_POD_NAME":      &pod.Name,
		"K8S_POD_UID":       &pod.UID,
	}
	args := make([][2]string, 0, len(pairs))
	var faults []error
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" || strings.ContainsFunc(pair, unicode.IsControl) {
			faults = append(faults, fmt.Errorf("%.200q is not KEY=VALUE", pair))
			continue
		}
		args = append(args, [2]string{key, value})
		if field := known[key]; field != nil {
			// Multus gives its delegates every K8S_* argument twice.
			if *field != "" && *field != value {
				faults = append(faults, fmt.Errorf("%s is there twice, as %.200q and as %.200q", key, *field, value))
			}
			*field = value
		}
	}
	if err := errors.Join(faults...); err != nil {
		return args, pod, wire.Errorf(wire.CodeInvalidEnvironment, "CNI_ARGS: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return args, pod, nil
}
