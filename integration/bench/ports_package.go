package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/hostport"
)

// mapLimit is for one add and one remove, in milliseconds.
const mapLimit = 1

// measurePackage measures one add and one remove of the package hostport, in a
// network namespace of its own.
func measurePackage(ctx context.Context, o options, out io.Writer) error {
	g := grid{head: []string{"mappings", "hostPorts", "add", "remove", "target", "reached"}}
	for _, mappings := range mappingCounts {
		err := withManager(func(m *hostport.Manager) error {
			var others []hostport.Pod
			const perPod = 100
			for i := range mappings / perPod {
				others = append(others, mappedPod(fmt.Sprintf("other-%d", i), loadedPorts+perPod*i, perPod))
			}
			if err := m.Sync(ctx, others); err != nil {
				return err
			}
			for _, ports := range portCounts[1:] {
				add, remove, err := mapAndUnmap(ctx, m, mappedPod("measured", measuredPorts, ports), o.calls/10)
				if err != nil {
					return err
				}
				g.add(fmt.Sprint(mappings), fmt.Sprint(ports), fmt.Sprintf("%.3f ms", add), fmt.Sprintf("%.3f ms", remove),
					fmt.Sprintf("≤ %d ms", mapLimit), verdict(max(add, remove) > mapLimit))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return g.print(out)
}

// mapAndUnmap returns the medians in milliseconds.
func mapAndUnmap(ctx context.Context, m *hostport.Manager, pod hostport.Pod, rounds int) (add, remove float64, err error) {
	var adds, removes []float64
	for range rounds {
		start := time.Now()
		if err := m.Map(ctx, pod); err != nil {
			return 0, 0, err
		}
		mapped := time.Now()
		if err := m.Unmap(ctx, pod.SandboxID); err != nil {
			return 0, 0, err
		}
		adds = append(adds, millis(mapped.Sub(start)))
		removes = append(removes, millis(time.Since(mapped)))
	}
	return median(adds), median(removes), nil
}

// mappedPod is a pod with hostPorts from first on.
func mappedPod(name string, first, ports int) hostport.Pod {
	pod := hostport.Pod{SandboxID: name, Namespace: "default", Name: name, UID: name,
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, byte(first >> 8), byte(first | 2)})}}
	for i := range ports {
		pod.Mappings = append(pod.Mappings, hostport.Mapping{
			Protocol: hostport.TCP, HostPort: uint16(first + i), ContainerPort: serverPort,
		})
	}
	return pod
}

// withManager runs fn with a Manager of a new network namespace.
func withManager(fn func(*hostport.Manager) error) (err error) {
	ns, err := newNetNS()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	if err := addBridge(ns); err != nil {
		return err
	}
	m, err := hostport.New(hostport.Config{Log: slog.New(slog.DiscardHandler), NetNS: int(ns.Fd())})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return fn(m)
}

// addBridge adds the bridge behind which the mapped pods are.
func addBridge(ns *os.File) error {
	handle, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "bridge0"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	addr, err := netlink.ParseAddr("10.9.0.1/16")
	if err == nil {
		err = handle.LinkAdd(bridge)
	}
	if err == nil {
		err = handle.AddrAdd(bridge, addr)
	}
	if err == nil {
		err = handle.LinkSetUp(bridge)
	}
	if err != nil {
		return fmt.Errorf("add a bridge: %w", err)
	}
	return nil
}

// newNetNS makes a network namespace that ends with its file.
func newNetNS() (ns *os.File, err error) {
	err = awayFromHome(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// inNetNS runs fn in the network namespace of a file.
func inNetNS(path string, fn func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return awayFromHome(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", path, err)
		}
		return fn()
	})
}

// awayFromHome runs fn, which may change the thread's network namespace, and
// changes it back.
func awayFromHome(fn func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	err = fn()
	if backErr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); backErr != nil {
		// The thread stays locked: nobody else may run on it.
		return errors.Join(err, fmt.Errorf("return to the network namespace: %w", backErr))
	}
	runtime.UnlockOSThread()
	return err
}
