package nettest

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
)

// whoDrops says what to do about a rule or policy that drops, by whose it is.
func (r *runner) whoDrops(h *hop, p *probe) []string {
	subnet := r.subnet(p)
	chain, table := h.chain, h.familyWord()+" "+h.table
	have := r.chainNames()
	has := func(prefix string) bool {
		for name := range have {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	}
	forward := strings.EqualFold(chain, "forward")
	switch {
	case h.table == "firewalld":
		return []string{fmt.Sprintf("firewalld does it: firewall-cmd --permanent --zone=trusted --add-source=%s && firewall-cmd --reload", subnet)}
	case strings.HasPrefix(chain, "ufw") || forward && has("ufw"):
		return []string{fmt.Sprintf("ufw does it: ufw route allow from %s and to %s, or DEFAULT_FORWARD_POLICY=\"ACCEPT\" in /etc/default/ufw", subnet, subnet)}
	case strings.HasPrefix(chain, "DOCKER") || forward && h.policy && has("DOCKER"):
		return []string{
			fmt.Sprintf("Docker does it, by the policy that it sets: iptables -I DOCKER-USER -s %s -j ACCEPT and -d %s", subnet, subnet),
			"or \"ip-forward-no-drop\": true in /etc/docker/daemon.json (Docker 28), then iptables -P FORWARD ACCEPT",
		}
	case strings.HasPrefix(chain, "KUBE-"):
		return []string{"kube-proxy does it: a Service without endpoints, or a martian packet; look at the chain " + chain}
	case strings.HasPrefix(chain, "cali-") || strings.HasPrefix(chain, "CILIUM") || strings.HasPrefix(chain, "KUBE-ROUTER"):
		return []string{"a network policy engine does it: look at its policies for pods without labels"}
	case strings.EqualFold(h.table, "crinet"):
		return []string{"crinet's own table does it: crinetctl status says what it limits; if it does not, report this"}
	case forward && h.policy:
		return []string{
			fmt.Sprintf("let the pods' packets through in table %s: rules that accept %s as source and as destination, or the policy accept "+
				"(iptables -P FORWARD ACCEPT; nft chain %s %s '{ policy accept; }')", table, subnet, table, chain),
			"look for who sets the policy: a firewall service, or a hardening script",
		}
	default:
		return []string{fmt.Sprintf("let the pods' packets through before that: a rule that accepts %s in table %s, or remove the rule; look for whose table it is", subnet, table)}
	}
}

// subnet is the pods' subnet of a probe's family.
func (r *runner) subnet(p *probe) netip.Prefix {
	for _, prefix := range r.Pods[0].Addresses {
		if prefix.Addr().Unmap().Is4() == p.to.Addr().Is4() {
			return prefix.Masked()
		}
	}
	return netip.Prefix{}
}

// chainNames are the names of all chains in the node's tables.
func (r *runner) chainNames() map[string]bool {
	names := make(map[string]bool)
	conn, err := nftables.New(nftables.WithNetNSFd(r.Node.fd()))
	if err != nil {
		return names
	}
	chains, err := conn.ListChains()
	if err != nil {
		return names
	}
	for _, c := range chains {
		names[c.Name] = true
	}
	return names
}
