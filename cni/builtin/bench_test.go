package builtin_test

import (
	"fmt"
	"testing"
)

// BenchmarkPod is ADD and DEL of a sandbox on a bridge, beside pods that have a network.
func BenchmarkPod(b *testing.B) {
	for _, pods := range []int{0, 110} {
		for _, builtIn := range []bool{true, false} {
			b.Run(fmt.Sprintf("pods=%d/builtin=%t", pods, builtIn), func(b *testing.B) {
				w := newWorld(b, needReference(b))
				for i := range pods {
					w.add("bridge", fmt.Sprint("pod", i), newNetNS(b))
				}
				b.ResetTimer()
				for b.Loop() {
					b.StopTimer()
					pod := newNetNS(b)
					b.StartTimer()
					for _, verb := range []string{"ADD", "DEL"} {
						i := invocation{verb: verb, id: "one", netns: pod.path(), conf: plainConf("bridge"), builtin: builtIn}
						if _, err := w.call(i); err != nil {
							b.Fatal(err)
						}
					}
					b.StopTimer()
					w.reap()
					b.StartTimer()
				}
			})
		}
	}
}
