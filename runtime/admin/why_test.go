package admin

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/why"
)

// teller notes what it is asked.
type teller struct {
	query recorder.Query
	pod   string
	err   error
}

func (t *teller) Operations(q recorder.Query) ([]recorder.Operation, error) {
	t.query = q
	return nil, t.err
}

func (t *teller) Why(_ context.Context, pod string) (*why.Story, error) {
	t.pod = pod
	return &why.Story{Verdict: why.Stands}, t.err
}

func TestTeller(t *testing.T) {
	for _, c := range []struct {
		path  string
		err   error
		code  int
		body  string // a part of it
		query recorder.Query
		pod   string
	}{
		{OperationsPath, nil, http.StatusOK, "[]", recorder.Query{}, ""},
		{OperationsPath + "?pod=a%2Fb&failed=true&limit=7", nil, http.StatusOK, "[]", recorder.Query{Pod: "a/b", Failed: true, Limit: 7}, ""},
		{OperationsPath + "?limit=none", nil, http.StatusBadRequest, "limit", recorder.Query{}, ""},
		{OperationsPath + "?limit=-1", nil, http.StatusBadRequest, "limit", recorder.Query{}, ""},
		{OperationsPath + "?failed=perhaps", nil, http.StatusBadRequest, "failed", recorder.Query{}, ""},
		{OperationsPath, errors.New("no disk"), http.StatusInternalServerError, "no disk", recorder.Query{}, ""},
		{WhyPath + "?pod=a%2Fb", nil, http.StatusOK, `"verdict":"stands"`, recorder.Query{}, "a/b"},
		{WhyPath + "?pod=x", why.ErrUnknown, http.StatusNotFound, "no operation", recorder.Query{}, "x"},
		{WhyPath + "?pod=x", errors.New("no disk"), http.StatusInternalServerError, "no disk", recorder.Query{}, "x"},
	} {
		asked, mux, answer := &teller{err: c.err}, http.NewServeMux(), httptest.NewRecorder()
		handleTeller(mux, asked, slog.New(slog.DiscardHandler))
		mux.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, c.path, nil))
		if answer.Code != c.code || !strings.Contains(answer.Body.String(), c.body) {
			t.Errorf("%s: %d %s, want %d %s", c.path, answer.Code, answer.Body, c.code, c.body)
		}
		if diff := cmp.Diff(c.query, asked.query); diff != "" || asked.pod != c.pod {
			t.Errorf("%s asked for %q, %s", c.path, asked.pod, diff)
		}
	}
}
