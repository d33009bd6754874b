package pluginexec

import "sync"

// head keeps the first bytes that are written to it and drops the others, so
// that a plugin that prints without end never blocks and costs no memory.
type head struct {
	limit int    // bytes
	full  func() // called when there are more; may be nil

	mu   sync.Mutex // the writer may outlive the run, if the plugin does not die
	data []byte
}

// Write keeps what fits. It never fails.
func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	room := h.limit - len(h.data)
	h.data = append(h.data, p[:min(room, len(p))]...)
	if len(p) > room && h.full != nil {
		h.full()
	}
	return len(p), nil
}

// bytes returns what was kept so far.
func (h *head) bytes() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.data
}
