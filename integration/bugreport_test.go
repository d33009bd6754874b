package integration_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// pictureVariable names an environment variable: where TestBugreport leaves the picture
// of its page, to be looked at.
const pictureVariable = "CRINET_TEST_PICTURE"

// bugreportLimit is how long crinetctl bugreport may take here; on a quiet machine it is
// 5 s at most (the test says how long it took).
const bugreportLimit = 20 * time.Second

// crinetctl bugreport on a node with pods that come, go and fail: the archive has all
// of it and no secret, and a browser shows the page.
func TestBugreport(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	client := n.startRecorded()
	n.ok(n.WriteFile("/etc/default/crinetd", "CRINETD_FLAGS=--network-plugin=cni\nAPI_TOKEN=s3cr3t-token\n"))
	n.runPod(client, "stays")
	n.ok(n.runPod(client, "goes").StopAndRemove(n.ctx))
	n.setRules(script.Rule{Verb: "ADD", Pod: "fails", Do: script.Fail, Text: "the tide is out"})
	if _, err := client.RunPod(n.ctx, n.PodConfig("fails")); err == nil {
		t.Error("the pod did not fail")
	}
	began := time.Now()
	out, err := n.Crinetctl(n.ctx, "bugreport", "--file", "/run/report.tar.gz")
	n.ok(err)
	took := time.Since(began)
	t.Logf("crinetctl bugreport took %v: %s", took, out)
	if took > bugreportLimit {
		t.Errorf("crinetctl bugreport took %v", took)
	}
	if _, err := n.Crinetctl(n.ctx, "bugreport", "--file", "/run/report.tar.gz"); err == nil {
		t.Error("a second report replaced the first")
	}
	dir := t.TempDir()
	files := unpack(t, n.Path("/run/report.tar.gz"), dir)
	for name, want := range map[string]string{
		"status.json": `"ready": true`, "pods.json": `"stays"`, "doctor.json": `"results"`, "operations.json": "the tide is out",
		"metrics.txt": "crinet_pod_step_duration_seconds", "commands/nft_list_ruleset.txt": "table inet crinet",
		"commands/ip_address.txt": "10.20.0.1/16", "files/etc/default/crinetd": "--network-plugin=cni",
		"report.html": "default/stays", "README.txt": "crinet's report",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q:\n%.2000s", name, want, files[name])
		}
	}
	for name, text := range files {
		if strings.Contains(text, "s3cr3t-token") {
			t.Errorf("%s has a secret", name)
		}
	}
	shown := browse(t, filepath.Join(dir, "report.html"))
	for _, want := range []string{"New pods get a network.", "default/goes", "the tide is out", "What the doctor found", "bar-failed", "How long plugins take"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the browser does not show %q", want)
		}
	}
	// The report is made without crinetd as well.
	n.ok(n.KillCrinetd())
	_, err = n.Crinetctl(n.ctx, "bugreport", "--file", "/run/without.tar.gz")
	n.ok(err)
	files = unpack(t, n.Path("/run/without.tar.gz"), t.TempDir())
	if !strings.Contains(files["operations.json"], "the tide is out") || !strings.Contains(files["README.txt"], "status.json: ") {
		t.Errorf("without crinetd: %s", files["README.txt"])
	}
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.removeAll(client)
	n.clean()
}

// unpack writes the files of a compressed archive to dir, without its folder, and
// returns their texts by name.
func unpack(t *testing.T, archive, dir string) map[string]string {
	t.Helper()
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the archive's mode is %v: %v, want 0600", info.Mode(), err)
	}
	zip, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for r := tar.NewReader(zip); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
		if name == "report.html" {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// browse opens a page in a browser and returns the document as the browser has it. It
// takes a picture, which must not be empty.
func browse(t *testing.T, page string) string {
	t.Helper()
	picture := os.Getenv(pictureVariable)
	if picture == "" {
		picture = filepath.Join(t.TempDir(), "page.png")
	}
	run := func(what ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		args := append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
			"--user-data-dir=" + t.TempDir(), "--window-size=1120,2000"}, what...)
		cmd := exec.CommandContext(ctx, "chromium", append(args, "file://"+page)...)
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("the browser fails (make tools installs chromium): %v", err)
		}
		return string(out)
	}
	run("--screenshot=" + picture)
	if info, err := os.Stat(picture); err != nil || info.Size() < 20<<10 {
		t.Errorf("the picture of the page: %v %v", info, err)
	}
	return run("--dump-dom")
}
