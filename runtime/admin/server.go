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

// maxRequest bounds a request's body in bytes.
const maxRequest = 64 << 10

// Source answers the requests. All methods but the last three answer from memory or the
// journal.
type Source interface {
	Teller
	Status() Status
	Plugins() Plugins
	Pods() ([]Pod, error)
	// Forget gives up the removal of a sandbox's network and returns what it forgot.
	Forget(context.Context, Forget) ([]Pod, error)
	// Try adds a namespace of crinetd's own to the selected network and removes it.
	Try(context.Context) (Trial, error)
	// Lend begins a loan, which ends with its context.
	Lend(context.Context, Lend) (Loan, error)
}

// Handler returns a handler that serves source, and metrics at MetricsPath.
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
	mux.HandleFunc("POST "+ForgetPath, func(w http.ResponseWriter, r *http.Request) {
		var what Forget
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&what); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		pods, err := source.Forget(r.Context(), what)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		reply(w, log, pods)
	})
	mux.HandleFunc("POST "+TrialPath, func(w http.ResponseWriter, r *http.Request) {
		// The network's plugins have their own limit, --cni-timeout.
		if err := http.NewResponseController(w).SetWriteDeadline(time.Time{}); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		trial, err := source.Try(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		reply(w, log, trial)
	})
	mux.Handle("POST "+LendPath, lender{source, log})
	handleTeller(mux, source, log)
	mux.Handle("GET "+MetricsPath, metrics)
	return mux
}

func reply(w http.ResponseWriter, log *slog.Logger, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		log.Debug("an answer on admin.sock could not be written", "err", err)
	}
}

// lastAnswers bounds the wait for answers under way when Serve ends.
const lastAnswers = time.Second

// Serve serves a handler on a listener until ctx ends. Answers under way get a
// second more.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastAnswers)
		defer cancel()
		if server.Shutdown(last) != nil {
			_ = server.Close() // an answer that is lost now does no harm
		}
	})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	<-ended
	return nil
}
