package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// The values of CNI_COMMAND (CNI spec, section 2, "CNI operations").
const (
	CommandAdd     = "ADD"
	CommandDel     = "DEL"
	CommandCheck   = "CHECK"
	CommandGC      = "GC"
	CommandStatus  = "STATUS"
	CommandVersion = "VERSION"
)

const (
	// maxContainerID leaves room for it in file names (NAME_MAX is 255).
	maxContainerID = 128
	maxIfName      = 15 // IFNAMSIZ without the NUL
	maxPath        = 4095
)

// SupportedVersions returns the versions of the CNI spec that crinet speaks, in
// ascending order.
func SupportedVersions() []string {
	return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
}

// Conf is what crinet reads of a network configuration.
type Conf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	// Socket is where crinetd listens.
	Socket string `json:"socket"`
}

// DecodeConf reads a network configuration and checks that its version has the
// command. With an error, too, the Conf holds what could be read: the error is
// answered in its version. The error is an *Error.
func DecodeConf(command string, stdin []byte) (Conf, error) {
	var conf Conf
	if err := json.Unmarshal(stdin, &conf); err != nil {
		var wrongType *json.UnmarshalTypeError
		if errors.As(err, &wrongType) && wrongType.Field != "" {
			return conf, Errorf(CodeInvalidConfig, "network configuration: %q cannot be a %s", wrongType.Field, wrongType.Value)
		}
		return conf, Errorf(CodeDecode, "network configuration on standard input is not a JSON object: %v", err)
	}
	if err := checkVersion(command, conf.CNIVersion); err != nil {
		return conf, err
	}
	if !validID(conf.Name) {
		return conf, Errorf(CodeInvalidConfig, "network configuration: name %q: want letters, digits, _ . - and a letter or digit first", conf.Name)
	}
	return conf, nil
}

// checkVersion follows the spec's change log: CHECK came with 0.4.0, GC and
// STATUS with 1.1.0.
func checkVersion(command, version string) error {
	supported := SupportedVersions()
	if !slices.Contains(supported, version) {
		return Errorf(CodeIncompatibleVersion, "network configuration: cniVersion %q is not supported, crinet speaks %s", version, strings.Join(supported, ", "))
	}
	since := supported[0]
	switch command {
	case CommandCheck:
		since = "0.4.0"
	case CommandGC, CommandStatus:
		since = "1.1.0"
	}
	if slices.Index(supported, version) < slices.Index(supported, since) {
		return Errorf(CodeIncompatibleVersion, "network configuration: cniVersion %q does not have %s, it came with %s", version, command, since)
	}
	return nil
}

// CheckEnvironment checks the CNI_* variables that the request's command needs
// and those that it may have. The error is an *Error and names all bad ones.
func (r *Request) CheckEnvironment() error {
	needed := map[string][]string{
		CommandAdd:    {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
		CommandDel:    {"CNI_CONTAINERID", "CNI_IFNAME"},
		CommandCheck:  {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
		CommandGC:     {"CNI_PATH"},
		CommandStatus: {},
	}
	names, ok := needed[r.Command]
	if !ok {
		return Errorf(CodeInvalidEnvironment, "CNI_COMMAND %q: want ADD, DEL, CHECK, GC, STATUS or VERSION", r.Command)
	}
	var bad []string
	for _, v := range []struct{ name, value, fault string }{
		{"CNI_CONTAINERID", r.ContainerID, containerIDFault(r.ContainerID)},
		{"CNI_NETNS", r.NetNS, pathFault(r.NetNS)},
		{"CNI_IFNAME", r.IfName, ifNameFault(r.IfName)},
		{"CNI_PATH", r.Path, ""},
	} {
		switch {
		case v.value == "" && slices.Contains(names, v.name):
			bad = append(bad, v.name+" is missing")
		case v.value != "" && v.fault != "":
			bad = append(bad, fmt.Sprintf("%s %.200q: %s", v.name, v.value, v.fault))
		}
	}
	if len(bad) > 0 {
		return Errorf(CodeInvalidEnvironment, "%s with an invalid environment: %s", r.Command, strings.Join(bad, "; "))
	}
	return nil
}

// containerIDFault applies the spec's rule for CNI_CONTAINERID.
func containerIDFault(id string) string {
	switch {
	case len(id) > maxContainerID:
		return fmt.Sprintf("%d characters, %d is the limit", len(id), maxContainerID)
	case !validID(id):
		return "want letters, digits, _ . - and a letter or digit first"
	}
	return ""
}

func pathFault(path string) string {
	switch {
	case len(path) > maxPath:
		return fmt.Sprintf("%d characters, %d is the limit", len(path), maxPath)
	case !strings.HasPrefix(path, "/"):
		return "want an absolute path"
	case strings.ContainsFunc(path, unicode.IsControl):
		return "want no control characters"
	}
	return ""
}

// ifNameFault applies the kernel's rule (dev_valid_name in net/core/dev.c).
func ifNameFault(name string) string {
	switch {
	case len(name) > maxIfName:
		return fmt.Sprintf("%d characters, %d is the limit", len(name), maxIfName)
	case name == "." || name == "..":
		return "not a name"
	case strings.ContainsFunc(name, func(r rune) bool {
		return r == '/' || r == ':' || unicode.IsSpace(r) || unicode.IsControl(r)
	}):
		return "want no slash, colon, space or control character"
	}
	return ""
}

// validID is the spec's rule for container IDs and network names.
func validID(id string) bool {
	for i, c := range []byte(id) {
		alphanumeric := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !alphanumeric && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return id != ""
}
