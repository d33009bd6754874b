package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Source is what there is to tell. All answer from memory or the journal.
type Source interface {
	Status() Status
	Plugins() Plugins
	Pods() ([]Pod, error)
}

// Handler serves the source, and the metrics by a handler of their own.
func Handler(source Source, metrics http.Handler, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+StatusPath, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, log, source.Status())
	})
	mux.HandleFunc("GET "+PluginsPath, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, log, source.Plugins())
	})
	mux.HandleFunc("GET "+PodsPath, func(w http.ResponseWriter, _ *http.Request) {
		pods, err := source.Pods()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		reply(w, log, pods)
	})
	mux.Handle("GET "+MetricsPath, metrics)
	return mux
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
