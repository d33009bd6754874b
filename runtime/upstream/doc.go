// Package upstream is what crinetd knows of the container runtime. It asks the
// runtime for its Status in the background, one question at a time, and
// remembers the answer: who wants to know does not wait for the runtime.
//
// containerd answers Status behind a lock of its CNI code, which a hung ADD
// holds while the conf dir changes; a question that the runtime does not answer
// stays under way until it does.
package upstream
