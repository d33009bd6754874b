// Package node runs a real Kubernetes node for tests, benchmarks and the demo:
// containerd, runc, CNI plugins and crinetd in network, mount and process
// namespaces of their own, on a machine that does not notice.
//
// Inside, a node looks like any other: its paths are the default ones
// (/run, /etc/cni/net.d, /opt/cni/bin, /var/lib/...), and Node.Path tells where
// one of them is to be found from outside. It has an uplink, eth0, to a network
// namespace that stands for the outside world; the machine's own network has no
// part in it. Several nodes can stand side by side, with the same network
// names.
//
// A Kit is built once a process: it finds the tools, and builds the images and
// helper programs. Nodes are started from it. When Node.Close was called, or
// the process that started the node has ended in whatever way, the kernel kills
// every process of the node, and its mounts, network namespaces and devices go
// with them. What only Close removes is the node's directory and its control
// groups.
//
// Root is needed, and Linux with overlayfs and the tools that `make tools`
// installs. The control groups are the machine's, below a parent of the node's
// own for pods that PodConfig describes.
package node
