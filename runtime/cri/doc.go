// Package cri is crinetd's part in the CRI methods that it takes part in, one
// verb a file; package proxy passes all others on. A hook sends the caller's
// bytes on as they came and decodes them for reading only.
//
//	RunPodSandbox, RestorePod          admission, steps 1 and 4 (run.go, restore.go)
//	StopPodSandbox, RemovePodSandbox   the network is gone when they return (stop.go, remove.go)
//	Status                             NetworkReady is crinet's and the runtime's (status.go)
//	UpdateRuntimeConfig                tells the pod CIDR (update.go)
package cri
