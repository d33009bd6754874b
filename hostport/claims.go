package hostport

import (
	"fmt"
	"net/netip"
)

// ConflictError says that a host port cannot be mapped, because somebody holds it.
type ConflictError struct {
	// Mapping is the one that was asked for.
	Mapping Mapping
	// Holder names who holds the port: a pod, or a process of the host.
	Holder string
	// Process is set if the holder is a process of the host.
	Process bool
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("hostPort %s is held by %s", e.Mapping, e.Holder)
}

// identity is what a pod is known by before it has a sandbox.
type identity struct{ namespace, name, uid string }

// owner is a pod that holds ports: one that is mapped, or, without a sandbox ID,
// one whose sandbox is being created.
type owner struct {
	identity
	sandbox  string
	mappings []Mapping
}

func ownerOf(pod Pod) *owner {
	return &owner{identity: pod.identity(), sandbox: pod.SandboxID, mappings: pod.Mappings}
}

func (o *owner) String() string {
	if o.sandbox == "" {
		return fmt.Sprintf("pod %s/%s, which is being created", o.namespace, o.name)
	}
	return fmt.Sprintf("pod %s/%s (sandbox %s)", o.namespace, o.name, o.sandbox)
}

type portKey struct {
	protocol Protocol
	port     uint16
}

type claim struct {
	hostIP netip.Addr
	owner  *owner
}

// claims holds who has which port. A look-up takes time for each address that is
// claimed on that one port.
type claims map[portKey][]claim

func keyOf(m Mapping) portKey { return portKey{m.Protocol, m.HostPort} }

// check returns the holder of the first mapping that overlaps with a claim that
// is not among the tolerated.
func (c claims) check(mappings []Mapping, tolerate func(*owner) bool) error {
	for _, m := range mappings {
		for _, held := range c[keyOf(m)] {
			if overlap(m.HostIP, held.hostIP) && !tolerate(held.owner) {
				return &ConflictError{Mapping: m, Holder: held.owner.String()}
			}
		}
	}
	return nil
}

func (c claims) add(o *owner) {
	for _, m := range o.mappings {
		c[keyOf(m)] = append(c[keyOf(m)], claim{m.HostIP, o})
	}
}

// release drops all claims of o, and those of nobody else, so that it may be called
// at any time, and again.
func (c claims) release(o *owner) {
	for _, m := range o.mappings {
		key := keyOf(m)
		kept := make([]claim, 0, len(c[key]))
		for _, held := range c[key] {
			if held.owner != o {
				kept = append(kept, held)
			}
		}
		if len(kept) == 0 {
			delete(c, key)
			continue
		}
		c[key] = kept
	}
}
