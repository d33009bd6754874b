package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

const (
	callLimit   = 0.2 // of a call that no hook sees, in milliseconds
	memoryLimit = 40  // MB

	warmups  = 5
	parallel = 4 // of what is only prepared
)

// way is one of the two ways to run a pod.
type way struct {
	client  *node.Client
	handler string
}

// crowd measures crinetd when there are many pods: its memory, what a kubelet's polling
// costs, and the calls that no hook sees, one of them with many containers in its
// answer.
func (s *sides) crowd(ctx context.Context, o options, t *table) error {
	if err := s.use(ctx, networks()[0]); err != nil {
		return err
	}
	pods := make([]*node.Pod, o.pods)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := range pods {
		group.Go(func() (err error) {
			pods[i], err = s.through.RunPod(groupCtx, s.node.PodConfig(fmt.Sprintf("crowd-%d", i)))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	resident, err := s.resident()
	if err != nil {
		return err
	}
	t.addValue(fmt.Sprintf("memory of crinetd with %d pods", o.pods), resident, memoryLimit, "MB")
	if err := s.createContainers(ctx, pods, len(pods)); err != nil {
		return err
	}
	if err := s.steady(ctx, o, t); err != nil {
		return fmt.Errorf("poll as a kubelet: %w", err)
	}
	if err := s.createContainers(ctx, pods, containers-len(pods)); err != nil {
		return err
	}
	if err := s.calls(ctx, o, t); err != nil {
		return err
	}
	if resident, err = s.resident(); err != nil {
		return err
	}
	t.addValue("the same after the calls above", resident, memoryLimit, "MB")
	return s.removeAll(ctx, pods)
}

func (s *sides) removeAll(ctx context.Context, pods []*node.Pod) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, pod := range pods {
		group.Go(func() error { return pod.StopAndRemove(ctx) })
	}
	return group.Wait()
}

// createContainers creates, and does not start, containers spread over the pods.
func (s *sides) createContainers(ctx context.Context, pods []*node.Pod, count int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := range count {
		group.Go(func() error {
			pod := pods[i%len(pods)]
			name := fmt.Sprintf("container-%d-%d", count, i)
			_, err := s.direct.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
				PodSandboxId: pod.ID,
				Config: &runtimeapi.ContainerConfig{
					Metadata:    &runtimeapi.ContainerMetadata{Name: name},
					Image:       &runtimeapi.ImageSpec{Image: node.PauseImage},
					Labels:      kubeletLabels(pod.Config.GetMetadata(), name),
					Annotations: kubeletAnnotations,
					Linux:       &runtimeapi.LinuxContainerConfig{},
				},
				SandboxConfig: pod.Config,
			})
			if err != nil {
				return fmt.Errorf("create container %s: %w", name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// kubeletLabels are those that the kubelet gives to every container.
func kubeletLabels(pod *runtimeapi.PodSandboxMetadata, name string) map[string]string {
	return map[string]string{
		"io.kubernetes.container.name": name,
		"io.kubernetes.pod.name":       pod.GetName(),
		"io.kubernetes.pod.namespace":  pod.GetNamespace(),
		"io.kubernetes.pod.uid":        pod.GetUid(),
	}
}

// kubeletAnnotations are as many and as long as the kubelet's.
var kubeletAnnotations = map[string]string{
	"io.kubernetes.container.hash":                     "8f3c2a71",
	"io.kubernetes.container.restartCount":             "0",
	"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
	"io.kubernetes.container.terminationMessagePolicy": "File",
	"io.kubernetes.pod.terminationGracePeriod":         "30",
}

// resident is crinetd's VmRSS in MB (proc_pid_status(5)).
func (s *sides) resident() (float64, error) {
	pid, err := s.node.CrinetdPID()
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read crinetd's memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kB, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kB * 1024 / 1e6, err
		}
	}
	return 0, errors.New("read crinetd's memory: its status has no VmRSS")
}

// calls measures calls that no hook sees. What is measured is the way of the
// bytes: neither side's answers are decoded.
func (s *sides) calls(ctx context.Context, o options, t *table) error {
	listed, err := s.through.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	if len(listed.GetContainers()) != containers {
		return fmt.Errorf("ListContainers lists %d containers, want %d", len(listed.GetContainers()), containers)
	}
	version, err := s.alternate(ctx, o.calls, runtimeapi.RuntimeService_Version_FullMethodName, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	list, err := s.alternate(ctx, o.calls/3, runtimeapi.RuntimeService_ListContainers_FullMethodName, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	t.addDifference("Version", version, callLimit)
	t.addDifference(fmt.Sprintf("ListContainers, %d in %d KB", containers, proto.Size(listed)>>10), list, callLimit)
	return nil
}

// alternate makes a call both ways in turn. Who is first changes.
func (s *sides) alternate(ctx context.Context, rounds int, method string, request proto.Message) (series, error) {
	conns := []*grpc.ClientConn{direct: s.direct.Conn, through: s.through.Conn}
	const discarded = 50
	var all series
	for round := range discarded + rounds {
		times := make([]time.Duration, 2)
		for _, i := range []int{round % 2, 1 - round%2} {
			var size int
			start := time.Now()
			if err := conns[i].Invoke(ctx, method, request, &size, grpc.ForceCodecV2(sizeCodec{})); err != nil {
				return nil, err
			}
			times[i] = time.Since(start)
		}
		if round >= discarded {
			all.add(times...)
		}
	}
	return all, nil
}

// sizeCodec takes of an answer its size alone.
type sizeCodec struct{}

func (sizeCodec) Marshal(v any) (mem.BufferSlice, error) {
	data, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(data)}, err
}

func (sizeCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*int) = data.Len()
	return nil
}

func (sizeCodec) Name() string { return "proto" }
