package cnihook

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/crinet-project/crinet/cni/wire"
)

const (
	maxArgs      = 64        // pairs in CNI_ARGS
	maxArgsBytes = 16 << 10  // of CNI_ARGS
	maxPathBytes = 128 << 10 // of CNI_PATH: MAX_ARG_STRLEN of the kernel
)

// Call is one checked call of the runtime. ContainerID and IfName are safe as
// file names. They and NetNS are empty for GC; NetNS may be empty for DEL.
type Call struct {
	ContainerID string
	NetNS       string // absolute path
	IfName      string
	// Args are the pairs of CNI_ARGS in the order they came. containerd
	// changes the order from call to call.
	Args [][2]string
	// Path is CNI_PATH.
	Path string
	// CNIVersion is what the runtime asks for, and what its result will have.
	CNIVersion string
	// Config is the network configuration, all bytes that came on standard
	// input. For GC it holds cni.dev/valid-attachments, for a DEL the
	// prevResult if the runtime knows it.
	Config []byte
	// RuntimeConfig is the configuration's runtimeConfig, nil when there is
	// none.
	RuntimeConfig json.RawMessage
	// Pod is what the arguments say of the pod.
	Pod Pod
}

// Pod is whose sandbox the call is for, as far as the runtime says (CNI_ARGS
// K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID, K8S_POD_INFRA_CONTAINER_ID).
type Pod struct {
	Namespace, Name, UID, InfraContainerID string
}

// String is namespace/name, or empty when neither is known.
func (p Pod) String() string {
	if p.Namespace == "" && p.Name == "" {
		return ""
	}
	return p.Namespace + "/" + p.Name
}

// newCall checks a request. The Call is as complete as it could be read when
// there is an error, which is a *wire.Error.
func newCall(request *wire.Request) (*Call, error) {
	call := &Call{Path: request.Path, Config: request.Stdin}
	args, pod, argsErr := parseArgs(request.Args)
	call.Args, call.Pod = args, pod // first, so that errors can name the pod
	conf, confErr := wire.DecodeConf(request.Command, request.Stdin)
	call.CNIVersion = conf.CNIVersion
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
func parseArgs(text string) ([][2]string, Pod, error) {
	var pod Pod
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
		"K8S_POD_NAMESPACE":          &pod.Namespace,
		"K8S_POD_NAME":               &pod.Name,
		"K8S_POD_UID":                &pod.UID,
		"K8S_POD_INFRA_CONTAINER_ID": &pod.InfraContainerID,
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
			if *field != "" {
				faults = append(faults, fmt.Errorf("%s is there twice", key))
			}
			*field = value
		}
	}
	if err := errors.Join(faults...); err != nil {
		return args, pod, wire.Errorf(wire.CodeInvalidEnvironment, "CNI_ARGS: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return args, pod, nil
}
