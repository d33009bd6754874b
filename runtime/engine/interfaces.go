package engine

import (
	"context"
	"encoding/json"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/runtime/journal"
)

// NetworkPlugin attaches sandboxes to a network and detaches them. Calls for
// one attachment are serial. Name and Status answer from memory; Plan may read a small
// file, such as flanneld's.
type NetworkPlugin interface {
	// Name is what the journal calls the plugin.
	Name() string
	// Plan completes an attachment with the network that is selected now, or
	// says why there is none. It changes nothing on the node.
	Plan(cni.Attachment) (*cni.Attachment, error)
	// SetUpPod makes the attachment and returns the CNI result. After an error
	// TearDownPod must be called.
	SetUpPod(context.Context, *cni.Attachment) (json.RawMessage, error)
	// TearDownPod undoes the attachment, or what there is of it. It may be
	// called again.
	TearDownPod(context.Context, *cni.Attachment) error
	// CheckPod says whether the attachment is as SetUpPod made it.
	CheckPod(context.Context, *cni.Attachment) error
	// Status says whether new pods can get a network; the error is the reason.
	Status() error
}

// Journal keeps records of attachments over restarts (package journal).
type Journal interface {
	// Put stores a record so that it survives the end of crinetd, kill -9 included.
	Put(*journal.Record) error
	// PutDurable is Put, and survives a loss of power as well.
	PutDurable(*journal.Record) error
	Delete(journal.Key) error
	Get(journal.Key) (*journal.Record, error)
	// Sandbox returns the records of sandboxes whose id begins with prefix; all
	// records for an empty one.
	Sandbox(prefix string) ([]*journal.Record, error)
}

// Sandboxes tells which sandboxes the container runtime has.
type Sandboxes interface {
	// List returns the ids of all sandboxes, in whatever state.
	List(context.Context) (map[string]bool, error)
	// Has says whether the runtime has a sandbox.
	Has(ctx context.Context, id string) (bool, error)
	// NetNS returns the path of a sandbox's network namespace; empty if it has none.
	NetNS(ctx context.Context, id string) (string, error)
}

// HostPorts maps the hostPorts of pods and masquerades their addresses (package
// hostport).
type HostPorts interface {
	// Reserve holds a pod's ports while its sandbox is in the making, or says
	// who has them.
	Reserve(context.Context, hostport.Pod) (*hostport.Reservation, error)
	// Map maps the ports of a sandbox that has addresses, and masquerades those.
	Map(context.Context, hostport.Pod) error
	// Unmap takes away what Map did for a sandbox. It may be called again, and for a
	// sandbox that has nothing.
	Unmap(ctx context.Context, sandboxID string) error
}

// Namespaces makes network namespaces of crinetd's own, for trials.
type Namespaces interface {
	// Path is where the namespace of a name is, or will be.
	Path(name string) string
	// Make makes the namespace of a name.
	Make(name string) error
	// Remove removes the namespace at path. It may be called again.
	Remove(path string) error
}

// Hairpin lets the pod of an attachment reach itself through the node.
type Hairpin func(context.Context, *cni.Attachment) error

// Cache is a record of attachments besides the journal: the network plugin's own,
// or the container runtime's.
type Cache interface {
	// Cached returns the attachments of a container, or with an empty id of all,
	// whose ADD succeeded and whose DEL has not. They have the notes that SetUpPod
	// was given.
	Cached(containerID string) ([]cni.Attachment, error)
}

// OwnCache is the network plugin's own.
type OwnCache interface {
	Cache
	// Forget removes an attachment from the record that holds it, the runtime's
	// for an adopted one, and calls no plugin.
	Forget(context.Context, *cni.Attachment) error
}

// GarbageCollector is the verb GC of a network (CNI spec, section GC).
type GarbageCollector interface {
	// CollectsGarbage says whether the plugins of a configuration list take GC.
	CollectsGarbage(confList json.RawMessage) bool
	// GC tells the plugins which attachments are valid.
	GC(ctx context.Context, confList json.RawMessage, valid []types.GCAttachment) error
}
