package history

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Client returns a client of CRI whose calls that change a sandbox are recorded.
func (r *Recorder) Client(next runtimeapi.RuntimeServiceClient) runtimeapi.RuntimeServiceClient {
	return client{RuntimeServiceClient: next, recorder: r}
}

type client struct {
	runtimeapi.RuntimeServiceClient
	recorder *Recorder
}

// The annotation of static pods, and the namespace that is critical unless
// --critical-namespaces says otherwise.
const (
	sourceAnnotation  = "kubernetes.io/config.source"
	criticalNamespace = "kube-system"
)

func (c client) RunPodSandbox(ctx context.Context, in *runtimeapi.RunPodSandboxRequest, o ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
	config := in.GetConfig()
	meta := config.GetMetadata()
	call := Call{Method: "RunPodSandbox", Pod: meta.GetNamespace() + "/" + meta.GetName()}
	source := config.GetAnnotations()[sourceAnnotation]
	call.First = source != "" && source != "api" || meta.GetNamespace() == criticalNamespace
	for _, port := range config.GetPortMappings() {
		if port.GetHostPort() > 0 {
			call.HostPorts = append(call.HostPorts, portKey(protocolNumber(port.GetProtocol()), uint16(port.GetHostPort())))
		}
	}
	end := c.recorder.Begin(call)
	out, err := c.RuntimeServiceClient.RunPodSandbox(ctx, in, o...)
	end(out.GetPodSandboxId(), err)
	return out, err
}

func (c client) StopPodSandbox(ctx context.Context, in *runtimeapi.StopPodSandboxRequest, o ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	end := c.recorder.Begin(Call{Method: "StopPodSandbox", Sandbox: in.GetPodSandboxId()})
	out, err := c.RuntimeServiceClient.StopPodSandbox(ctx, in, o...)
	end("", err)
	return out, err
}

func (c client) RemovePodSandbox(ctx context.Context, in *runtimeapi.RemovePodSandboxRequest, o ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	end := c.recorder.Begin(Call{Method: "RemovePodSandbox", Sandbox: in.GetPodSandboxId()})
	out, err := c.RuntimeServiceClient.RemovePodSandbox(ctx, in, o...)
	end("", err)
	return out, err
}

func protocolNumber(p runtimeapi.Protocol) byte {
	switch p {
	case runtimeapi.Protocol_UDP:
		return protocolUDP
	case runtimeapi.Protocol_SCTP:
		return protocolSCTP
	default:
		return protocolTCP
	}
}
