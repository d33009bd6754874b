package config

import (
	"encoding/json"
	"path/filepath"
	"strings"

	"github.com/crinet-project/crinet/probe"
)

// OwnNetwork is the name of the network that OwnFile defines for the runtime.
const OwnNetwork = "crinet"

// delegate is a configuration that a plugin passes to another plugin, as far as
// crinet looks into it. Multus' delegates may be lists.
type delegate struct {
	Type string `json:"type"`
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
	Plugins []delegate `json:"plugins"`
}

// delegation returns what a plugin's configuration shows of the plugins that the
// plugin runs itself: their types, and by what they lead back to crinet, if
// they do. It knows flannel's delegate, and Multus' delegates,
// clusterNetwork and defaultNetworks.
func delegation(raw json.RawMessage) (types []string, back string) {
	var conf struct {
		Delegate        delegate   `json:"delegate"`
		Delegates       []delegate `json:"delegates"`
		ClusterNetwork  string     `json:"clusterNetwork"`
		DefaultNetworks []string   `json:"defaultNetworks"`
	}
	_ = json.Unmarshal(raw, &conf) // members of another form say nothing; the others are read
	for _, network := range append(conf.DefaultNetworks, conf.ClusterNetwork) {
		if network == OwnNetwork || filepath.Base(network) == OwnFile {
			back = "network " + network
		}
	}
	for todo := append(conf.Delegates, conf.Delegate); len(todo) > 0; todo = todo[1:] {
		d := todo[0]
		types = append(types, d.Type, d.IPAM.Type)
		todo = append(todo, d.Plugins...)
		if d.Type == probe.ShimType {
			back = "plugin type " + d.Type
		}
	}
	return types, back
}

// isFileName reports whether a plugin type can be the name of a binary.
func isFileName(typ string) bool {
	return typ != "" && typ != "." && typ != ".." && !strings.ContainsAny(typ, "/\x00")
}
