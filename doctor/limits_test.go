package doctor

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLimitChecks(t *testing.T) {
	t.Parallel()
	const instances, watches = "/proc/sys/fs/inotify/max_user_instances", "/proc/sys/fs/inotify/max_user_watches"
	flows := func(count, most string) map[string]string {
		return conf("/proc/sys/net/netfilter/nf_conntrack_count", count, "/proc/sys/net/netfilter/nf_conntrack_max", most)
	}
	users := conf(instances, "20")
	for _, fd := range []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19"} {
		users["/proc/5/comm"] = "kubelet\n"
		users["/proc/5/fd/"+fd] = "->anon_inode:inotify"
	}
	const thresh4, thresh6 = "/proc/sys/net/ipv4/neigh/default/gc_thresh3", "/proc/sys/net/ipv6/neigh/default/gc_thresh3"
	const limits = "Limit                     Soft Limit           Hard Limit           Units\nMax open files            10                   10                   files\n"
	open := func(count int) map[string]string {
		files := conf("/proc/8/comm", "crinetd\n", "/proc/8/cmdline", "crinetd\x00--network-plugin=cni\x00", "/proc/8/limits", limits)
		for i := range count {
			files["/proc/8/fd/"+string(rune('0'+i))] = ""
		}
		return files
	}
	run(t, []tc{
		{name: "good", check: "inotify-instances", files: conf(instances, "128"), want: OK, found: "0 of 128"},
		{name: "none", check: "inotify-instances", files: conf(instances, "0"), want: Outcome(Error), mend: "sysctl -w fs.inotify.max_user_instances=8192"},
		{name: "nearly used", check: "inotify-instances", files: users, want: Outcome(Warning), found: "19 of 20"},
		{name: "good", check: "inotify-watches", files: conf(watches, "65536"), want: OK},
		{name: "few", check: "inotify-watches", files: conf(watches, "100"), want: Outcome(Warning), mend: "sysctl -w fs.inotify.max_user_watches=524288"},
		{name: "good", check: "conntrack-table", files: flows("10", "100"), want: OK, found: "10 of 100"},
		{name: "nearly full", check: "conntrack-table", files: flows("80", "100"), want: Outcome(Warning), mend: "nf_conntrack_max=131072"},
		{name: "full", check: "conntrack-table", files: flows("200000", "200000"), want: Outcome(Error), mend: "nf_conntrack_max=400000"},
		{name: "no limit", check: "conntrack-table", files: flows("200000", "0"), want: OK},
		{name: "not loaded", check: "conntrack-table", files: conf(), want: Skipped},
		{name: "good", check: "neighbour-table", files: conf(thresh4, "1024", "/proc/net/stat/arp_cache", "entries  allocs\n00000010  00000001\n"), want: OK, found: "16 of 1024"},
		{name: "full", check: "neighbour-table", files: conf(thresh4, "1024", "/proc/net/stat/arp_cache", "entries  allocs\n000003f0  00000001\n"), want: Outcome(Warning), found: "1008 neighbours", mend: "net.ipv4.neigh.default.gc_thresh3=8192"},
		{name: "pods", check: "neighbour-table", files: conf(thresh6, "2"), crinetd: &Crinetd{Pods: make([]Pod, 2)}, want: Outcome(Warning), mend: "net.ipv6.neigh"},
		{name: "good", check: "process-ids", files: conf("/proc/sys/kernel/pid_max", "32768\n", "/proc/loadavg", "0.00 0.01 0.05 1/123 4567\n"), want: OK, found: "123 of 32768"},
		{name: "few", check: "process-ids", files: conf("/proc/sys/kernel/pid_max", "130", "/proc/loadavg", "0.00 0.01 0.05 1/123 4567\n"), want: Outcome(Warning), mend: "kernel.pid_max=4194304"},
		{name: "good", check: "crinetd-files", files: open(2), want: OK, found: "2 of 10"},
		{name: "many", check: "crinetd-files", files: open(9), want: Outcome(Warning), found: "9 of 10", mend: "LimitNOFILE=40"},
		{name: "does not run", check: "crinetd-files", files: conf(), want: Skipped},
	})
}

// A clock that has lost its battery is told.
func TestClock(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		year int
		want Outcome
	}{{1970, Outcome(Error)}, {2019, Outcome(Error)}, {2026, OK}} {
		n := &Node{now: func() time.Time { return time.Date(c.year, 5, 1, 0, 0, 0, 0, time.UTC) }}
		checks, err := Select(Checks(), []string{"clock"})
		if err != nil {
			t.Fatal(err)
		}
		if r := Run(t.Context(), n, checks)[0]; r.Outcome != c.want {
			t.Errorf("%d: %+v", c.year, r)
		}
	}
}

// Volumes are judged by what is free for others than root, and the worst comes first.
func TestVolumes(t *testing.T) {
	t.Parallel()
	n := &Node{Root: t.TempDir()}
	if err := n.FindOptions(nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		free uint64
		want Outcome
	}{{0, Outcome(Error)}, {1 << 20, Outcome(Warning)}, {16 << 20, OK}} {
		r := n.judgeVolumes("bytes", func(*unix.Statfs_t) (uint64, uint64) { return c.free, 1 << 30 }, leastBytes, littleBytes)
		if c.want == OK != (r.Outcome == OK) || c.want != OK && r.Outcome != c.want {
			t.Errorf("%d bytes free: %+v", c.free, r)
		}
	}
	if r := n.judgeVolumes("inodes", func(*unix.Statfs_t) (uint64, uint64) { return 0, 0 }, leastFiles, littleFiles); r.Outcome != OK {
		t.Errorf("a file system that counts no inodes: %+v", r)
	}
}
