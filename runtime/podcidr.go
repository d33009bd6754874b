package runtime

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
)

// podCIDRKey is where the journal keeps the pod CIDR.
const podCIDRKey = "podCIDR"

// Meta keeps single values over restarts (package journal).
type Meta interface {
	PutMeta(name string, value []byte) error
	Meta(name string) ([]byte, error)
}

// PodCIDRs are the node's pod CIDRs, at most one of each IP family. They are
// kept over restarts: the kubelet tells them only when they change.
type PodCIDRs struct {
	meta  Meta
	set   sync.Mutex // orders Set's writes
	cidrs atomic.Pointer[[]netip.Prefix]
}

// NewPodCIDRs returns the pod CIDRs that meta holds, or else the given ones.
func NewPodCIDRs(meta Meta, initial []netip.Prefix) (*PodCIDRs, error) {
	stored, err := meta.Meta(podCIDRKey)
	if err != nil {
		return nil, fmt.Errorf("stored pod CIDR: %w", err)
	}
	p := &PodCIDRs{meta: meta}
	if len(stored) > 0 {
		if initial, err = parseCIDRs(string(stored)); err != nil {
			return nil, fmt.Errorf("stored pod CIDR %q: %w", stored, err)
		}
	}
	p.cidrs.Store(&initial)
	return p, nil
}

// Get returns the pod CIDRs, IPv4 or IPv6 first as they were given; none while
// they are not known.
func (p *PodCIDRs) Get() []netip.Prefix {
	if cidrs := p.cidrs.Load(); cidrs != nil {
		return *cidrs
	}
	return nil
}

// Set takes one CIDR or two, separated by a comma, and keeps them. It says
// whether they are others than before.
func (p *PodCIDRs) Set(text string) (changed bool, err error) {
	cidrs, err := parseCIDRs(text)
	if err != nil {
		return false, err
	}
	p.set.Lock()
	defer p.set.Unlock()
	if fmt.Sprint(p.Get()) == fmt.Sprint(cidrs) {
		return false, nil
	}
	if err := p.meta.PutMeta(podCIDRKey, []byte(text)); err != nil {
		return false, fmt.Errorf("cannot be kept: %w", err)
	}
	p.cidrs.Store(&cidrs)
	return true, nil
}

func parseCIDRs(text string) ([]netip.Prefix, error) {
	var cidrs []netip.Prefix
	for _, field := range strings.Split(text, ",") {
		cidr, err := netip.ParsePrefix(strings.TrimSpace(field))
		if err != nil {
			return nil, err
		}
		cidrs = append(cidrs, cidr.Masked())
	}
	if len(cidrs) > 2 || len(cidrs) == 2 && cidrs[0].Addr().Is4() == cidrs[1].Addr().Is4() {
		return nil, errors.New("at most one of each IP family is possible")
	}
	return cidrs, nil
}
