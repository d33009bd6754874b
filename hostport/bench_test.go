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
