package hostport

import (
	"fmt"
	"log/slog"
	"testing"
)

// BenchmarkMapUnmap measures one pod with one hostPort, and one with 100, coming
// and going beside others. The time of an operation is that of both together.
func BenchmarkMapUnmap(b *testing.B) {
	for _, others := range []int{0, 2_000, 10_000} {
		for _, ports := range []int{1, 100} {
			for _, protocol := range []string{"tcp", "udp"} {
				b.Run(fmt.Sprintf("others=%d/ports=%d/%s", others, ports, protocol), func(b *testing.B) {
					benchmarkMapUnmap(b, others, ports, protocol)
				})
			}
		}
	}
}

func benchmarkMapUnmap(b *testing.B, others, ports int, protocol string) {
	ns := nftNetNS(b)
	m := newManagerFor(b, ns, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	if err := m.Sync(b.Context(), manyPods(b, others/2)); err != nil {
		b.Fatal(err)
	}
	var mappings []string
	for i := range ports {
		mappings = append(mappings, fmt.Sprintf("%s %d:80", protocol, 40000+i))
	}
	pod := testPod(b, "web", []string{"10.9.0.2"}, mappings...)
	b.ResetTimer()
	for b.Loop() {
		mustMap(b, m, pod)
		mustUnmap(b, m, pod.SandboxID)
	}
}

// BenchmarkMasquerade measures one masqueraded pod coming and going, alone in its
// subnet and beside others.
func BenchmarkMasquerade(b *testing.B) {
	for _, others := range []int{0, 1, 1000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			ns := nftNetNS(b)
			m := newManagerFor(b, ns, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
			var pods []Pod
			for i := range others {
				pod := testPod(b, fmt.Sprintf("other-%d", i), []string{fmt.Sprintf("10.9.%d.%d", 1+i/250, 1+i%250)})
				pod.Masquerade = subnets(pod.IPs, 16, 64)
				pods = append(pods, pod)
			}
			if err := m.Sync(b.Context(), pods); err != nil {
				b.Fatal(err)
			}
			pod := testPod(b, "web", []string{"10.9.0.2"})
			pod.Masquerade = subnets(pod.IPs, 16, 64)
			for b.Loop() {
				mustMap(b, m, pod)
				mustUnmap(b, m, pod.SandboxID)
			}
		})
	}
}
