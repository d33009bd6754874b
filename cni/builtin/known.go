package builtin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// reference is what a plugin's binary says of itself on standard error when it is run
// without CNI_COMMAND.
// flannel has left the reference plugins after v0.9.1; flannel's own release of it
// says it in other words.
var reference = regexp.MustCompile(`^CNI ([a-z-]+ plugin|Plugin flannel version) v(1|0\.9)\.[0-9]+`)

// Reference says whether a binary is the reference plugin of that type, by what it says
// of itself: the error is why not.
func Reference(typ, about string) error {
	found := reference.FindStringSubmatch(about)
	says := typ + " plugin"
	if typ == Flannel && strings.HasPrefix(about, "CNI Plugin") {
		says = "Plugin flannel version"
	}
	switch {
	case about == "":
		return fmt.Errorf("the binary of %s does not say what it is", typ)
	case found == nil || found[1] != says:
		return fmt.Errorf("the binary of %s is no reference plugin of a known version: it says %q", typ, about)
	}
	return nil
}

// Known says whether a plugin's configuration can run here, given as the list has it,
// without runtimeConfig and prevResult, but with cniVersion and name. The error
// names what the built-in does not know; such a configuration is executed. parts are
// the plugins whose binaries would run: typ, its IPAM plugin, and those that it
// delegates to. delegate is the configuration that it hands to another plugin.
func Known(typ string, config []byte) (parts []string, delegate []byte, err error) {
	if v := configVersion(config); !slices.Contains(versions(), v) {
		return nil, nil, fmt.Errorf("CNI version %s is not built in", v)
	}
	var ipam *ipamKeys
	switch typ {
	case Bridge:
		ipam, err = knownBridge(config)
	case PTP:
		ipam, err = knownPTP(config)
	case Flannel:
		return knownFlannel(config)
	default:
		err = errors.New("it runs as the IPAM of others only")
	}
	if err != nil {
		return nil, nil, err
	}
	parts = append(parts, typ)
	if ipam != nil && ipam.Type != "" {
		parts = append(parts, ipam.Type)
	}
	return parts, nil, nil
}

// common are the keys that every plugin may have.
type common struct {
	CNIVersion   string          `json:"cniVersion"`
	Name         string          `json:"name"`
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	IPAM         *ipamKeys       `json:"ipam"`
	DNS          types.DNS       `json:"dns"`
	Args         *argsKeys       `json:"args"`

	IPMasq        bool    `json:"ipMasq"`
	IPMasqBackend *string `json:"ipMasqBackend"`
	MTU           int     `json:"mtu"`
}

// ipamKeys are the keys of host-local.
type ipamKeys struct {
	rangeKeys
	Type       string        `json:"type"`
	Name       string        `json:"name"`
	Routes     []routeKeys   `json:"routes"`
	DataDir    string        `json:"dataDir"`
	ResolvConf string        `json:"resolvConf"`
	Ranges     [][]rangeKeys `json:"ranges"`
}

type rangeKeys struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

type routeKeys struct {
	Dst      string `json:"dst"`
	GW       string `json:"gw"`
	MTU      int    `json:"mtu"`
	AdvMSS   int    `json:"advmss"`
	Priority int    `json:"priority"`
	Table    *int   `json:"table"`
	Scope    *int   `json:"scope"`
}

type argsKeys struct {
	CNI struct {
		MAC string   `json:"mac"`
		IPs []string `json:"ips"`
	} `json:"cni"`
}

// bridgeKeys are the keys of the plugin bridge. Those that are not built in are
// there to be named.
type bridgeKeys struct {
	common
	Bridge                    *string           `json:"bridge"`
	IsGateway                 bool              `json:"isGateway"`
	IsDefaultGateway          bool              `json:"isDefaultGateway"`
	ForceAddress              bool              `json:"forceAddress"`
	HairpinMode               bool              `json:"hairpinMode"`
	PromiscMode               bool              `json:"promiscMode"`
	VLAN                      int               `json:"vlan"`
	VLANTrunk                 []json.RawMessage `json:"vlanTrunk"`
	PreserveDefaultVLAN       bool              `json:"preserveDefaultVlan"`
	MACSpoofChk               bool              `json:"macspoofchk"`
	EnableDAD                 bool              `json:"enabledad"`
	DisableContainerInterface bool              `json:"disableContainerInterface"`
	PortIsolation             bool              `json:"portIsolation"`
}

func knownBridge(config []byte) (*ipamKeys, error) {
	var keys bridgeKeys
	if err := strict(config, &keys); err != nil {
		return nil, err
	}
	switch {
	case keys.VLAN != 0:
		return nil, errors.New("key vlan is not built in")
	case keys.VLANTrunk != nil:
		return nil, errors.New("key vlanTrunk is not built in")
	case keys.MACSpoofChk:
		return nil, errors.New("key macspoofchk is not built in")
	case keys.Bridge != nil && *keys.Bridge == "":
		return nil, errors.New("key bridge is empty")
	}
	return keys.IPAM, keys.known(true)
}

func knownPTP(config []byte) (*ipamKeys, error) {
	var keys common
	if err := strict(config, &keys); err != nil {
		return nil, err
	}
	return keys.IPAM, keys.known(false)
}

// known says what of the common keys has a value that is not built in.
func (k *common) known(withoutIPAM bool) error {
	switch {
	case k.IPAM != nil && k.IPAM.Type == HostLocal:
	case withoutIPAM && (k.IPAM == nil || k.IPAM.Type == ""):
	case k.IPAM == nil:
		return errors.New("there is no ipam")
	default:
		return fmt.Errorf("ipam type %q is not built in", k.IPAM.Type)
	}
	if k.MTU < 0 {
		return fmt.Errorf("key mtu is %d", k.MTU)
	}
	return nil
}

// strict decodes a configuration all of whose keys are known, with values of their
// types.
func strict(config []byte, keys any) error {
	decoder := json.NewDecoder(bytes.NewReader(config))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(keys)
	if err == nil && decoder.More() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("not built in: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}
