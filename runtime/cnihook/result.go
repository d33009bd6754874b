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

// convertResult gives a CNI result the version that the runtime asked for. A
// result that has it already keeps its bytes, unknown fields included.
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

// wireError makes a CNI error of err that says which pod it is about. A CNI
// error keeps its code and details; what it was wrapped in goes before its
// message.
func wireError(subject string, err error) *wire.Error {
	if subject != "" {
		subject += ": "
	}
	var ours *wire.Error
	if errors.As(err, &ours) {
		return &wire.Error{Code: ours.Code, Msg: subject + ours.Msg, Details: ours.Details}
	}
	out := &wire.Error{Code: wire.CodeInternal, Msg: subject + err.Error()}
	var theirs *types.Error
	if errors.As(err, &theirs) {
		if theirs.Code != 0 {
			out.Code = theirs.Code
		}
		if around, ok := strings.CutSuffix(err.Error(), theirs.Error()); ok {
			out.Msg, out.Details = subject+around+theirs.Msg, theirs.Details
		}
	}
	return out
}
