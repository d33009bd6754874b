package integration_test

import (
	"context"
	"os/exec"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// statusAnswer is one answer to Status.
type statusAnswer struct {
	began   time.Time
	took    time.Duration
	ready   bool // RuntimeReady
	message string
	err     error
}

// askAsKubelet asks for Status until ctx ends.
func askAsKubelet(ctx context.Context, client *node.Client) (answers []statusAnswer) {
	often(ctx, func() {
		a := statusAnswer{began: time.Now()}
		resp, err := client.Runtime.Status(context.WithoutCancel(ctx), &runtimeapi.StatusRequest{})
		a.took, a.err = time.Since(a.began), err
		for _, c := range resp.GetStatus().GetConditions() {
			if c.GetType() == runtimeapi.RuntimeReady {
				a.ready, a.message = c.GetStatus(), c.GetMessage()
			}
		}
		answers = append(answers, a)
	})
	return answers
}

const (
	// soonEnough is how long a kubelet may wait for Status, and usual what it waits
	// as a rule.
	soonEnough, usual = 50 * time.Millisecond, 10 * time.Millisecond
	// slower is how much slower than containerd crinetd may be on a busy machine:
	// in the tests it runs under the race detector.
	slower = 5
	// enough is how many answers tell of the slowest in a hundred.
	enough = 100
)

// likeKubelet asks Status every 100 ms until stop is called, which fails the test
// if an answer was an error, or if answers were late and the machine does not
// explain that. crinetd and containerd must not be restarted in between.
//
// A busy machine makes every answer late. How late, the call Version shows that
// containerd answers at its own socket, where it has nothing to do for it.
func (n *testNode) likeKubelet(client *node.Client) (stop func()) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.ctx)
	answers, controls := make(chan []statusAnswer, 1), make(chan []time.Duration, 1)
	direct := n.client(node.ContainerdSocket)
	go func() { answers <- askAsKubelet(ctx, client) }()
	go func() { controls <- versionTimes(ctx, direct) }()
	return func() {
		n.t.Helper()
		cancel()
		var took []time.Duration
		for _, a := range <-answers {
			if a.err != nil {
				n.t.Errorf("Status at %v: %v", a.began.Format(time.TimeOnly), a.err)
			}
			took = append(took, a.took)
		}
		n.judge(took, <-controls)
	}
}

// judge compares the times of Status with those of the control.
func (n *testNode) judge(took, control []time.Duration) {
	n.t.Helper()
	if len(took) < 10 || len(control) < 10 {
		n.t.Logf("too few answers of Status to judge: %d", len(took))
		return
	}
	slices.Sort(took)
	slices.Sort(control)
	median, late := took[len(took)/2], took[len(took)*99/100]
	machine, machineLate := control[len(control)/2], control[len(control)*99/100]
	n.t.Logf("%d answers of Status: median %v, 99 of 100 within %v; the control: median %v, 99 of 100 within %v",
		len(took), median, late, machine, machineLate)
	if median > usual+slower*machine {
		n.t.Errorf("Status took %v at the median, which the machine does not explain", median)
	}
	if len(took) >= enough && late > soonEnough+slower*machineLate {
		n.t.Errorf("Status took %v in 1 of 100 calls, which the machine does not explain", late)
	}
}

// versionTimes asks for Version until ctx ends.
func versionTimes(ctx context.Context, client *node.Client) []time.Duration {
	return times(ctx, func() error {
		_, err := client.Runtime.Version(context.WithoutCancel(ctx), &runtimeapi.VersionRequest{})
		return err
	})
}

// processTimes starts and ends a small process until ctx ends: the control where
// containerd does not answer.
func processTimes(ctx context.Context) []time.Duration {
	return times(ctx, func() error { return exec.CommandContext(context.WithoutCancel(ctx), "true").Run() })
}

// times measures what succeeds of something that is done every 100 ms until ctx ends.
func times(ctx context.Context, do func() error) (took []time.Duration) {
	often(ctx, func() {
		began := time.Now()
		if err := do(); err == nil {
			took = append(took, time.Since(began))
		}
	})
	return took
}

// often does something every 100 ms until ctx ends.
func often(ctx context.Context, do func()) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}
