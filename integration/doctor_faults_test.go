package integration_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/crinet-project/crinet/doctor"
	"github.com/crinet-project/crinet/integration/node"
)

// fault is something that is wrong with a node.
type fault struct {
	check  string
	inject string   // a script, in the node
	want   []string // on the first screen: what is wrong, and the mend
	mend   string   // a script; as far as it can be, the mend that was told
	after  string   // a script that cleans up what the mend leaves
}

// kernelFaults are those of rules, sysctls, links and addresses.
var kernelFaults = []fault{
	{check: "forward-nft", inject: "iptables -P FORWARD DROP", want: []string{"table ip filter", "policy of chain FORWARD", "iptables -I FORWARD -i mynet0 -j ACCEPT"},
		mend: "iptables -I FORWARD -i mynet0 -j ACCEPT && iptables -I FORWARD -o mynet0 -j ACCEPT", after: "iptables -P FORWARD ACCEPT; iptables -F FORWARD"},
	{check: "forward-nft", inject: `iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER;
			iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT;
			iptables -A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT; iptables -A FORWARD -s 172.17.0.0/16 -j ACCEPT`,
		want: []string{"DOCKER-USER -i mynet0", "Docker"}, mend: "iptables -I DOCKER-USER -i mynet0 -j ACCEPT && iptables -I DOCKER-USER -o mynet0 -j ACCEPT",
		after: "iptables -P FORWARD ACCEPT; iptables -F; iptables -X DOCKER-USER"},
	{check: "forward-nft", inject: `nft 'add table inet fw; add chain inet fw forwarded { type filter hook forward priority 0; policy drop; };
			add rule inet fw forwarded ct state { established, related } accept; add rule inet fw forwarded iifname "lo" accept; add rule inet fw forwarded ip saddr 192.168.0.0/16 accept'`,
		want: []string{"table inet fw", "from pods to the outside", "nft insert rule inet fw forwarded iifname mynet0 accept"},
		mend: "nft insert rule inet fw forwarded iifname mynet0 accept; nft insert rule inet fw forwarded oifname mynet0 accept", after: "nft delete table inet fw"},
	{check: "forward-nft", inject: `nft 'add table inet fw; add chain inet fw forwarded { type filter hook forward priority 0; }; add rule inet fw forwarded counter reject'`,
		want: []string{"rule 1 of chain forwarded drops them"}, mend: "nft delete table inet fw"},
	{check: "input-policy", inject: `nft 'add table inet fw; add chain inet fw entry { type filter hook input priority 0; policy drop; }; add rule inet fw entry iifname != "mynet0" accept'`,
		want: []string{"WARNING", "nft insert rule inet fw entry iifname mynet0 accept"}, mend: "nft insert rule inet fw entry iifname mynet0 accept", after: "nft delete table inet fw"},
	{check: "stale-portmap", inject: `iptables -t nat -N CNI-DN-0123456789abcdef; iptables -t nat -A CNI-DN-0123456789abcdef -p tcp --dport 8080 -j DNAT --to-destination 10.10.9.9:80`,
		want: []string{"CNI-DN-0123456789abcdef", "iptables -t nat -F"}, mend: "iptables -t nat -F CNI-DN-0123456789abcdef && iptables -t nat -X CNI-DN-0123456789abcdef"},
	{check: "stale-portmap", inject: `nft 'add table ip cni_hostport; add chain ip cni_hostport hostports; add rule ip cni_hostport hostports tcp dport 8080 dnat to 10.10.9.9:80'`,
		want: []string{"cni_hostport", "nft -a list table ip cni_hostport"}, mend: "nft flush chain ip cni_hostport hostports", after: "nft delete table ip cni_hostport"},
	{check: "rp-filter", inject: "ip rule add from 203.0.113.0/24 table 100; echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter",
		want: []string{"strict (1) on eth0", "rp_filter=2"}, mend: "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter", after: "ip rule del from 203.0.113.0/24 table 100"},
	{check: "ip-forward", inject: "echo 0 >/proc/sys/net/ipv4/ip_forward", want: []string{"net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1"}, mend: "echo 1 >/proc/sys/net/ipv4/ip_forward"},
	{check: "ip-forward", inject: "echo 0 >/proc/sys/net/ipv4/conf/mynet0/forwarding", want: []string{"sysctl -w net.ipv4.conf.mynet0.forwarding=1"}, mend: "echo 1 >/proc/sys/net/ipv4/conf/mynet0/forwarding"},
	{check: "bridge-nf-call", inject: "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables", want: []string{"sysctl -w net.bridge.bridge-nf-call-iptables=1"}, mend: "echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables"},
	{check: "mtu", inject: "ip link set mynet0 mtu 9000", want: []string{"mynet0 has MTU 9000", "ip link set mynet0 mtu 1500"}, mend: "ip link set mynet0 mtu 1500"},
	{check: "mtu", inject: "ip link set eth0 mtu 1400", want: []string{"eth0 has 1400", "ip link set mynet0 mtu 1400"}, mend: "ip link set mynet0 mtu 1400; for l in /sys/class/net/mynet0/brif/*; do ip link set $(basename $l) mtu 1400; done",
		after: "ip link set eth0 mtu 1500; for l in /sys/class/net/mynet0/brif/*; do ip link set $(basename $l) mtu 1500; done; ip link set mynet0 mtu 1500"},
	{check: "subnet-overlap-node", inject: "ip addr add 10.10.200.7/24 dev eth0", want: []string{"10.10.0.0/16 overlaps with 10.10.200.7/24", "ip addr del"}, mend: "ip addr del 10.10.200.7/24 dev eth0"},
	{check: "bridge-gateway", inject: "ip addr del 10.10.0.1/16 dev mynet0", want: []string{"not the gateway's address 10.10.0.1", "ip addr add 10.10.0.1/16 dev mynet0"}, mend: "ip addr add 10.10.0.1/16 dev mynet0"},
	{check: "uplink", inject: "ip route del default", want: []string{"no default route", "ip route add default"}, mend: "ip route add default via " + node.OutsideIPv4},
	{check: "dead-veths", inject: "ip link add dead0 type veth peer name dead1; ip link set dead0 master mynet0 up", want: []string{"1 port of mynet0 without a carrier: dead0", "ip link del dead0"}, mend: "ip link del dead0"},
	{check: "doomed-links", inject: "ip link add doom0 type veth peer name doom1; ip link set doom0 group 1668442478", want: []string{"doom0", "ip link del group 1668442478"}, mend: "ip link del group 1668442478"},
	{check: "stale-netns", inject: "ip netns add cni-00000000-0000-0000-0000-000000000000", want: []string{"ip netns del cni-00000000"}, mend: "ip netns del cni-00000000-0000-0000-0000-000000000000"},
}

