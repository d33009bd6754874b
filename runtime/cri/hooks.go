package cri

import (
	"context"
	"log/slog"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/proxy"
	"github.com/crinet-project/crinet/runtime/upstream"
)

// Engine attaches and detaches (package engine).
type Engine interface {
	// Begin admits a pod; nothing exists of it when it is refused.
	Begin(context.Context, journal.Pod, []hostport.Mapping) (*engine.Flight, error)
	// Ending says that the runtime is about to be asked to end a sandbox.
	Ending(id string) (over func())
	// DetachSandbox makes sure that a sandbox's network is gone.
	DetachSandbox(ctx context.Context, id string) error
	// Ready says whether new pods can get a network.
	Ready() error
}

// Runtime is what crinetd knows of the container runtime (package upstream).
type Runtime interface {
	// Status returns the runtime's last answer to Status, a fresh one if that
	// does not take long.
	Status(context.Context) upstream.Answer
}

// Installation is crinet's CNI configuration at the runtime (package install).
type Installation interface {
	// Ready says whether the runtime uses crinet for its pods; the error names
	// what is wrong and the file to change. It answers from memory.
	Ready() error
	// Serves says whether crinet networks the pods of a runtime handler.
	Serves(handler string) bool
}

// PodCIDRs are the node's (package engine).
type PodCIDRs interface {
	Set(text string) (changed bool, err error)
}

// Recorder keeps what failed, for people (package recorder).
type Recorder interface {
	Failed(verb, by string, about *journal.Record, err error)
}

// Config names the parts that the hooks work with. All are required but the
// last five, and Installation under noop.
type Config struct {
	Log          *slog.Logger
	Engine       Engine
	Runtime      Runtime
	Installation Installation
	PodCIDRs     PodCIDRs
	Metrics      *Metrics
	// Remove removes a sandbox at the runtime that runs without its network.
	Remove func(ctx context.Context, id string) error
	// Noop says that the runtime networks its pods itself.
	Noop bool
	// Addresses returns why the next pod would get no address, and of which network;
	// nil if it would. It does not wait.
	Addresses func() (network string, err error)
	// Notice is what an operator should know although the network is ready. It
	// answers from memory.
	Notice func() string
	// View is crinetd's entry in the verbose info of Status.
	View func() any
	// Recorder is told of pods that were refused or whose sandbox failed.
	Recorder Recorder
	// Remaking returns the ids of sandboxes that are to be made anew, nil if there are
	// none; it answers from memory. Nil never has any.
	Remaking func() map[string]bool
}

// Hooks are the hooked methods.
type Hooks struct {
	log          *slog.Logger
	engine       Engine
	runtime      Runtime
	installation Installation
	podCIDRs     PodCIDRs
	metrics      *Metrics
	remove       func(ctx context.Context, id string) error
	noop         bool
	addresses    func() (network string, err error)
	notice       func() string
	view         func() any
	recorder     Recorder
	remaking     func() map[string]bool
	bypass       once
}

// New returns the hooks.
func New(c Config) *Hooks {
	h := &Hooks{
		log: c.Log, engine: c.Engine, runtime: c.Runtime, installation: c.Installation, podCIDRs: c.PodCIDRs,
		metrics: c.Metrics, remove: c.Remove, noop: c.Noop, addresses: c.Addresses, notice: c.Notice, view: c.View, recorder: c.Recorder, remaking: c.Remaking,
	}
	if h.addresses == nil {
		h.addresses = func() (string, error) { return "", nil }
	}
	if h.notice == nil {
		h.notice = func() string { return "" }
	}
	if h.view == nil {
		h.view = func() any { return struct{}{} }
	}
	return h
}

// Methods returns the hooks by the methods' full names.
func (h *Hooks) Methods() map[string]proxy.Hook {
	methods := map[string]proxy.Hook{
		runtimeapi.RuntimeService_RunPodSandbox_FullMethodName:       h.RunPodSandbox,
		runtimeapi.RuntimeService_RestorePod_FullMethodName:          h.RestorePod,
		runtimeapi.RuntimeService_StopPodSandbox_FullMethodName:      h.StopPodSandbox,
		runtimeapi.RuntimeService_RemovePodSandbox_FullMethodName:    h.RemovePodSandbox,
		runtimeapi.RuntimeService_Status_FullMethodName:              h.Status,
		runtimeapi.RuntimeService_UpdateRuntimeConfig_FullMethodName: h.UpdateRuntimeConfig,
	}
	if h.remaking != nil {
		methods[runtimeapi.RuntimeService_PodSandboxStatus_FullMethodName] = h.PodSandboxStatus
		methods[runtimeapi.RuntimeService_ListPodSandbox_FullMethodName] = h.ListPodSandbox
	}
	return methods
}

// Drained returns the methods that change a sandbox's network. Their calls are
// finished before crinetd ends.
func Drained() []string {
	return []string{
		runtimeapi.RuntimeService_RunPodSandbox_FullMethodName,
		runtimeapi.RuntimeService_RestorePod_FullMethodName,
		runtimeapi.RuntimeService_StopPodSandbox_FullMethodName,
		runtimeapi.RuntimeService_RemovePodSandbox_FullMethodName,
	}
}

// Ready says whether new pods can get a network: crinet's side and the
// runtime's. It answers from memory.
func (h *Hooks) Ready() error {
	if err := h.engine.Ready(); err != nil || h.noop {
		return err
	}
	return h.installation.Ready()
}
