package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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

// PodCIDRs are the node's pod CIDRs, at most one of each IP family. The newest
// word counts: UpdateRuntimeConfig's, or --pod-cidr when its value has changed
// since. They are kept over restarts: the kubelet tells them only when they
// change.
type PodCIDRs struct {
	log   *slog.Logger
	meta  Meta
	flag  string     // --pod-cidr
	set   sync.Mutex // orders Set's writes
	cidrs atomic.Pointer[[]netip.Prefix]
}

// storedCIDRs is what the journal holds: a pod CIDR from UpdateRuntimeConfig,
// and what --pod-cidr was then.
type storedCIDRs struct {
	PodCIDR string `json:"podCIDR"`
	Flag    string `json:"flag"`
}

// NewPodCIDRs returns the pod CIDRs that the journal holds, or the flag's if the
// flag is newer.
func NewPodCIDRs(meta Meta, flag []netip.Prefix, log *slog.Logger) (*PodCIDRs, error) {
	data, err := meta.Meta(podCIDRKey)
	if err != nil {
		return nil, fmt.Errorf("stored pod CIDR: %w", err)
	}
	p := &PodCIDRs{log: log, meta: meta, flag: fmt.Sprint(flag)}
	p.cidrs.Store(&flag)
	stored := parseStored(data)
	if stored.PodCIDR == "" || stored.Flag != p.flag && len(flag) > 0 {
		return p, nil
	}
	cidrs, err := parseCIDRs(stored.PodCIDR)
	if err != nil {
		return nil, fmt.Errorf("stored pod CIDR %q: %w", stored.PodCIDR, err)
	}
	p.cidrs.Store(&cidrs)
	return p, nil
}

// parseStored reads the journal's value. Releases before this one stored the pod
// CIDR alone.
func parseStored(data []byte) storedCIDRs {
	var stored storedCIDRs
	if json.Unmarshal(data, &stored) != nil {
		stored.PodCIDR = string(data)
	}
	return stored
}

// Get returns the pod CIDRs, IPv4 or IPv6 first as they were given; none while
// they are not known.
func (p *PodCIDRs) Get() []netip.Prefix { return *p.cidrs.Load() }

// Set takes one CIDR or two, separated by a comma. It says whether they are
// others than before. They count at once, also when they cannot be kept for the
// next start, which the log then says.
func (p *PodCIDRs) Set(text string) (changed bool, err error) {
	cidrs, err := parseCIDRs(text)
	if err != nil {
		return false, err
	}
	p.set.Lock()
	defer p.set.Unlock()
	changed = fmt.Sprint(p.Get()) != fmt.Sprint(cidrs)
	p.cidrs.Store(&cidrs)
	data, err := json.Marshal(storedCIDRs{PodCIDR: text, Flag: p.flag})
	if err != nil {
		return false, fmt.Errorf("encode: %w", err)
	}
	if kept, err := p.meta.Meta(podCIDRKey); err == nil && string(kept) == string(data) {
		return changed, nil
	}
	if err := p.meta.PutMeta(podCIDRKey, data); err != nil {
		p.log.Error("the pod CIDR is used, but cannot be kept for the next start of crinetd; "+
			"the kubelet tells it again at the node's next change", "podCIDR", text, "err", err)
	}
	return changed, nil
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
