package config

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// A change of anything that counts makes another fingerprint, and what does not
// count makes none.
func TestFingerprint(t *testing.T) {
	t.Parallel()
	r := &rig{t: t, root: t.TempDir()}
	conf, bin := r.root+"/conf", r.root+"/bin"
	types := []string{"bridge"}
	take := func() (*fingerprint, *fingerprint) {
		time.Sleep(2 * clockTick) // older than a tick of the clock: two of them can be told apart
		return printConf(conf), printBins([]string{bin}, types)
	}
	const none, inConf, inBins = 0, 1, 2
	oldConf, oldBins := take()
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"nothing", func() {}, none},
		{"the directories come", func() { r.mkdir("conf"); r.mkdir("bin") }, inConf | inBins},
		{"a file", func() { r.write("conf/1.conf", "1") }, inConf},
		{"written in place, of the same size", func() { r.write("conf/1.conf", "2") }, inConf},
		{"replaced", func() { r.replace("conf/1.conf", "2") }, inConf},
		{"its mode", func() { r.must(os.Chmod(conf+"/1.conf", 0)) }, inConf},
		{"its name", func() { r.rename("conf/1.conf", "conf/2.conf") }, inConf},
		{"a link to nothing", func() { r.symlink("../far", "conf/3.conf") }, inConf},
		{"its target", func() { r.write("far", "3") }, inConf},
		{"another file", func() { r.write("conf/README", "1") }, none},
		{"crinet's own file", func() { r.write("conf/"+OwnFile, "1") }, none},
		{"a dotfile", func() { r.write("conf/.1.conf", "1") }, none},
		{"a folder", func() { r.mkdir("conf/net") }, inConf},
		{"a file in it", func() { r.write("conf/net/1.conf", "1") }, inConf},
		{"in place", func() { r.write("conf/net/1.conf", "2") }, inConf},
		{"the directory's mode", func() { r.must(os.Chmod(conf, 0o700)) }, inConf},
		{"made again", func() { r.rename("conf", "old"); r.mkdir("conf") }, inConf},
		{"a plugin", func() { r.write("bin/bridge", "1") }, inBins},
		{"a plugin in place", func() { r.write("bin/bridge", "2") }, inBins},
		{"another program", func() { r.write("bin/kubelet", "1") }, inBins},
		{"another program in place", func() { r.write("bin/kubelet", "2") }, none},
	} {
		step.do()
		conf, bins := take()
		got := none
		if !conf.same(oldConf) {
			got |= inConf
		}
		if !bins.same(oldBins) {
			got |= inBins
		}
		if got != step.want {
			t.Errorf("%s: seen in %b, want %b", step.name, got, step.want)
		}
		oldConf, oldBins = conf, bins
	}
	if oldConf.same(nil) {
		t.Error("nothing is the same as no fingerprint")
	}
	// What is young may change without another ctime: it is looked at again.
	r.write("conf/1.conf", "1")
	young := printConf(conf)
	if !young.young || printConf(conf).same(young) {
		t.Error("a file that has just changed counts as settled")
	}
}

// BenchmarkFingerprint is what watching costs each second: a conf dir of 20 files
// that name 4 plugins, and two bin dirs of 100 files.
func BenchmarkFingerprint(b *testing.B) {
	root := b.TempDir()
	conf, bins := root+"/conf", []string{root + "/bin0", root + "/bin1"}
	for _, dir := range append(bins, conf) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	file := func(format string, args ...any) {
		if err := os.WriteFile(fmt.Sprintf(format, args...), []byte(list1("a")), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 20 {
		file("%s/%02d.conflist", conf, i)
	}
	for i := range 100 {
		file("%s/plugin%d", bins[0], i)
		file("%s/plugin%d", bins[1], i)
	}
	for b.Loop() {
		printConf(conf)
		printBins(bins, []string{"plugin1", "plugin2", "plugin3", "missing"})
		watchPaths(conf, bins)
	}
	// Done once a second: the part of one core.
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(time.Second)*1e6, "ppm-of-a-core")
}
