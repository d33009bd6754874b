package engine

import (
	"sync"
	"time"

	"github.com/crinet-project/crinet/runtime/journal"
)

// unlisted is how long an attachment may belong to a sandbox that the runtime
// does not list and crinetd has no call in flight for: somebody asked the
// runtime itself, or the call was cut off while the runtime went on with it. The
// kubelet gives RunPodSandbox four minutes by default.
const unlisted = 4 * time.Minute

// flights are the sandboxes in the making. The zero value is ready.
type flights struct {
	mu    sync.Mutex
	pods  map[journal.Pod]*Flight   // RunPodSandbox calls; a pod has at most one: the runtime reserves its name
	keys  map[journal.Key]*Flight   // flights that have an attachment
	loose map[journal.Key]time.Time // attachment -> when its flight ended, the runtime not yet known to have the sandbox
}

// add registers a RunPodSandbox call.
func (s *flights) add(f *Flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods == nil {
		s.pods = make(map[journal.Pod]*Flight)
	}
	s.pods[f.pod] = f
}

// join returns the flight that an ADD belongs to: the pod's RunPodSandbox, or
// one of its own. leave ends the ADD. While the ADD is under way its attachment
// is in flight, also when the RunPodSandbox has ended without it.
func (s *flights) join(e *Engine, call *Call) (f *Flight, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f = s.pods[call.Pod]
	if f == nil {
		f = &Flight{engine: e, pod: call.Pod, over: true}
	}
	f.mu.Lock()
	f.key = call.Key()
	f.mu.Unlock()
	f.adding = true
	if s.keys == nil {
		s.keys = make(map[journal.Key]*Flight)
	}
	s.keys[call.Key()] = f
	return f, func() { s.added(f, call.Key(), e.now()) }
}

// added ends an ADD. Where its flight is over, nobody has heard of the sandbox's
// start.
func (s *flights) added(f *Flight, key journal.Key, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.adding = false
	if f.over {
		s.loosenLocked(key, now)
		s.forget(f)
	}
}

// remove takes a flight out.
func (s *flights) remove(f *Flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.over = true
	if s.pods[f.pod] == f {
		delete(s.pods, f.pod)
	}
	if !f.adding {
		s.forget(f)
	}
}

// forget takes a flight's attachment out. The caller holds the lock.
func (s *flights) forget(f *Flight) {
	if key, ok := f.attachment(); ok && s.keys[key] == f {
		delete(s.keys, key)
	}
}

// loosen keeps an attachment from the sweeper for the time unlisted.
func (s *flights) loosen(key journal.Key, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loosenLocked(key, now)
}

func (s *flights) loosenLocked(key journal.Key, now time.Time) {
	if s.loose == nil {
		s.loose = make(map[journal.Key]time.Time)
	}
	s.loose[key] = now
}

// inFlight returns the attachments of all flights.
func (s *flights) inFlight() map[journal.Key]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make(map[journal.Key]bool, len(s.keys))
	for key := range s.keys {
		keys[key] = true
	}
	return keys
}

// has says whether an attachment is in flight.
func (s *flights) has(key journal.Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[key] != nil
}

// recent says whether the flight of an attachment ended less than the time
// unlisted ago, by the monotonic clock.
func (s *flights) recent(key journal.Key, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.loose[key]
	if ok && now.Sub(at) >= unlisted {
		delete(s.loose, key)
		return false
	}
	return ok
}

// settle forgets that an attachment is loose.
func (s *flights) settle(key journal.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.loose, key)
}
