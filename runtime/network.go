package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/runtime/cnihook"
	"github.com/crinet-project/crinet/runtime/journal"
)

// CNIHandler is the manager's side of cni.sock.
func (m *Manager) CNIHandler() cnihook.Handler { return cniHandler{m} }

// cniHandler tells the CNI verb STATUS from the CRI verb Status.
type cniHandler struct{ *Manager }

// Status is the runtime's STATUS, from memory (CNI spec, section STATUS, code
// 50: the plugin cannot serve ADD).
func (m cniHandler) Status(context.Context) error {
	if err := m.Plugin.Status(); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	return nil
}

// GC is the runtime's GC: attachments that it does not list as valid are undone
// (CNI spec, section GC), but for those that may be in the making. A failed one
// is tried again.
func (m *Manager) GC(ctx context.Context, call *cnihook.Call) error {
	var config struct {
		Valid []types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(call.Config, &config); err != nil {
		return types.NewError(types.ErrDecodingFailure, "cni.dev/valid-attachments", err.Error())
	}
	valid := make(map[journal.Key]bool, len(config.Valid))
	for _, a := range config.Valid {
		valid[journal.Key{ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	records, err := m.Journal.Sandbox("")
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range records {
		if r.State != journal.Attached || valid[r.Key()] || m.inTheMaking(r) {
			continue
		}
		if err := m.detachNow(ctx, r.Key()); err != nil {
			errs = append(errs, fmt.Errorf("sandbox %s: %w", r.Attachment.ContainerID, err))
		}
	}
	return errors.Join(errs...)
}