// fileFaults are those of files and file systems.
var fileFaults = []fault{
	{check: "host-local-leaks", inject: "printf 'deadbeef\\r\\neth0' >/var/lib/cni/networks/mynet/10.10.77.7; touch -d '1 hour ago' /var/lib/cni/networks/mynet/10.10.77.7",
		want: []string{"10.10.77.7 (sandbox deadbeef)", "rm /var/lib/cni/networks/mynet/10.10.77.7"}, mend: "rm /var/lib/cni/networks/mynet/10.10.77.7"},
	{check: "plugin-binaries", inject: "mv /opt/cni/bin/bridge /run/bridge", want: []string{"plugin bridge is not in /opt/cni/bin", "install it into"}, mend: "mv /run/bridge /opt/cni/bin/bridge"},
	{check: "plugin-binaries", inject: "mv /opt/cni/bin/bridge /run/bridge; printf '\\177ELF\\2\\1\\1\\0\\0\\0\\0\\0\\0\\0\\0\\0\\2\\0\\26\\0\\1\\0\\0\\0%040d' 0 >/opt/cni/bin/bridge; chmod 644 /opt/cni/bin/bridge",
		want: []string{"is not executable", "chmod 755"}, mend: "mv -f /run/bridge /opt/cni/bin/bridge"},
	{check: "conf-files", inject: "printf '{\\n \"name\": \"a\",' >/etc/cni/net.d/95-broken.conflist", want: []string{"WARNING", "/etc/cni/net.d/95-broken.conflist:2", "crinetctl validate /etc/cni/net.d/95-broken.conflist"},
		mend: "rm /etc/cni/net.d/95-broken.conflist"},
	{check: "containerd-conf", inject: `printf '{"cniVersion":"1.0.0","name":"aaa","plugins":[{"type":"bridge","ipam":{"type":"host-local","subnet":"10.99.0.0/24"}}]}' >/etc/cni/net.d/00-aaa.conflist`,
		want: []string{"00-aaa.conflist sorts before 00-crinet.conflist", "mv /etc/cni/net.d/00-aaa.conflist /etc/cni/net.d/90-00-aaa.conflist"}, mend: "rm /etc/cni/net.d/00-aaa.conflist"},
	{check: "kubelet-endpoint", inject: "mkdir -p /var/lib/kubelet; printf 'kind: KubeletConfiguration\\ncontainerRuntimeEndpoint: unix:///run/containerd/containerd.sock\\n' >/var/lib/kubelet/config.yaml",
		want: []string{"uses unix:///run/containerd/containerd.sock", "set it to unix:///run/crinet/cri.sock in /var/lib/kubelet/config.yaml:2"}, mend: "sed -i s,containerd/containerd,crinet/cri, /var/lib/kubelet/config.yaml",
		after: "rm /var/lib/kubelet/config.yaml"},
	{check: "kubelet-removed-flags", inject: "mkdir -p /var/lib/kubelet; echo 'KUBELET_KUBEADM_ARGS=\"--network-plugin=cni --container-runtime-endpoint=unix:///run/crinet/cri.sock\"' >/var/lib/kubelet/kubeadm-flags.env",
		want: []string{"--network-plugin (/var/lib/kubelet/kubeadm-flags.env:1)", "remove it from /var/lib/kubelet/kubeadm-flags.env"}, mend: "sed -i 's/--network-plugin=cni//' /var/lib/kubelet/kubeadm-flags.env",
		after: "rm /var/lib/kubelet/kubeadm-flags.env"},
	{check: "disk-space", inject: "mount -t tmpfs -o size=64k none /var/lib/crinet", want: []string{"/var/lib/crinet has 65536 of 65536 bytes free", "du -x /var/lib/crinet"}, mend: "umount /var/lib/crinet"},
	{check: "disk-inodes", inject: "mount -t tmpfs -o nr_inodes=4 none /var/lib/crinet", want: []string{"inodes free", "du -x --inodes /var/lib/crinet"}, mend: "umount /var/lib/crinet"},
	{check: "disk-read-only", inject: "mount -t tmpfs -o ro none /var/lib/crinet", want: []string{"/var/lib/crinet is mounted read-only", "remount,rw"}, mend: "umount /var/lib/crinet"},
	{check: "inotify-instances", inject: "echo 0 >/run/fake; mount --bind /run/fake /proc/sys/fs/inotify/max_user_instances", want: []string{"max_user_instances is 0", "sysctl -w fs.inotify.max_user_instances=8192"}, mend: "umount /proc/sys/fs/inotify/max_user_instances"},
	{check: "conntrack-table", inject: "echo 262144 >/run/fake; mount --bind /run/fake /proc/sys/net/netfilter/nf_conntrack_count", want: []string{"conntrack has 262144 of 262144 flows", "sysctl -w net.netfilter.nf_conntrack_max=524288"},
		mend: "umount /proc/sys/net/netfilter/nf_conntrack_count"},
	{check: "process-ids", inject: "echo 10 >/run/fake; mount --bind /run/fake /proc/sys/kernel/pid_max", want: []string{"sysctl -w kernel.pid_max=4194304"}, mend: "umount /proc/sys/kernel/pid_max"},
	{check: "socket-modes", inject: "chmod 666 /run/crinet/cri.sock", want: []string{"/run/crinet/cri.sock has the mode -rw-rw-rw-", "chmod go-rwx /run/crinet/cri.sock"}, mend: "chmod 600 /run/crinet/cri.sock"},
	{check: "ufw", inject: "mkdir -p /etc/ufw /etc/default; echo ENABLED=yes >/etc/ufw/ufw.conf; echo 'DEFAULT_FORWARD_POLICY=\"DROP\"' >/etc/default/ufw", want: []string{"ufw route allow in on mynet0"},
		mend: "rm -r /etc/ufw /etc/default/ufw"},
}

