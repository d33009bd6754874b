package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Media types of the OCI image specification.
const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// descriptor is the specification's reference to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// layout is an OCI image layout in the making: files by their names.
type layout struct {
	files map[string][]byte
	names []string // in the order in which they were added
}

func (l *layout) add(name string, text []byte) {
	if _, ok := l.files[name]; !ok {
		l.names = append(l.names, name)
	}
	l.files[name] = text
}

// blob adds a blob and returns its descriptor.
func (l *layout) blob(mediaType string, content []byte) descriptor {
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	l.add("blobs/sha256/"+digest, content)
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(content)}
}

func (l *layout) json(mediaType string, value any) (descriptor, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return descriptor{}, err
	}
	return l.blob(mediaType, text), nil
}

// image writes an OCI archive with an image for each architecture. Its entry point
// installs crinet on the node whose tree is at /host.
func (r *release) image(context.Context) error {
	l := &layout{files: make(map[string][]byte)}
	var manifests []descriptor
	for _, arch := range r.arches {
		d, err := r.platform(l, arch)
		if err != nil {
			return err
		}
		manifests = append(manifests, d)
	}
	index, err := l.json(mediaIndex, map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": manifests})
	if err != nil {
		return err
	}
	tag := strings.ReplaceAll(r.version, "~", "-") // a tag has no tilde
	index.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": "localhost/crinet:" + tag}
	top, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{index}})
	if err != nil {
		return err
	}
	l.add("index.json", top)
	l.add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := l.write(&archive, r); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.out, "crinet_"+r.version+"_image.tar"), archive.Bytes(), 0o644)
}

// platform adds the image of one architecture.
func (r *release) platform(l *layout, arch string) (descriptor, error) {
	layer, diffID, err := r.layer(arch)
	if err != nil {
		return descriptor{}, err
	}
	config, err := l.json(mediaConfig, map[string]any{
		"created": r.time, "architecture": arch, "os": "linux",
		"config": map[string]any{
			"Entrypoint": []string{"/usr/bin/crinetctl", "install", "--root", "/host"},
			"Labels":     map[string]string{"org.opencontainers.image.version": r.version, "org.opencontainers.image.licenses": "Apache-2.0"},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{diffID}},
		"history": []map[string]any{{"created": r.time, "created_by": "crinet packaging/build"}},
	})
	if err != nil {
		return descriptor{}, err
	}
	manifest, err := l.json(mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": config, "layers": []descriptor{l.blob(mediaLayer, layer)},
	})
	manifest.Platform = map[string]string{"architecture": arch, "os": "linux"}
	return manifest, err
}

// layer packs the programs and the licences.
func (r *release) layer(arch string) (packed []byte, diffID string, err error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	stage := r.stages[arch]
	for _, top := range []string{"usr/bin", "usr/share/doc"} {
		err := filepath.WalkDir(filepath.Join(stage, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, err := filepath.Rel(stage, path)
			if err != nil {
				return err
			}
			if d.IsDir() {
				return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: r.time, Format: tar.FormatPAX})
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return tarFile(w, name, text, int64(info.Mode().Perm()), r)
		})
		if err != nil {
			return nil, "", err
		}
	}
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	packed, err = compress(layer.Bytes())
	return packed, fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes())), err
}

func tarFile(w *tar.Writer, name string, text []byte, mode int64, r *release) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(text)), ModTime: r.time, Format: tar.FormatPAX}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(text)
	return err
}

// write writes the layout as a tar archive.
func (l *layout) write(out io.Writer, r *release) error {
	w := tar.NewWriter(out)
	for _, name := range l.names {
		if err := tarFile(w, name, l.files[name], 0o644, r); err != nil {
			return err
		}
	}
	return w.Close()
}
