package cluster

import (
	"context"
	"strings"
)

// BridgeNetwork is a bridge whose addresses come from the node's pod CIDR: the
// controller manager allots it, the kubelet hands it on by UpdateRuntimeConfig,
// and the network is not ready before.
const BridgeNetwork = `{
	"cniVersion": "1.0.0",
	"name": "pods",
	"plugins": [{
		"type": "bridge",
		"bridge": "pods0",
		"isDefaultGateway": true,
		"ipMasq": true,
		"hairpinMode": true,
		"capabilities": {"ipRanges": true},
		"ipam": {"type": "host-local"}
	}]
}`

// route lets each node reach the pods of the others: what a cloud's routes do
// for networks like BridgeNetwork.
func (c *Cluster) route(ctx context.Context) error {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		to := c.Member(n.Metadata.Name)
		for _, from := range c.Members {
			if from == to {
				continue
			}
			for _, cidr := range n.Spec.PodCIDRs {
				gateway := to.IPv4()
				if strings.Contains(cidr, ":") {
					gateway = to.IPv6()
				}
				if _, err := from.Run(ctx, "ip", "route", "replace", cidr, "via", gateway); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
