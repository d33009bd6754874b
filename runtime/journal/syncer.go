package journal

// syncQueue bounds the callers that wait for a sync to begin.
const syncQueue = 256

// syncer lets callers that come together share one sync.
type syncer struct {
	requests chan chan<- error
	done     chan struct{} // closed when run has ended
}

// request asks for a sync that begins from now on. The channel gets the outcome.
func (s *syncer) request() <-chan error {
	outcome := make(chan error, 1)
	s.requests <- outcome
	return outcome
}

// run syncs until requests is closed and empty.
func (s *syncer) run(sync func() error) {
	defer close(s.done)
	for first := range s.requests {
		waiting := s.gather(first)
		err := sync()
		for _, outcome := range waiting {
			outcome <- err
		}
	}
}

// gather returns a request and those that wait behind it.
func (s *syncer) gather(first chan<- error) []chan<- error {
	waiting := []chan<- error{first}
	for len(waiting) < syncQueue {
		select {
		case outcome, ok := <-s.requests:
			if !ok {
				return waiting
			}
			waiting = append(waiting, outcome)
		default:
			return waiting
		}
	}
	return waiting
}
