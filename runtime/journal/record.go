package journal

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/hostport"
)

// recordVersion is written into each record. A reader knows all versions up to its
// own. A change that adds an optional field keeps the version.
const recordVersion = 1

// State is how far a record's attachment has come.
type State string

const (
	// Attaching is an attachment whose ADD has begun; crinetd has not seen its end.
	// What it left on the node must be undone.
	Attaching State = "attaching"
	// Attached is an attachment whose ADD succeeded.
	Attached State = "attached"
	// Detaching is an attachment whose DEL has begun, or that must be undone: its ADD
	// failed or was cut off, or its sandbox is gone.
	Detaching State = "detaching"
)

// Pod names the pod that a sandbox belongs to (K8S_POD_* of CNI_ARGS).
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// String returns namespace/name.
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// StepTime is when a step of a sandbox's lifecycle began and how long it took.
type StepTime struct {
	Step     string        `json:"step"`
	Start    time.Time     `json:"start"`
	Duration time.Duration `json:"duration"`
}

// Record is what crinetd did for one attachment of one sandbox.
type Record struct {
	Version int   `json:"version"`
	State   State `json:"state"`
	// Plugin is the name of the network plugin that undoes the attachment.
	Plugin     string         `json:"plugin"`
	Pod        Pod            `json:"pod"`
	Attachment cni.Attachment `json:"attachment"`
	// HostPorts are those that crinetd maps for the pod.
	HostPorts []hostport.Mapping `json:"hostPorts,omitempty"`
	// BootID is the kernel's boot id (/proc/sys/kernel/random/boot_id) at ADD.
	BootID string `json:"bootID"`
	// Created is when ADD began.
	Created time.Time `json:"created"`
	// Steps are the steps of the lifecycle, in their order.
	Steps []StepTime `json:"steps,omitempty"`
	// Adopted says that the runtime made the attachment before crinetd came.
	Adopted bool `json:"adopted,omitempty"`
	// Trial says that the attachment is no pod's: crinetd tries whether the network
	// works.
	Trial bool `json:"trial,omitempty"`
	// Tries and LastError tell of failed attempts to undo the attachment.
	Tries     int    `json:"tries,omitempty"`
	LastError string `json:"lastError,omitempty"`
}

// Key names an attachment as the CNI spec does: by container id and interface.
type Key struct {
	ContainerID string
	IfName      string
}

// String returns the key in the form in which it is stored, which sorts by
// container id. A slash is in neither part (CNI spec, section 2, Parameters).
func (k Key) String() string { return k.ContainerID + "/" + k.IfName }

// Key returns the record's key.
func (r *Record) Key() Key {
	return Key{ContainerID: r.Attachment.ContainerID, IfName: r.Attachment.IfName}
}

func encode(r *Record) ([]byte, error) {
	r.Version = recordVersion
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("journal: encode record of sandbox %s: %w", r.Attachment.ContainerID, err)
	}
	return data, nil
}

func decode(key, data []byte) (*Record, error) {
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("journal: record %s: %w", key, err)
	}
	if r.Version < 1 {
		return nil, fmt.Errorf("journal: record %s has no version", key)
	}
	if r.Version > recordVersion {
		return nil, fmt.Errorf("journal: record %s has version %d, this crinetd knows up to %d: %w",
			key, r.Version, recordVersion, ErrNewer)
	}
	return &r, nil
}
