package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// multusCache is where Multus has libcni keep results.
const multusCache = "/var/lib/cni/multus"

// multus does what Multus does with a pod's first interface: it runs the master
// plugin's verb through libcni, with every K8S_ argument twice (Multus 4.2.4).
func multus(m *script.Multus, call script.Call, stdout io.Writer) error {
	list, err := masterOf(m.ConfDir)
	if err != nil {
		return err
	}
	if m.Thick {
		path := os.Getenv("PATH")
		os.Clearenv()
		if err := os.Setenv("PATH", path); err != nil {
			return err
		}
	}
	rt := &libcni.RuntimeConf{
		ContainerID: call.ContainerID, NetNS: call.NetNS, IfName: call.IfName,
		Args: twice(call.Args),
	}
	cni := libcni.NewCNIConfigWithCacheDir(filepath.SplitList(call.Path), multusCache, nil)
	ctx := context.Background()
	switch call.Verb {
	case "ADD":
		var result types.Result
		if result, err = cni.AddNetworkList(ctx, list, rt); err == nil {
			return result.PrintTo(stdout)
		}
	case "DEL":
		err = cni.DelNetworkList(ctx, list, rt)
	case "STATUS":
		err = cni.GetStatusNetworkList(ctx, list)
	}
	var said *types.Error
	if errors.As(err, &said) {
		return &failure{CNIVersion: list.CNIVersion, Code: said.Code, Msg: said.Error()}
	}
	return err
}

// masterOf reads the first configuration of dir by name that is not Multus' own.
func masterOf(dir string) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if !bytes.Contains(text, []byte(filepath.Base(os.Args[0]))) {
			return libcni.NetworkConfFromFile(file)
		}
	}
	return nil, fmt.Errorf("no master plugin's configuration in %s", dir)
}

// twice returns the pairs of CNI_ARGS, with those of Kubernetes once more.
func twice(args string) (pairs [][2]string) {
	for pair := range strings.SplitSeq(args, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			pairs = append(pairs, [2]string{key, value})
		}
	}
	for _, pair := range pairs {
		if strings.HasPrefix(pair[0], "K8S_") {
			pairs = append(pairs, pair)
		}
	}
	return pairs
}
