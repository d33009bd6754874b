package packages_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// reference is what an OCI descriptor says.
type reference struct {
	Digest string `json:"digest"`
	Size   int    `json:"size"`
}

// archive is the content of an OCI archive, by name.
type archive map[string][]byte

// blob returns a blob, whose digest and size must be those of the reference.
func (a archive) blob(t *testing.T, r reference, into any) []byte {
	t.Helper()
	text := a["blobs/sha256/"+strings.TrimPrefix(r.Digest, "sha256:")]
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(text)); got != r.Digest || len(text) != r.Size {
		t.Fatalf("blob %s of %d bytes has digest %s and %d bytes", r.Digest, r.Size, got, len(text))
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	return text
}

func readArchive(t *testing.T) archive {
	t.Helper()
	packed, err := os.ReadFile(filepath.Join(dist, version, "crinet_"+version+"_image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	all := make(archive)
	for r := tar.NewReader(bytes.NewReader(packed)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if all[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestImage unpacks the image as a runtime does, and runs its entry point with a
// node's tree at /host.
func TestImage(t *testing.T) {
	t.Parallel()
	a := readArchive(t)
	var top, index struct{ Manifests []reference }
	if err := json.Unmarshal(a["index.json"], &top); err != nil || len(top.Manifests) != 1 {
		t.Fatalf("index.json: %v, %s", err, a["index.json"])
	}
	a.blob(t, top.Manifests[0], &index)
	var manifest struct {
		Config reference
		Layers []reference
	}
	a.blob(t, index.Manifests[0], &manifest)
	var config struct {
		Architecture string
		Config       struct{ Entrypoint []string }
	}
	a.blob(t, manifest.Config, &config)
	if want := []string{"/usr/bin/crinetctl", "install", "--root", "/host"}; config.Architecture != "amd64" || !slices.Equal(config.Config.Entrypoint, want) {
		t.Errorf("the image's configuration is %+v", config)
	}
	m := newKubeadmNode(t)
	m.write("/root/layer.tar.gz", string(a.blob(t, manifest.Layers[0], nil)))
	out := m.sh("mkdir --parents /root/image/host && tar --extract --gzip --file /root/layer.tar.gz --directory /root/image && " +
		"mkdir /root/image/proc && mount -t proc proc /root/image/proc && mount --bind / /root/image/host && chroot /root/image " + strings.Join(config.Config.Entrypoint, " "))
	if !strings.Contains(out, "installed") || !strings.Contains(m.read("/var/lib/kubelet/config.yaml"), "unix:///run/crinet/cri.sock") {
		t.Errorf("the entry point printed %s", out)
	}
	if text := m.sh("/usr/local/bin/crinetctl --version"); text != "crinetctl "+version+"\n" {
		t.Errorf("the node has %s", text)
	}
}