// inject puts faults into a node one by one: the first screen names each with its mend,
// and when that is done nothing is told any more.
func (n *testNode) inject(faults []fault) {
	n.t.Helper()
	for i, f := range faults {
		n.t.Logf("%d: %s: %s", i, f.check, f.inject)
		n.sh("%s", f.inject)
		n.told(f.check, f.want...)
		n.sh("%s", f.mend)
		n.mended(f.check)
		if f.after != "" {
			n.sh("%s", f.after)
		}
	}
	n.awaitThat("the doctor to find nothing", func() (bool, string) {
		var left []string
		for _, r := range n.examine().Results {
			if r.Failed() {
				left = append(left, fmt.Sprintf("%s: %s", r.Check, r.Found))
			}
		}
		return len(left) == 0, strings.Join(left, "; ")
	})
}

// Faults of the kernel's state are found, each with its mend.
func TestDoctorFindsFaultsOfTheKernel(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	n.runPod(client, "a")
	n.inject(kernelFaults)
}

// Faults of files and file systems are found, each with its mend.
func TestDoctorFindsFaultsOfFiles(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	n.runPod(client, "a")
	n.inject(fileFaults)
}

// A network whose addresses are all taken is told as such, and not as what follows.
func TestDoctorFindsAnExhaustedRange(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-tiny.conf", strings.NewReplacer(`"10.10.0.0/16"`, `"10.10.0.0/16", "rangeStart": "10.10.0.2", "rangeEnd": "10.10.0.3"`).Replace(seedBridge), cniFlags...)
	n.awaitNetwork(client, true)
	n.runPod(client, "a")
	pod := n.runPod(client, "b")
	n.told("host-local-space", "2 of 2 addresses of 10.10.0.0/16 are taken, none is left", "range in /etc/cni/net.d/10-tiny.conf")
	for i := range 3 {
		if _, err := client.RunPod(n.ctx, n.PodConfig(fmt.Sprintf("c%d", i))); err == nil {
			t.Fatal("a third pod got an address")
		}
	}
	if r := find(t, n.examine(), "crinetd-failures"); r.Outcome != doctor.OK && r.Follows != "host-local-space" {
		t.Errorf("pods that were refused for want of addresses: %+v", r)
	}
	n.ok(pod.Remove(n.ctx))
	n.awaitThat("an address to be free", func() (bool, string) {
		r := find(t, n.examine(), "host-local-space")
		return !strings.Contains(r.Found, "none is left"), r.Found
	})
}

