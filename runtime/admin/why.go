package admin

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"

	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/why"
)

// Teller tells what was done for pods.
type Teller interface {
	// Operations returns recorded operations, the newest first.
	Operations(recorder.Query) ([]recorder.Operation, error)
	// Why tells the story of a pod's network; why.ErrUnknown if there is none.
	Why(ctx context.Context, pod string) (*why.Story, error)
}

// handleTeller serves a Teller.
func handleTeller(mux *http.ServeMux, teller Teller, log *slog.Logger) {
	mux.HandleFunc("GET "+OperationsPath, func(w http.ResponseWriter, r *http.Request) {
		query, err := queryOf(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		operations, err := teller.Operations(query)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if operations == nil {
			operations = []recorder.Operation{}
		}
		reply(w, log, operations)
	})
	mux.HandleFunc("GET "+WhyPath, func(w http.ResponseWriter, r *http.Request) {
		story, err := teller.Why(r.Context(), r.URL.Query().Get("pod"))
		switch {
		case errors.Is(err, why.ErrUnknown):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			reply(w, log, story)
		}
	})
}

// queryOf reads the parameters of OperationsPath.
func queryOf(values url.Values) (q recorder.Query, err error) {
	q.Pod = values.Get("pod")
	if text := values.Get("failed"); text != "" {
		if q.Failed, err = strconv.ParseBool(text); err != nil {
			return q, errors.New("failed: want true or false")
		}
	}
	if text := values.Get("limit"); text != "" {
		if q.Limit, err = strconv.Atoi(text); err != nil || q.Limit < 1 {
			return q, errors.New("limit: want a number of at least 1")
		}
	}
	return q, nil
}

// Operations asks for recorded operations, the newest first.
func (c *Client) Operations(ctx context.Context, q recorder.Query) (all []recorder.Operation, err error) {
	values := url.Values{}
	if q.Pod != "" {
		values.Set("pod", q.Pod)
	}
	if q.Failed {
		values.Set("failed", "true")
	}
	if q.Limit > 0 {
		values.Set("limit", strconv.Itoa(q.Limit))
	}
	err = c.get(ctx, OperationsPath+"?"+values.Encode(), &all)
	return all, err
}

// Why asks for the story of a pod's network. The error is ErrNotFound if crinetd knows
// no such pod.
func (c *Client) Why(ctx context.Context, pod string) (story why.Story, err error) {
	err = c.get(ctx, WhyPath+"?"+url.Values{"pod": {pod}}.Encode(), &story)
	return story, err
}
