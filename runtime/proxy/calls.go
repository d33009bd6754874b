package proxy

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// class says what becomes of a call that is under way when Serve ends.
type class int

const (
	// endless calls are ended at once: they go on for as long as the caller or a
	// registry likes, and callers make them again.
	endless class = iota
	// passing calls may finish within passGrace.
	passing
	// drained calls may finish within the grace: they are in the middle of a
	// sandbox's lifecycle.
	drained
)

// errStopping is the status of a call that is cut off because Serve ends.
var errStopping = status.Error(codes.Unavailable, "crinetd is stopping and has cut the call off; repeat it")

// callSet has the calls under way. The zero value is ready.
type callSet struct {
	mu       sync.Mutex // guards what follows
	underWay map[*underWay]struct{}
	cut      [drained + 1]bool // classes that are cut off
}

// underWay is one call.
type underWay struct {
	class  class
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the call has ended
}

// begin registers a call. The caller calls end when the call has ended.
func (s *callSet) begin(ctx context.Context, class class) *underWay {
	u := &underWay{class: class, done: make(chan struct{})}
	u.ctx, u.cancel = context.WithCancelCause(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay == nil {
		s.underWay = make(map[*underWay]struct{})
	}
	s.underWay[u] = struct{}{}
	if s.cut[class] {
		u.cancel(errStopping)
	}
	return u
}

// end takes a call out.
func (s *callSet) end(u *underWay) {
	u.cancel(nil)
	s.mu.Lock()
	delete(s.underWay, u)
	s.mu.Unlock()
	close(u.done)
}

// reason returns why a call ended: that the proxy ended it, or else err.
func (u *underWay) reason(caller context.Context, err error) error {
	if err != nil && u.ctx.Err() != nil && caller.Err() == nil {
		return context.Cause(u.ctx)
	}
	return err
}

// cutOff cancels the calls of a class with errStopping, those under way and those
// that may still begin.
func (s *callSet) cutOff(class class) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut[class] = true
	for u := range s.underWay {
		if u.class == class {
			u.cancel(errStopping)
		}
	}
}

// of returns the calls of a class that are under way.
func (s *callSet) of(class class) []*underWay {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*underWay
	for u := range s.underWay {
		if u.class == class {
			all = append(all, u)
		}
	}
	return all
}

// classify returns the classes of methods, by full name; all others pass.
func classify(drain []string) map[string]class {
	classes := map[string]class{
		runtimeapi.RuntimeService_GetContainerEvents_FullMethodName: endless,
		runtimeapi.ImageService_PullImage_FullMethodName:            endless,
	}
	for _, method := range drain {
		classes[method] = drained
	}
	return classes
}

// classOf returns a method's class.
func (p *Proxy) classOf(method string) class {
	if class, ok := p.classes[method]; ok {
		return class
	}
	return passing
}
