// Command critest runs the conformance tests of sigs.k8s.io/cri-tools on a real
// node twice, at containerd's socket and through crinetd, and compares: what
// passes at containerd must pass through crinetd. Some specs fail here at both,
// for want of a registry. Run it by `sudo make critest`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/crinet-project/crinet/integration/command"
	"github.com/crinet-project/crinet/integration/node"
)

// network is what the pods of both runs get.
const network = `{"cniVersion":"1.0.0","name":"critest","plugins":[
	{"type":"bridge","bridge":"critest0","isDefaultGateway":true,"ipMasq":true,"hairpinMode":true,
	 "ipam":{"type":"host-local","ranges":[[{"subnet":"10.20.0.0/16"}]]}},
	{"type":"portmap","capabilities":{"portMappings":true}}]}
`

func main() { command.Main("critest", run) }

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("critest", flag.ContinueOnError)
	timeout := flags.Duration("timeout", 20*time.Minute, "for both runs together")
	focus := flags.String("focus", "", "run only the specs that match this regular expression")
	containerd := flags.String("containerd", string(node.Containerd24), "the release of containerd: 2.4, 1.7 or debian")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	options := node.Options{Containerd: node.Containerd(*containerd)}
	if !slices.Contains(node.Containerds(), options.Containerd) {
		return fmt.Errorf("-containerd=%s: want one of %q", *containerd, node.Containerds())
	}
	kit, err := node.NewKit(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kit.Close()) }()
	if err := kit.BuildCrinet(ctx, false); err != nil {
		return err
	}
	direct, err := runAt(ctx, kit, options, node.ContainerdSocket, *focus, out)
	if err != nil {
		return err
	}
	through, err := runAt(ctx, kit, options, node.CrinetdSocket, *focus, out)
	if err != nil {
		return err
	}
	return compare(direct, through, out)
}

// runAt runs the specs at one socket of a fresh node, and returns their outcome
// by name: passed, failed, ….
func runAt(ctx context.Context, kit *node.Kit, options node.Options, socket, focus string, out io.Writer) (outcome map[string]string, err error) {
	n, err := kit.Start(ctx, options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if err := n.WriteConf("10-critest.conflist", network); err != nil {
		return nil, err
	}
	if err := n.StartContainerd(ctx); err != nil {
		return nil, err
	}
	if socket == node.CrinetdSocket {
		if err := n.StartCrinetd(ctx, "--network-plugin=cni"); err != nil {
			return nil, err
		}
	}
	client, err := n.Client(socket)
	if err != nil {
		return nil, err
	}
	if _, err := client.AwaitNetwork(ctx, true); err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "Running the specs at %s, containerd %s; this takes some minutes ...\n", socket, options.Containerd)
	const report = "/run/critest.json"
	cmd := n.Command(ctx, kit.Tool("critest"), "--runtime-endpoint=unix://"+socket,
		"--image-endpoint=unix://"+socket, "--registry-prefix=crinet.test", "--ginkgo.json-report="+report, "--ginkgo.focus="+focus)
	start := time.Now()
	if err := n.Start(cmd); err != nil {
		return nil, err
	}
	failed := cmd.Wait() // specs that fail are in the report
	data, err := os.ReadFile(n.Path(report))
	if err != nil {
		return nil, errors.Join(failed, err)
	}
	outcome, err = parse(data)
	passed := 0
	for _, state := range outcome {
		if state == "passed" {
			passed++
		}
	}
	fmt.Fprintf(out, "%d specs ran, %d passed, in %v\n", len(outcome), passed, time.Since(start).Round(time.Second))
	return outcome, err
}

// parse reads ginkgo's JSON report.
func parse(data []byte) (map[string]string, error) {
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeText            string
			State                   string
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	outcome := make(map[string]string)
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			if spec.State == "skipped" || spec.State == "pending" || spec.LeafNodeText == "" {
				continue
			}
			name := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " / ")
			outcome[name] = spec.State
		}
	}
	return outcome, nil
}

// compare fails when a spec passes at containerd and not through crinetd.
func compare(direct, through map[string]string, out io.Writer) error {
	var lost []string
	for name, state := range direct {
		switch {
		case state == "passed" && through[name] != "passed":
			lost = append(lost, fmt.Sprintf("%s: %q through crinetd", name, through[name]))
		case state != "passed" && through[name] == "passed":
			fmt.Fprintf(out, "passes only through crinetd: %s\n", name)
		}
	}
	if len(lost) > 0 {
		slices.Sort(lost)
		return fmt.Errorf("%d specs pass at containerd only:\n%s", len(lost), strings.Join(lost, "\n"))
	}
	fmt.Fprintln(out, "What passes at containerd passes through crinetd.")
	return nil
}
