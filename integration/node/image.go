package node

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
)

// The images that every node has. There is no registry: they are made here, as
// an archive in the OCI image layout.
const (
	PauseImage   = "crinet.test/pause:3.10"
	BusyboxImage = "crinet.test/e2e-test-images/busybox:1.29-2"
	NginxImage   = "crinet.test/e2e-test-images/nginx:1.14-2"
	HostnetImage = "crinet.test/k8s-staging-cri-tools/hostnet-nginx-amd64:latest"
	// TestImage holds /nodetest and busybox; see integration/testimage for
	// what nodetest does. Without a command it serves HTTP on port 80.
	TestImage = "crinet.test/nodetest:latest"
)

// applets are the names under which busybox is to be found in /bin.
var applets = []string{
	"cat", "date", "echo", "env", "false", "head", "hostname", "httpd", "ifconfig", "ip", "ls",
	"mkdir", "nc", "netstat", "ping", "printf", "ps", "pwd", "rm", "seq", "sh", "sleep", "stat",
	"tail", "test", "touch", "top", "true", "wc", "wget", "whoami",
}

type image struct {
	name  string
	files map[string][]byte // executables, by path
	links []string          // names in /bin that are busybox
	cmd   []string
}

// standardImages are made of the two static programs.
func standardImages(nodetest, busybox []byte) []image {
	serve := func(addr string) []string { return []string{"/nodetest", "serve", "-http", addr, "-udp", addr} }
	with := func(name string, cmd []string) image {
		files := map[string][]byte{"nodetest": nodetest, "bin/busybox": busybox}
		return image{name: name, files: files, links: applets, cmd: cmd}
	}
	return []image{
		{name: PauseImage, files: map[string][]byte{"nodetest": nodetest}, cmd: []string{"/nodetest", "pause"}},
		with(BusyboxImage, []string{"sh"}),
		with(NginxImage, serve(":80")),
		with(HostnetImage, serve(":12003")),
		with(TestImage, serve(":80")),
	}
}

// descriptor is the OCI image specification's reference to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

const (
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
)

// writeImages writes an OCI image layout with all images to a tar file.
func writeImages(file string, images []image) (err error) {
	out, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("create the image archive: %w", err)
	}
	defer func() {
		if e := out.Close(); err == nil && e != nil {
			err = fmt.Errorf("write the image archive: %w", e)
		}
	}()
	a := &archive{tar: tar.NewWriter(out), seen: make(map[string]bool)}
	var manifests []descriptor
	for _, img := range images {
		manifest, err := a.image(img)
		if err != nil {
			return fmt.Errorf("write image %s to %s: %w", img.name, file, err)
		}
		manifests = append(manifests, manifest)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": manifests})
	if err != nil {
		return err
	}
	if err := a.file("index.json", index); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return a.tar.Close()
}

// archive is an OCI image layout as it is written.
type archive struct {
	tar  *tar.Writer
	seen map[string]bool // digests of the blobs written
}

func (a *archive) image(img image) (descriptor, error) {
	layerBytes, err := layer(img)
	if err != nil {
		return descriptor{}, err
	}
	layer, err := a.blob(mediaLayer, layerBytes)
	if err != nil {
		return descriptor{}, err
	}
	config, err := a.json(mediaConfig, map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Cmd": img.cmd, "Env": []string{"PATH=/bin"}, "WorkingDir": "/"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}},
	})
	if err != nil {
		return descriptor{}, err
	}
	manifest, err := a.json(mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": config, "layers": []descriptor{layer},
	})
	manifest.Platform = &platform{Architecture: runtime.GOARCH, OS: "linux"}
	manifest.Annotations = map[string]string{"io.containerd.image.name": img.name}
	return manifest, err
}

func (a *archive) json(mediaType string, value any) (descriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return descriptor{}, err
	}
	return a.blob(mediaType, data)
}

func (a *archive) blob(mediaType string, data []byte) (descriptor, error) {
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(data)}
	if a.seen[digest] {
		return d, nil
	}
	a.seen[digest] = true
	return d, a.file("blobs/sha256/"+digest, data)
}

func (a *archive) file(name string, data []byte) error {
	return addFile(a.tar, &tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}, data)
}

// layer is an uncompressed file system layer: the image's programs, links to
// busybox and what a process expects to find.
func layer(img image) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "root/"} {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		if err := addFile(w, &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: mode}, nil); err != nil {
			return nil, err
		}
	}
	passwd := []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
	if err := addFile(w, &tar.Header{Name: "etc/passwd", Mode: 0o644, Size: int64(len(passwd))}, passwd); err != nil {
		return nil, err
	}
	for _, name := range sortedKeys(img.files) {
		data := img.files[name]
		if err := addFile(w, &tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))}, data); err != nil {
			return nil, err
		}
	}
	for _, name := range img.links {
		header := &tar.Header{Typeflag: tar.TypeSymlink, Name: path.Join("bin", name), Linkname: "busybox", Mode: 0o777}
		if err := addFile(w, header, nil); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func addFile(w *tar.Writer, header *tar.Header, data []byte) error {
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(w, bytes.NewReader(data))
	return err
}
