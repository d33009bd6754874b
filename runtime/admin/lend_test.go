package admin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeLoan lends this process's own namespace.
type fakeLoan struct {
	ctx    context.Context
	adding chan struct{} // closed when Add waits for the loan's end; nil if it does not
	orders []string
}

func (l *fakeLoan) Add(ctx context.Context, hostPorts bool) (*Lent, error) {
	if l.adding != nil {
		close(l.adding)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l.orders = append(l.orders, "add")
	return &Lent{ContainerID: "test-1", NetNS: "/proc/self/ns/net", HostPort: 20000, Warnings: []string{strings.Repeat("long", 100_000)}}, nil
}

func (l *fakeLoan) Check(_ context.Context, index int) error {
	l.orders = append(l.orders, "check")
	if index == 1 {
		return errors.New("the mask is 24")
	}
	return nil
}

func (l *fakeLoan) Return(context.Context) ([]string, error) {
	l.orders = append(l.orders, "return")
	return []string{"a record"}, nil
}

// fakeSource lends.
type fakeSource struct {
	Source
	loan   *fakeLoan
	asked  Lend
	refuse error
}

func (s *fakeSource) Lend(ctx context.Context, what Lend) (Loan, error) {
	s.asked, s.loan.ctx = what, ctx
	return s.loan, s.refuse
}

// lending serves a source, and returns a client and the socket.
func lending(t *testing.T, s *fakeSource) (*Client, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "lend")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, Handler(s, http.NotFoundHandler(), slog.New(slog.DiscardHandler))) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return NewClient(socket), socket
}

// over waits for the end of a loan.
func (l *fakeLoan) over(t *testing.T) {
	t.Helper()
	select {
	case <-l.ctx.Done():
	case <-time.After(20 * time.Second):
		t.Error("the loan does not end")
	}
}

// Orders are obeyed in turn, the namespace comes as a file, and the end of the
// connection is that of the loan.
func TestBorrow(t *testing.T) {
	s := &fakeSource{loan: new(fakeLoan)}
	client, _ := lending(t, s)
	b, err := client.Borrow(t.Context(), Lend{Who: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	lent, space, err := b.Add(true)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	got, err := space.Stat()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Stat("/proc/self/ns/net")
	if err != nil || !os.SameFile(got, want) || lent.HostPort != 20000 || s.asked.Who != "a test" {
		t.Errorf("lent is %s, another namespace than %s (%v)", got.Name(), want.Name(), err)
	}
	if err := errors.Join(b.Check(0)); err != nil {
		t.Error(err)
	}
	if err := b.Check(1); err == nil || err.Error() != "the mask is 24" {
		t.Errorf("a CHECK that fails: %v", err)
	}
	if left, err := b.Return(); err != nil || !slices.Equal(left, []string{"a record"}) {
		t.Errorf("left: %q, %v", left, err)
	}
	if _, _, err := b.order(Order{Do: "dance"}); err == nil {
		t.Error("an unknown order is obeyed")
	}
	if s.loan.ctx.Err() != nil {
		t.Error("the loan is over before its connection")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	s.loan.over(t)
	if !slices.Equal(s.loan.orders, []string{"add", "check", "check", "return"}) {
		t.Errorf("the orders were %q", s.loan.orders)
	}
}

// A borrower that is gone in the middle of an order ends the loan, and so does one
// whose context ends, or that sends nonsense.
func TestBorrowerIsGone(t *testing.T) {
	for _, how := range []string{"context", "connection", "nonsense"} {
		t.Run(how, func(t *testing.T) {
			s := &fakeSource{loan: &fakeLoan{adding: make(chan struct{})}}
			client, _ := lending(t, s)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			b, err := client.Borrow(ctx, Lend{})
			if err != nil {
				t.Fatal(err)
			}
			failed := make(chan error, 1)
			go func() {
				_, _, err := b.Add(false)
				failed <- err
			}()
			<-s.loan.adding
			switch how {
			case "context":
				cancel()
			case "connection":
				err = b.Close()
			case "nonsense":
				_, err = b.conn.Write([]byte("{\n"))
			}
			if err != nil {
				t.Error(err)
			}
			s.loan.over(t)
			if err := <-failed; err == nil {
				t.Error("the ADD succeeds")
			}
		})
	}
}

// A refusal comes with its words; what is no request for a loan is refused as well.
func TestLendIsRefused(t *testing.T) {
	s := &fakeSource{loan: new(fakeLoan), refuse: errors.New("lent already")}
	client, socket := lending(t, s)
	_, err := client.Borrow(t.Context(), Lend{})
	if refused := new(RefusedError); !errors.As(err, &refused) || refused.Status != http.StatusConflict || refused.Said != "lent already" {
		t.Errorf("a second loan: %v", err)
	}
	ask := func(upgrade, body string) int {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://crinetd"+LendPath, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if upgrade != "" {
			request.Header.Set("Upgrade", upgrade)
		}
		response, err := client.http.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Body.Close(); err != nil {
			t.Error(err)
		}
		return response.StatusCode
	}
	if got := ask("", "{}"); got != http.StatusUpgradeRequired {
		t.Errorf("without an upgrade: %d", got)
	}
	if got := ask(lendProtocol, "{"); got != http.StatusBadRequest {
		t.Errorf("half a request: %d", got)
	}
	if got := ask(lendProtocol, `{"who": "`+strings.Repeat("x", maxLend)+`"}`); got != http.StatusBadRequest {
		t.Errorf("a request that is too large: %d", got)
	}
	if _, err := NewClient(socket+"x").Borrow(t.Context(), Lend{}); err == nil || errors.As(err, new(*RefusedError)) {
		t.Errorf("without crinetd: %v", err)
	}
}