// Daemons that are away, hang or are told nonsense.
func TestDoctorFindsFaultsOfDaemons(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	n.podWithPort(client, "a")

	n.ok(n.SignalContainerd(syscall.SIGSTOP))
	n.told("containerd-answers", "containerd runs but gave no answer", "systemctl restart containerd")
	n.ok(n.SignalContainerd(syscall.SIGCONT))
	n.mended("containerd-answers")

	n.ok(n.StopContainerd())
	n.told("containerd-answers", "no containerd runs", "systemctl start containerd")
	if r := find(t, n.examine(), "containerd-conf"); r.Follows != "containerd-answers" {
		t.Errorf("what follows from containerd's absence: %+v", r)
	}
	n.ok(n.StartContainerd(n.ctx))
	n.mended("containerd-answers")

	pid, err := n.CrinetdPID()
	n.ok(err)
	n.ok(syscall.Kill(pid, syscall.SIGSTOP))
	n.told("crinetd-answers", "but does not answer", "journalctl -u crinetd")
	n.ok(syscall.Kill(pid, syscall.SIGCONT))
	n.mended("crinetd-answers")

	n.ok(n.StopCrinetd())
	n.told("crinetd-answers", "crinetd does not run", "start crinetd")
	n.sh("nft delete table inet crinet")
	n.told("crinet-table", "was removed while crinetd is not running", "systemctl start crinetd")
	n.told("route-localnet", "mynet0: 127.0.0.0/8 is routed, and no rule guards it", "systemctl start crinetd")
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.mended("crinet-table")
	n.mended("route-localnet")
	n.ok(n.StopCrinetd())

	n.ok(n.StartCrinetd(n.ctx, "--network-plugin=nosuch"))
	n.told("network-plugin", "--network-plugin=nosuch names no network", "mynet")
	n.awaitThat("crinetd's own word to follow", func() (bool, string) {
		r := find(t, n.examine(), "crinetd-ready")
		return r.Outcome == doctor.Skipped && r.Follows == "network-plugin", fmt.Sprintf("%+v", r)
	})
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.mended("network-plugin")
}

// Where rules are in iptables-legacy they are read, and no table is made.
func TestDoctorReadsIptablesLegacy(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	n.runPod(client, "a")
	n.examine()
	if names, err := n.Run(n.ctx, "cat", "/proc/net/ip_tables_names"); err != nil || names != "" {
		t.Errorf("the doctor made the tables %q, %v", names, err)
	}
	n.sh("iptables-legacy -P FORWARD DROP")
	n.told("forward-legacy", "policy of chain FORWARD is DROP", "iptables-legacy -I FORWARD -i mynet0 -j ACCEPT")
	n.sh("iptables-legacy -I FORWARD -i mynet0 -j ACCEPT && iptables-legacy -I FORWARD -o mynet0 -j ACCEPT")
	n.mended("forward-legacy")
	n.sh("iptables -A FORWARD -i lo -j ACCEPT")
	n.told("iptables-mix", "iptables-legacy has 2 rules", "update-alternatives")
	n.sh("iptables-legacy -F")
	n.mended("iptables-mix")
}

// A network that has its addresses from the pod CIDR is told as such while nobody has
// told crinetd the CIDR.
func TestDoctorFindsAMissingPodCIDR(t *testing.T) {
	t.Parallel()
	const conf = `{"cniVersion":"1.0.0","name":"ranged","plugins":[{"type":"bridge","bridge":"mynet0","isGateway":true,"capabilities":{"ipRanges":true},"ipam":{"type":"host-local"}}]}`
	n, client := newNodeWith(t, "10-ranged.conflist", conf, cniFlags...)
	n.told("pod-cidr", "network ranged (/etc/cni/net.d/10-ranged.conflist)", "--pod-cidr=CIDR")
	if r := find(t, n.examine(), "crinetd-ready"); r.Follows != "pod-cidr" {
		t.Errorf("what follows: %+v", r)
	}
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--pod-cidr=10.44.0.0/24"}, cniFlags...)...))
	n.awaitNetwork(client, true)
	n.mended("pod-cidr")
}
