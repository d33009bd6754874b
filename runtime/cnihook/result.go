package cnihook

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/crinet-project/crinet/cni/wire"
)

// convertResult converts a CNI result to the version that the runtime asked for.
// A result of that version keeps its bytes, unknown fields included.
func convertResult(result []byte, version string) ([]byte, error) {
	if len(result) == 0 {
		return nil, errors.New("the network gave no result")
	}
	has, err := create.DecodeVersion(result)
	if err != nil {
		return nil, fmt.Errorf("result of the network: %w", err)
	}
	parsed, err := create.Create(has, result)
	if err != nil {
		return nil, fmt.Errorf("result of the network in version %s: %w", has, err)
	}
	if has == version {
		return result, nil
	}
	converted, err := parsed.GetAsVersion(version)
	if err != nil {
		return nil, fmt.Errorf("converting the result of the network from version %s to %s: %w", has, version, err)
	}
	out, err := json.Marshal(converted)
	if err != nil {
		return nil, fmt.Errorf("encoding the result in version %s: %w", version, err)
	}
	return out, nil
}

// wireError makes a CNI error of err, which begins with subject. A CNI error in
// err keeps its code and details; the text around it goes before its message.
func wireError(subject string, err error) *wire.Error {
	if subject != "" {
		subject += ": "
	}
	out := &wire.Error{Code: wire.CodeInternal, Msg: subject + err.Error()}
	said := asCNIError(err)
	if said == nil {
		return out
	}
	if said.Code != 0 {
		out.Code = said.Code
	}
	if around, ok := strings.CutSuffix(err.Error(), said.Error()); ok {
		out.Msg, out.Details = subject+around+said.Msg, said.Details
	}
	return out
}

// asCNIError returns the CNI error in err, crinet's or libcni's, or nil.
func asCNIError(err error) *wire.Error {
	var ours *wire.Error
	if errors.As(err, &ours) {
		return ours
	}
	var theirs *types.Error
	if errors.As(err, &theirs) {
		return &wire.Error{Code: theirs.Code, Msg: theirs.Msg, Details: theirs.Details}
	}
	return nil
}
