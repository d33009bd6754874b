package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/runtime/admin"
)

// newForget makes the command forget.
func newForget(o *options) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "forget SANDBOX --reason=TEXT",
		Short: "Give up a pod's network whose removal can never work; what it holds stays on the node",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) != 1:
				return usageError{errors.New("forget takes the id of one sandbox; crinetctl pods shows them")}
			case reason == "":
				return usageError{errors.New("forget needs --reason=TEXT: why the removal cannot work, for crinetd's log")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			forgotten, err := o.client().Forget(c.Context(), admin.Forget{Sandbox: args[0], Reason: reason})
			if err != nil {
				return err
			}
			return o.print(forgotten, func() error { return printForgotten(o.stdout, forgotten) })
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` for crinetd's log: why the removal cannot work")
	return c
}

// printForgotten says what may remain on the node.
func printForgotten(stdout io.Writer, pods []admin.Pod) error {
	for _, p := range pods {
		_, err := fmt.Fprintf(stdout, "Forgotten: sandbox %s of pod %s/%s on network %s. On the node may remain: the addresses %s in its IPAM, its interface, rules and namespace %s.\n",
			p.SandboxID, p.Namespace, p.Name, p.Network, orNone(strings.Join(p.Addresses, ", ")), orNone(p.NetNS))
		if err != nil {
			return err
		}
	}
	return nil
}
