package drift

import (
	"strings"
	"testing"
	"time"
)

// What changes on the node is noticed without waiting for the interval, and so is an
// interface that is deleted inside a pod: its other end goes with it.
func TestChangesOnTheNodeAreNoticedAtOnce(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, p *testPod){
		"interface deleted":   func(t *testing.T, p *testPod) { ip(t, &p.sandbox, "link del eth0") },
		"host's end down":     func(t *testing.T, p *testPod) { ip(t, nil, "link set "+p.host+" down") },
		"out of the bridge":   func(t *testing.T, p *testPod) { ip(t, nil, "link set "+p.host+" nomaster") },
		"hairpin mode off":    func(t *testing.T, p *testPod) { ip(t, nil, "link set "+p.host+" type bridge_slave hairpin off") },
		"gateway removed":     func(t *testing.T, _ *testPod) { ip(t, nil, "address del 10.20.0.1/16 dev br0") },
		"route removed":       func(t *testing.T, _ *testPod) { ip(t, nil, "route del 10.20.0.0/16 dev br0") },
		"bridge down":         func(t *testing.T, _ *testPod) { ip(t, nil, "link set br0 down") },
		"forwarding is off":   func(t *testing.T, _ *testPod) { setSysctl(t, "net/ipv4/conf/br0/forwarding", "0") },
		"bridge is not there": func(t *testing.T, _ *testPod) { ip(t, nil, "link del br0") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, Report)
			pod := b.add("one", onBridge)
			b.clear(pod)
			b.Interval = 10 * time.Hour
			b.start()
			// The kernel is listened to, and the pod known, once a change that is none has
			// it looked at.
			b.await("the first look", func() bool {
				ip(t, nil, "link set "+pod.host+" type bridge_slave hairpin on")
				return b.looks() > 0
			})
			began := time.Now()
			change(t, pod)
			b.await("the drift", func() bool { return len(b.named(pod)) > 0 })
			t.Logf("noticed after %v: %s", time.Since(began).Round(time.Millisecond), b.Of(pod.key))
			if strings.HasPrefix(name, "forwarding") {
				setSysctl(t, "net/ipv4/conf/br0/forwarding", "1")
				b.await("the end", func() bool { return len(b.Drifted()) == 0 })
			}
		})
	}
}
