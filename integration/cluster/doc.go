// Package cluster runs a real Kubernetes cluster for tests: etcd, API server,
// controller manager and scheduler on the first node, and on each node
// containerd, crinetd, kubelet and kube-proxy. CoreDNS runs as a pod. Nodes are
// those of package node, so that the machine does not notice, and several
// clusters can stand side by side.
//
// What a user of a cluster does, the tests do with kubectl; what is asked often
// goes to the API server over HTTP. Certificates are made for each cluster, in
// memory.
//
// The programs are those of `integration/tools/build cluster`.
package cluster
