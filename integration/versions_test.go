package integration_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// releaseBefore is the commit of the release before this one. It knows nothing of
// sockets that systemd holds.
const releaseBefore = "48b1853"

// buildBefore builds the release before this one, once.
var buildBefore = sync.OnceValues(func() (string, error) {
	return kit.BuildEarlier(context.Background(), releaseBefore)
})

// flowTimeout is how long a flow waits for an answer before it counts as broken.
const flowTimeout = 20 * time.Second

// longFlow is one TCP connection or UDP flow on which a client asks again and again.
type longFlow struct {
	end     context.CancelFunc
	done    chan struct{}
	answers int
	err     error // why it broke
}

// startLongFlow begins a flow from outside through a hostPort.
func (n *testNode) startLongFlow(network string, port int32, want string) *longFlow {
	n.t.Helper()
	conn, err := n.Outside.Dial(n.ctx, network, net.JoinHostPort(node.NodeIPv4, fmt.Sprint(port)))
	n.ok(err)
	ctx, cancel := context.WithCancel(n.ctx)
	f := &longFlow{end: cancel, done: make(chan struct{})}
	ask := askOnUDP
	if network == "tcp" {
		ask = askOnTCP
	}
	reader := bufio.NewReader(conn)
	go func() {
		defer close(f.done)
		defer conn.Close()
		for ctx.Err() == nil && f.err == nil {
			f.err = conn.SetDeadline(time.Now().Add(flowTimeout))
			var answer string
			if f.err == nil {
				answer, f.err = ask(conn, reader)
			}
			if f.err == nil && !strings.HasPrefix(answer, want+" ") {
				f.err = fmt.Errorf("answered by %q, want %s", answer, want)
			}
			f.answers++
			time.Sleep(5 * time.Millisecond) // the rate of a client, not a wait
		}
	}()
	return f
}

func askOnTCP(conn net.Conn, reader *bufio.Reader) (string, error) {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: pod\r\n\r\n"); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	return string(body), errors.Join(err, response.Body.Close())
}

// askOnUDP asks again when no answer comes: a datagram may be lost, a flow must not.
func askOnUDP(conn net.Conn, _ *bufio.Reader) (string, error) {
	end := time.Now().Add(flowTimeout)
	answer := make([]byte, 1024)
	for {
		if _, err := io.WriteString(conn, "x"); err != nil {
			return "", err
		}
		if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return "", err
		}
		size, err := conn.Read(answer)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return string(answer[:size]), err
		}
	}
}

// unbroken ends a flow, which must have gone on to the end.
func (f *longFlow) unbroken(t *testing.T, what string) {
	t.Helper()
	f.end()
	<-f.done
	if f.err != nil || f.answers < 10 {
		t.Errorf("%s broke after %d answers: %v", what, f.answers, f.err)
	}
}

// change ends crinetd and starts one of another release. It returns how long nobody
// answered.
func (n *testNode) change(dir string) time.Duration {
	n.t.Helper()
	n.ok(n.StopCrinetd())
	ended := time.Now()
	n.UseCrinet(dir)
	n.ok(n.startRelease())
	n.awaitNetwork(n.client(node.CrinetdSocket), true)
	return time.Since(ended)
}

// startRelease starts a crinetd that may be of the release before this one, which does
// not ask the runtime where its conf dir is.
func (n *testNode) startRelease() error {
	return n.StartCrinetd(n.ctx, append([]string{"--runtime-cni-conf-dir=" + n.RuntimeConfDir()}, cniFlags...)...)
}

