// Command clusterdemo starts a Kubernetes cluster with crinetd on its nodes, all
// of it in namespaces of its own, runs a Deployment on it and fetches a page
// through a hostPort. Then it removes all of it. Run it by `sudo make cluster`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/command"
	"github.com/crinet-project/crinet/integration/node"
)

// timeout bounds the whole run.
const timeout = 10 * time.Minute

const hostPort = "8080"

// web is a Deployment with a hostPort.
const web = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: ` + node.TestImage + `
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 80, hostPort: ` + hostPort + `}]
`

func main() { command.Main("cluster", run) }

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	keep := flags.Bool("keep", false, "leave the cluster running")
	remove := flags.String("remove", "", "remove the kept nodes with these directories, separated by commas")
	nodes := flags.Int("nodes", 1, "how many nodes the cluster has")
	proxy := flags.String("proxy-mode", "iptables", "kube-proxy's mode: iptables or nftables")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *remove != "" {
		for dir := range strings.SplitSeq(*remove, ",") {
			err = errors.Join(err, node.Remove(dir))
		}
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now()
	say := func(step string) { fmt.Fprintf(out, "%6.1f s  %s\n", time.Since(began).Seconds(), step) }
	say("building the test images and helper programs")
	kit, err := node.NewKit(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kit.Close()) }()
	if err := kit.BuildCrinet(ctx, false); err != nil {
		return err
	}
	c, err := cluster.Start(ctx, kit, cluster.Options{Nodes: *nodes, ProxyMode: *proxy, Keep: *keep, Progress: say})
	if err != nil {
		return err
	}
	if err := show(ctx, c, out, say); err != nil {
		return errors.Join(err, errors.New(c.LogTails(20)), c.Close())
	}
	if *keep {
		printHints(out, c)
		return nil
	}
	say("removing the cluster")
	if err := c.Close(); err != nil {
		return err
	}
	say("done: nothing of it is left on this machine")
	return nil
}

// show runs a Deployment and prints what there is to see.
func show(ctx context.Context, c *cluster.Cluster, out io.Writer, say func(string)) error {
	say("running a Deployment with a hostPort")
	if err := c.Apply(ctx, web); err != nil {
		return err
	}
	pods, err := c.AwaitPods(ctx, "app=web", 1)
	if err != nil {
		return err
	}
	m := c.Member(pods[0].Spec.NodeName)
	page, err := m.Outside.AwaitGet(ctx, "http://"+m.IPv4()+":"+hostPort+"/")
	if err != nil {
		return err
	}
	say("the cluster serves")
	for _, args := range [][]string{{"get", "nodes", "-o", "wide"}, {"get", "pods", "--all-namespaces", "-o", "wide"}} {
		text, err := c.Kubectl(ctx, args...)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n$ kubectl %s\n%s", strings.Join(args, " "), text)
	}
	text, err := m.Crinetctl(ctx, "pods")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n$ crinetctl pods\n%s\nhttp://%s:%s/ says, to the outside:\n  %s\n", text, m.IPv4(), hostPort, page)
	return nil
}

func printHints(out io.Writer, c *cluster.Cluster) {
	fmt.Fprintln(out, "The cluster is left running. Talk to it:")
	var dirs []string
	for _, m := range c.Members {
		dirs = append(dirs, m.Dir())
		enter := fmt.Sprintf("sudo nsenter --target %d --mount --net --pid", m.PID())
		if m == c.Members[0] {
			fmt.Fprintf(out, "  %s %s --kubeconfig=%s get pods -A\n", enter, m.Kit().Tool("kubectl"), cluster.Kubeconfig)
		}
		fmt.Fprintf(out, "  %s %s pods    # on %s\n", enter, m.Kit().Crinet("crinetctl"), m.Name)
		fmt.Fprintf(out, "Its logs are in %s/log.\n", m.Dir())
	}
	fmt.Fprintf(out, "Remove it:\n  sudo make -C %s cluster REMOVE=%s\n", c.Members[0].Kit().Root(), strings.Join(dirs, ","))
}
