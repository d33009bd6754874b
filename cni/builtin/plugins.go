package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/crinet-project/crinet/cni/wire"
)

// The plugin types that are built in.
const (
	Bridge    = "bridge"
	PTP       = "ptp"
	HostLocal = "host-local" // as the IPAM plugin of the others
	Flannel   = "flannel"
)

// Types returns the plugin types that are built in.
func Types() []string { return []string{Bridge, PTP, HostLocal, Flannel} }

// Call is one run of a plugin: what its binary would get in its environment and on
// standard input (CNI spec, section 2, "Parameters").
type Call struct {
	Type        string // of the plugin
	Command     string // ADD, DEL, CHECK or STATUS
	ContainerID string
	NetNS       string // path; may be empty for DEL
	IfName      string
	Args        string // CNI_ARGS, as one string
	Config      []byte // standard input
	// Delegate is the configuration that flannel's ADD hands on, see Delegated; it
	// has runtimeConfig and prevResult like Config. It is empty for other plugins.
	Delegate []byte
}

// Plugins runs the built-in plugins. It is safe for concurrent use.
type Plugins struct {
	log  *slog.Logger
	kick chan struct{} // holds one: links wait for their removal

	// bridges is held while a bridge gets an address: its MAC address is fixed with the
	// first one, and must not change any more when sandboxes know it.
	bridges sync.Mutex
}

// New returns the built-in plugins.
func New(log *slog.Logger) *Plugins {
	return &Plugins{log: log, kick: make(chan struct{}, 1)}
}

// Execute runs a plugin and returns what its binary would print: for ADD the result, in
// the version of the configuration. The error is a [*wire.Error] with the code of
// the binary's.
func (p *Plugins) Execute(ctx context.Context, c *Call) ([]byte, error) {
	result, err := p.run(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("built-in plugin %s: %w", c.Type, coded(err))
	}
	if result == nil {
		return nil, nil
	}
	return encodeResult(result, configVersion(c.Config))
}

func (p *Plugins) run(ctx context.Context, c *Call) (*current.Result, error) {
	if v := configVersion(c.Config); !slices.Contains(versions(), v) {
		return nil, wire.Errorf(wire.CodeIncompatibleVersion, "CNI version %q is not built in", v)
	}
	if err := ownNetNS(c.NetNS); err != nil {
		return nil, err
	}
	if c.Command == "STATUS" {
		return nil, nil // nothing is needed but the kernel and this process
	}
	verbs := map[string]func(context.Context, *Call) (*current.Result, error){
		Bridge + " ADD": p.bridgeAdd, Bridge + " CHECK": p.bridgeCheck, Bridge + " DEL": p.bridgeDel,
		PTP + " ADD": p.ptpAdd, PTP + " CHECK": p.ptpCheck, PTP + " DEL": p.ptpDel,
		Flannel + " ADD": p.flannelAdd, Flannel + " CHECK": flannelCheck, Flannel + " DEL": p.flannelDel,
	}
	verb := verbs[c.Type+" "+c.Command]
	if verb == nil {
		return nil, wire.Errorf(wire.CodeInvalidEnvironment, "%s of plugin %s is not built in", c.Command, c.Type)
	}
	return verb(ctx, c)
}

// versions are the CNI versions that the built-ins speak.
func versions() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

func configVersion(config []byte) string {
	v, err := new(version.ConfigDecoder).Decode(config)
	if err != nil {
		return ""
	}
	return v
}

// coded gives an error the code that the reference plugins print (package skel of
// containernetworking/cni): its own, or 999.
func coded(err error) *wire.Error {
	var ours *wire.Error
	var theirs *types.Error
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.As(err, &theirs):
		return &wire.Error{Code: theirs.Code, Msg: theirs.Msg, Details: theirs.Details}
	}
	return wire.Errorf(wire.CodeInternal, "%v", err)
}

// encodeResult returns a result in a version, as a plugin prints it.
func encodeResult(result *current.Result, version string) ([]byte, error) {
	converted, err := result.GetAsVersion(version)
	if err != nil {
		return nil, err
	}
	return json.Marshal(converted)
}
