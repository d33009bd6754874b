package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/runtime/journal"
)

// adopt journals the attachments of sandboxes that the runtime networked itself,
// before crinetd came, as the runtime's own cache has them: with the
// configuration, capability args and result of their ADD. From then on they are
// shown, checked and undone like crinetd's own. hostPorts of theirs stay with the
// plugin that mapped them, and no other pod gets them.
func (e *Engine) adopt(ctx context.Context, listed map[string]bool) error {
	if e.foreign == nil {
		return nil
	}
	cached, err := e.foreign.Cached("")
	if err != nil {
		return fmt.Errorf("adopt the pods that the runtime networked before crinetd came: %w", err)
	}
	adopted := 0
	for _, a := range cached {
		if !listed[a.ContainerID] || e.flights.has(keyOf(a)) {
			continue
		}
		if a.NetNS == "" {
			if a.NetNS, err = e.unnamedNetNS(ctx, keyOf(a)); err != nil {
				return err
			}
		}
		// One without namespace has stopped: the runtime's DEL ends it.
		if !isNetNS(a.NetNS) {
			continue
		}
		added, err := e.addRecord(e.adoptedRecord(a))
		if err != nil {
			return err
		}
		if added {
			adopted++
		}
	}
	if adopted > 0 {
		e.log.Info("pods that the runtime networked before crinetd came are adopted", "pods", adopted)
	}
	return nil
}

// unnamedNetNS asks the runtime for the namespace of a sandbox whose attachment is not
// journalled: the libcni of containerd before 2.0 does not keep it in its cache.
func (e *Engine) unnamedNetNS(ctx context.Context, key journal.Key) (string, error) {
	known, err := e.journal.Get(key)
	if err != nil || known != nil {
		return "", err
	}
	return e.sandboxes.NetNS(ctx, key.ContainerID)
}

// foreignRecord is the record of one attachment that the runtime made itself, for
// its DEL; nil if the runtime's cache has none.
func (e *Engine) foreignRecord(call *Call) (*journal.Record, error) {
	if e.foreign == nil {
		return nil, nil
	}
	cached, err := e.foreign.Cached(call.ContainerID)
	if err != nil {
		return nil, err
	}
	for _, a := range cached {
		if keyOf(a) == call.Key() {
			a.NetNS = cmp.Or(a.NetNS, call.NetNS)
			return e.adoptedRecord(a), nil
		}
	}
	return nil, nil
}

func (e *Engine) adoptedRecord(a cni.Attachment) *journal.Record {
	r := &journal.Record{
		State: journal.Attached, Plugin: cni.Name, Attachment: a, BootID: e.bootID, Created: e.now().UTC(), Adopted: true,
	}
	for _, arg := range a.Args {
		switch arg[0] {
		case "K8S_POD_NAMESPACE":
			r.Pod.Namespace = arg[1]
		case "K8S_POD_NAME":
			r.Pod.Name = arg[1]
		case "K8S_POD_UID":
			r.Pod.UID = arg[1]
		}
	}
	var err error
	if r.HostPorts, err = pluginPorts(a); err != nil {
		e.log.Warn("the hostPorts of a pod from before crinetd are not known: another pod may be given them",
			"pod", r.Pod, "sandbox", a.ContainerID, "err", err)
	}
	return r
}

// pluginPorts are the hostPorts that a plugin of the attachment's chain maps.
func pluginPorts(a cni.Attachment) ([]hostport.Mapping, error) {
	var list struct {
		Plugins []struct {
			Capabilities map[string]bool `json:"capabilities"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(a.ConfList, &list); err != nil {
		return nil, err
	}
	for _, plugin := range list.Plugins {
		if !plugin.Capabilities[portMappings] || len(a.CapabilityArgs[portMappings]) == 0 {
			continue
		}
		var requests []hostport.Request
		if err := json.Unmarshal(a.CapabilityArgs[portMappings], &requests); err != nil {
			return nil, err
		}
		return hostport.ParseMappings(requests)
	}
	return nil, nil
}

func keyOf(a cni.Attachment) journal.Key {
	return journal.Key{ContainerID: a.ContainerID, IfName: a.IfName}
}

// addRecord journals a record, unless there is one of its attachment by now, and
// has the hostPorts of an adopted one held.
func (e *Engine) addRecord(r *journal.Record) (added bool, err error) {
	unlock, err := e.locks.lock(context.Background(), r.Key(), "record")
	if err != nil {
		return false, err
	}
	defer unlock()
	if now, err := e.journal.Get(r.Key()); err != nil || now != nil {
		return false, err
	}
	if err := e.journal.Put(r); err != nil {
		return false, err
	}
	if r.Adopted && len(r.HostPorts) > 0 && e.mapsPorts {
		pod, err := e.PortPod(r)
		if err == nil {
			err = e.hostPorts.Map(context.Background(), pod)
		}
		if err != nil {
			e.log.Warn("the hostPorts of a pod from before crinetd are not held", "pod", r.Pod, "sandbox", r.Attachment.ContainerID, "err", err)
		}
	}
	return true, nil
}
