package runtime

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/failpoint"
	"github.com/crinet-project/crinet/runtime/install"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/proxy"
)

// RunPodSandbox is CRI's RunPodSandbox: steps 1 and 4 of the lifecycle; the
// runtime's ADD inside it takes the other two. The request goes on as it came.
// What is wrong with it is the runtime's to say.
func (m *Manager) RunPodSandbox(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	var req runtimeapi.RunPodSandboxRequest
	if err := proto.Unmarshal(request, &req); err != nil || !m.networks() || hostNetwork(req.GetConfig()) {
		return next(ctx, request)
	}
	meta := req.GetConfig().GetMetadata()
	pod := journal.Pod{Namespace: meta.GetNamespace(), Name: meta.GetName(), UID: meta.GetUid()}
	if err := m.Plugin.Status(); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "pod %s: network not ready: %v", pod, err)
	}

	release, err := m.reserve(ctx, pod, req.GetConfig())
	if err != nil {
		return nil, err
	}
	defer release()

	life := new(lifecycle)
	remove := m.calls.add(pod, life)
	defer remove()
	life.begin(StepCreate, m.now())
	failpoint.Hit("forward", "RunPodSandbox", failpoint.Before)
	response, err := next(ctx, request)
	failpoint.Hit("forward", "RunPodSandbox", failpoint.After)
	if err != nil {
		m.afterFailure(ctx, pod, life, err)
		return nil, err
	}
	m.afterStart(ctx, pod, life, req.GetRuntimeHandler())
	return response, nil
}

// hostNetwork says whether the pod shares the node's network namespace.
func hostNetwork(config *runtimeapi.PodSandboxConfig) bool {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// afterStart keeps the steps' times of a sandbox that runs. The caller does not
// wait for the disk: the times are for people.
func (m *Manager) afterStart(ctx context.Context, pod journal.Pod, life *lifecycle, handler string) {
	steps := life.end(m.now())
	key := life.attachment()
	if key == nil {
		m.noteBypass(pod, handler)
		return
	}
	m.Metrics.steps(steps)
	log := m.Log.With("pod", pod, "sandbox", key.ContainerID)
	unlock, err := m.locks.lock(ctx, *key)
	if err != nil {
		log.Warn("the steps' times are not kept", "err", err)
		return
	}
	defer unlock()
	r, err := m.Journal.Get(*key)
	if err != nil || r == nil {
		if err != nil {
			log.Warn("the steps' times are not kept", "err", err)
		}
		return // a sandbox that was removed as soon as it ran
	}
	r.Steps = steps
	failpoint.Hit("journal", "steps", failpoint.Before)
	written := m.Journal.PutLater(r)
	go func() {
		err := <-written
		failpoint.Hit("journal", "steps", failpoint.After)
		if err != nil {
			log.Warn("the steps' times are not kept", "err", err)
		}
	}()
}

// noteBypass reports a pod that the runtime networked without crinetd, once
// until the next pod that it does right. A runtime handler may have a CNI
// configuration of its own, which is then meant.
func (m *Manager) noteBypass(pod journal.Pod, handler string) {
	if handler != "" {
		return
	}
	m.Metrics.bypassed.Inc()
	m.Log.Error("the runtime networked a pod without calling crinet: it does not use "+install.ConfListName+
		"; compare --runtime-cni-conf-dir and --runtime-cni-bin-dir with the conf_dir and bin_dir of the runtime's CNI settings",
		"pod", pod)
}

// afterFailure sees to it that a sandbox that did not come up keeps no network.
// The runtime calls DEL itself as a rule, and before it answers; containerd
// forgets it when that DEL fails.
func (m *Manager) afterFailure(ctx context.Context, pod journal.Pod, life *lifecycle, failure error) {
	key := life.attachment()
	if key == nil {
		return
	}
	switch status.Code(failure) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		// The runtime may still be at it, and even succeed: reconciliation sees
		// what became of the sandbox.
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	log := m.Log.With("pod", pod, "sandbox", key.ContainerID)
	has, err := m.Sandboxes.Has(ctx, key.ContainerID)
	if err != nil {
		log.Warn("cannot ask the runtime what became of a sandbox that failed; reconciliation will", "err", err)
		return
	}
	if has {
		return // the runtime keeps it for StopPodSandbox
	}
	if err := m.detachNow(ctx, *key); err != nil && !errors.Is(err, context.Canceled) {
		log.Warn("a sandbox failed to start and its network is not removed yet", "err", err)
	}
}