// TestUpgradeAndDowngrade changes a node with running pods from the release before to
// this one, back, and to this one again. Flows through hostPorts never break, and each
// release shows and removes the pods of the other.
func TestUpgradeAndDowngrade(t *testing.T) {
	t.Parallel()
	before, err := buildBefore()
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.UseCrinet(before)
	n.ok(n.startRelease())
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	old := n.servePod(client, "old", bothPorts("", 9000)...)
	oldToo := n.servePod(client, "old-too", bothPorts("", 9001)...)
	flows := map[string]*longFlow{
		"TCP to the old pod": n.startLongFlow("tcp", 9000, "old"),
		"UDP to the old pod": n.startLongFlow("udp", 9000, "old"),
	}

	t.Logf("upgrade: nobody served for %v", n.change("").Round(time.Millisecond))
	client = n.client(node.CrinetdSocket)
	n.showsPods("old", "old-too")
	fresh := n.servePod(client, "fresh", bothPorts("", 9002)...)
	freshToo := n.servePod(client, "fresh-too", bothPorts("", 9003)...)
	flows["TCP to the new pod"] = n.startLongFlow("tcp", 9002, "fresh")
	flows["UDP to the new pod"] = n.startLongFlow("udp", 9002, "fresh")
	n.ok(oldToo.StopAndRemove(n.ctx))
	n.silent(n.Outside, node.NodeIPv4, 9001)

	t.Logf("downgrade: nobody served for %v", n.change(before).Round(time.Millisecond))
	client = n.client(node.CrinetdSocket)
	n.showsPods("old", "fresh", "fresh-too")
	n.ok(client.RemovePod(n.ctx, freshToo.ID))
	n.silent(n.Outside, node.NodeIPv4, 9003)
	n.answers(n.Outside, node.NodeIPv4, 9002, "fresh")

	t.Logf("upgrade again: nobody served for %v", n.change("").Round(time.Millisecond))
	client = n.client(node.CrinetdSocket)
	n.showsPods("old", "fresh")
	for what, f := range flows {
		f.unbroken(t, what)
	}
	n.ok(client.RemovePod(n.ctx, old.ID))
	n.ok(client.RemovePod(n.ctx, fresh.ID))
	n.noLeftovers()
}

// showsPods waits until crinetctl lists these pods. What the other release removed is
// still in this one's cache, and is undone once more.
func (n *testNode) showsPods(want ...string) {
	n.t.Helper()
	slices.Sort(want)
	n.awaitOK(cleanTimeout, func() error {
		states, err := n.PodStates(n.ctx)
		if err != nil {
			return err
		}
		var names []string
		for _, s := range states {
			names = append(names, s.Name)
		}
		if slices.Sort(names); !slices.Equal(names, want) {
			return fmt.Errorf("crinetctl pods shows %q, want %q", names, want)
		}
		return nil
	})
}

// TestVersionsApart runs pods with plugin and daemon of different releases, as in the
// middle of an upgrade and of a downgrade.
func TestVersionsApart(t *testing.T) {
	t.Parallel()
	before, err := buildBefore()
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"crinet", "crinetd"} {
		t.Run("earlier "+program, func(t *testing.T) {
			t.Parallel()
			dir, err := kit.Mix(program, before)
			if err != nil {
				t.Fatal(err)
			}
			n := newNode(t)
			n.ok(n.WriteConf("10-mynet.conf", seedBridge))
			n.ok(n.StartContainerd(n.ctx))
			n.UseCrinet(dir)
			n.ok(n.startRelease())
			client := n.client(node.CrinetdSocket)
			n.awaitNetwork(client, true)
			pod := n.servePod(client, "pod", bothPorts("", 9000)...)
			n.answers(n.Outside, node.NodeIPv4, 9000, "pod")
			n.ok(pod.StopAndRemove(n.ctx))
			// Errors cross as well, with their code and text.
			n.ok(os.Remove(n.Path(node.ConfDir + "/10-mynet.conf")))
			n.awaitNetwork(client, false)
			bare := n.client(node.ContainerdSocket)
			if _, err := bare.RunPod(n.ctx, n.PodConfig("refused")); err == nil || !strings.Contains(err.Error(), "network not ready") {
				t.Errorf("a pod without a network: %v", err)
			}
			n.removeAll(bare)
			n.ok(n.WriteConf("10-mynet.conf", seedBridge))
			n.awaitNetwork(client, true)
			n.noLeftovers()
		})
	}
}
