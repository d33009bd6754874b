package cri

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every method of CRI's RuntimeService is in one of these lists, so that a new
// release of cri-api with a method that makes or ends a sandbox is noticed
// (review row B20).
var (
	hooked = []string{
		"RunPodSandbox", "RestorePod", "StopPodSandbox", "RemovePodSandbox", "Status", "UpdateRuntimeConfig",
	}
	passed = []string{
		"Version", "PodSandboxStatus", "ListPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer",
		"ListContainers", "ContainerStatus", "UpdateContainerResources", "ReopenContainerLog", "ExecSync", "Exec", "Attach",
		"PortForward", "ContainerStats", "ListContainerStats", "PodSandboxStats", "ListPodSandboxStats", "CheckpointContainer",
		"CheckpointPod", "ListMetricDescriptors", "ListPodSandboxMetrics", "RuntimeConfig", "UpdatePodSandboxResources",
	}
	streaming = []string{
		"GetContainerEvents", "StreamPodSandboxes", "StreamContainers", "StreamContainerStats", "StreamPodSandboxStats", "StreamPodSandboxMetrics",
	}
)

func TestEveryCRIMethodIsClassified(t *testing.T) {
	methods := new(Hooks).Methods()
	seen := 0
	for _, m := range runtimeapi.RuntimeService_ServiceDesc.Methods {
		full := "/" + runtimeapi.RuntimeService_ServiceDesc.ServiceName + "/" + m.MethodName
		isHooked := slices.Contains(hooked, m.MethodName)
		if isHooked == slices.Contains(passed, m.MethodName) {
			t.Errorf("%s is in both lists or in none: does it make, change or end a sandbox?", m.MethodName)
		}
		if (methods[full] != nil) != isHooked {
			t.Errorf("%s is hooked: %v, want %v", m.MethodName, methods[full] != nil, isHooked)
		}
		seen++
	}
	for _, s := range runtimeapi.RuntimeService_ServiceDesc.Streams {
		if !slices.Contains(streaming, s.StreamName) {
			t.Errorf("stream %s is not in the list: can it make or end a sandbox?", s.StreamName)
		}
		seen++
	}
	if want := len(hooked) + len(passed) + len(streaming); seen != want {
		t.Errorf("cri-api has %d methods, the lists %d", seen, want)
	}
}
