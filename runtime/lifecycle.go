package runtime

import (
	"sync"
	"time"

	"github.com/crinet-project/crinet/runtime/journal"
)

// Step is one of the four steps of a sandbox's lifecycle, in CNI's order.
type Step string

const (
	// StepCreate is the runtime making the sandbox, from RunPodSandbox on.
	StepCreate Step = "create"
	// StepNetNS is taking over the network namespace that the runtime made: it
	// is looked at, and what will be done in it is journalled.
	StepNetNS Step = "netns"
	// StepPlugin is the network plugin's ADD, the hostPorts, and the journal.
	StepPlugin Step = "plugin"
	// StepStart is the runtime starting the sandbox's process, until it answers
	// RunPodSandbox.
	StepStart Step = "start"
)

// lifecycle is the way of one sandbox through the steps. The zero value has
// begun none. One RunPodSandbox call and the ADD inside it share it.
type lifecycle struct {
	mu    sync.Mutex
	steps []journal.StepTime
	key   *journal.Key // of the attachment, once there is one
}

// begin ends the step under way, if any, and begins the next.
func (l *lifecycle) begin(step Step, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(now)
	l.steps = append(l.steps, journal.StepTime{Step: string(step), Start: now, Duration: -1})
}

// end ends the step under way and returns all steps.
func (l *lifecycle) end(now time.Time) []journal.StepTime {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(now)
	return append([]journal.StepTime(nil), l.steps...)
}

func (l *lifecycle) endLocked(now time.Time) {
	if n := len(l.steps); n > 0 && l.steps[n-1].Duration < 0 {
		l.steps[n-1].Duration = now.Sub(l.steps[n-1].Start)
	}
}

// attach notes which attachment the sandbox got.
func (l *lifecycle) attach(key journal.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.key = &key
}

// attachment returns the key that attach noted, or nil.
func (l *lifecycle) attachment() *journal.Key {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.key
}

// calls are the RunPodSandbox calls in flight, by pod. A pod has at most one
// sandbox in the making: the runtime reserves its name.
type calls struct {
	mu   sync.Mutex
	pods map[journal.Pod]*lifecycle
}

// add registers a call and returns what takes it out again.
func (c *calls) add(pod journal.Pod, l *lifecycle) (remove func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pods == nil {
		c.pods = make(map[journal.Pod]*lifecycle)
	}
	c.pods[pod] = l
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pods[pod] == l {
			delete(c.pods, pod)
		}
	}
}

// find returns the call in flight for a pod, or nil: then the sandbox was asked
// for at the runtime directly.
func (c *calls) find(pod journal.Pod) *lifecycle {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pods[pod]
}
