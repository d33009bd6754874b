// Package admin is what crinetd tells its operator: JSON and Prometheus metrics
// over HTTP on admin.sock. crinetctl is its client. It only reads.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Paths of the service.
const (
	StatusPath  = "/v1/status"
	PodsPath    = "/v1/pods"
	MetricsPath = "/metrics"
)

// Status is the node's network as crinetd sees it.
type Status struct {
	Version string `json:"version"`
	// Plugin is the selected network plugin: cni or noop.
	Plugin string `json:"plugin"`
	// Ready says whether new pods can get a network; Reason why not.
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
	// Network and NetworkFile name the network that new pods get.
	Network     string `json:"network,omitempty"`
	NetworkFile string `json:"networkFile,omitempty"`
	// PodCIDRs are the node's, as far as they are known.
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// UndoPending counts attachments that are still to be removed.
	UndoPending int `json:"undoPending"`
	// Networks are the usable networks in the conf dir, in order; Problems what
	// is not as it should be there and in the bin dirs.
	Networks []Network `json:"networks,omitempty"`
	Problems []Problem `json:"problems,omitempty"`
}

// Network is a usable network.
type Network struct {
	Name       string   `json:"name"`
	File       string   `json:"file"`
	CNIVersion string   `json:"cniVersion"`
	Plugins    []string `json:"plugins"`
	// Stale says why the network is an earlier version of its file.
	Stale string `json:"stale,omitempty"`
}

// Problem is a file that cannot be used, and why.
type Problem struct {
	File   string `json:"file"`
	Reason string `json:"reason"`
}

// Pod is a sandbox with a network.
type Pod struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	UID       string   `json:"uid"`
	SandboxID string   `json:"sandboxID"`
	State     string   `json:"state"`
	Network   string   `json:"network"`
	NetNS     string   `json:"netns"`
	Addresses []string `json:"addresses"`
	HostPorts []string `json:"hostPorts"`
	Steps     []Step   `json:"steps"`
	Tries     int      `json:"tries,omitempty"`
	LastError string   `json:"lastError,omitempty"`
}

// Step is a step of a sandbox's lifecycle.
type Step struct {
	Step  string    `json:"step"`
	Start time.Time `json:"start"`
	// Duration is in seconds.
	Duration float64 `json:"duration"`
}

// Source is what there is to tell. Both answer from memory or the journal.
type Source interface {
	Status() Status
	Pods() ([]Pod, error)
}

// Handler serves the source and the metrics.
func Handler(source Source, metrics prometheus.Gatherer, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+StatusPath, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, log, source.Status())
	})
	mux.HandleFunc("GET "+PodsPath, func(w http.ResponseWriter, _ *http.Request) {
		pods, err := source.Pods()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		reply(w, log, pods)
	})
	mux.Handle("GET "+MetricsPath, MetricsHandler(metrics))
	return mux
}

// MetricsHandler serves the metrics alone, for --metrics-bind-address.
func MetricsHandler(metrics prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})
}

func reply(w http.ResponseWriter, log *slog.Logger, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		log.Debug("an answer on admin.sock was not taken", "err", err)
	}
}

// Serve serves a handler on a listener until ctx ends.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		_ = server.Close() // answers are small and nobody depends on the last one
	})
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
