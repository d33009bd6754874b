package wire

import "fmt"

// Error codes of the CNI spec: section 5, "Error", and section 2, "STATUS".
const (
	CodeIncompatibleVersion uint = 1
	CodeUnknownContainer    uint = 3
	CodeInvalidEnvironment  uint = 4
	CodeIO                  uint = 5
	CodeDecode              uint = 6
	CodeInvalidConfig       uint = 7
	CodeInvalidNetNS        uint = 8 // libcni's, not in the spec
	CodeTryAgainLater       uint = 11
	CodeNotAvailable        uint = 50  // STATUS: no ADD can be served
	CodeLimited             uint = 51  // STATUS: besides, running containers may have limited connectivity
	CodeInternal            uint = 999 // libcni's for anything else
)

// Error is the error result of the CNI spec, section 5, "Error". It is the one
// type of such errors from the plugin to the shim: in package cni, which makes
// one of what a plugin prints, in the daemon, and in a [Reply].
type Error struct {
	// CNIVersion is the version of the spec that the error is printed in. The
	// shim sets it: it knows what the runtime asked for.
	CNIVersion string `json:"cniVersion,omitempty"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Details
}

// Errorf makes an Error without details.
func Errorf(code uint, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}
