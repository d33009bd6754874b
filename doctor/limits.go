package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LimitConcern is the concern of the limit checks.
const LimitConcern = "limits"

func limitChecks() []Check {
	return []Check{
		{Name: "disk-space", Looks: "free bytes where crinetd, containerd and host-local keep their state", Severity: Error, run: diskSpace,
			Why: "what cannot be journalled is not started: no pod gets a network"},
		{Name: "disk-inodes", Looks: "free inodes where crinetd, containerd and host-local keep their state", Severity: Error, run: diskInodes,
			Why: "no file can be made: no address can be reserved, no pod starts"},
		{Name: "disk-read-only", Looks: "whether those file systems can be written to", Severity: Error, run: diskReadOnly,
			Why: "nothing can be journalled: no pod gets a network, though removal works on"},
		{Name: "clock", Looks: "the clock: not before 2020, and synchronised", Severity: Error, run: clock,
			Why: "certificates are not valid yet: the kubelet and the network's agents cannot speak to the API server"},
		{Name: "inotify-instances", Looks: "fs.inotify.max_user_instances against what root uses", Severity: Error, run: inotifyInstances,
			Why: "crinetd, containerd and the kubelet cannot watch files: changes come late, containerd and the kubelet may not start"},
		{Name: "inotify-watches", Looks: "fs.inotify.max_user_watches", Severity: Warning, run: inotifyWatches,
			Why: "programs cannot watch their files"},
		{Name: "conntrack-table", Looks: "nf_conntrack_count against nf_conntrack_max", Severity: Error, run: conntrackTable,
			Why: "a full table drops new connections of all pods and of the node (dmesg: table full, dropping packet)"},
		{Name: "neighbour-table", Looks: "neighbours against net.ipv4.neigh.default.gc_thresh3, and IPv6's", Severity: Warning, run: neighbourTable,
			Why: "with a full table new pods are not reached (dmesg: neighbour table overflow)"},
		{Name: "process-ids", Looks: "processes and threads against kernel.pid_max", Severity: Warning, run: processIDs,
			Why: "without process ids no plugin and no container can be started"},
		{Name: "crinetd-files", Looks: "crinetd's open files against its limit", Severity: Warning, run: crinetdFiles,
			Why: "crinetd cannot accept calls"},
	}
}

// volume is a file system that state is kept on.
type volume struct {
	dir  string
	stat unix.Statfs_t
}

// volumes are the file systems of crinetd, containerd and host-local, each once.
func (n *Node) volumes() []volume {
	var all []volume
	seen := make(map[unix.Fsid]bool)
	for _, dir := range []string{n.Options.StateDir, n.Options.RunDir, "/run", "/var/lib/cni", "/var/lib/containerd", "/tmp"} {
		v := volume{dir: dir}
		if unix.Statfs(n.path(dir), &v.stat) != nil || v.stat.Fsid != (unix.Fsid{}) && seen[v.stat.Fsid] {
			continue
		}
		seen[v.stat.Fsid] = true
		all = append(all, v)
	}
	return all
}

// What counts as nearly full: bytes that the journal, its log and a pod's files need,
// with room for a burst.
const (
	leastBytes  = 1 << 20
	littleBytes = 16 << 20
	leastFiles  = 16
	littleFiles = 512
)

func diskSpace(_ context.Context, n *Node) Result {
	return n.judgeVolumes("bytes", func(s *unix.Statfs_t) (free, total uint64) {
		return s.Bavail * uint64(s.Bsize), s.Blocks * uint64(s.Bsize)
	}, leastBytes, littleBytes)
}

func diskInodes(_ context.Context, n *Node) Result {
	return n.judgeVolumes("inodes", func(s *unix.Statfs_t) (free, total uint64) { return s.Ffree, s.Files }, leastFiles, littleFiles)
}

// judgeVolumes looks for the fullest file system.
func (n *Node) judgeVolumes(what string, of func(*unix.Statfs_t) (free, total uint64), least, little uint64) Result {
	volumes := n.volumes()
	for _, limit := range []struct {
		free     uint64
		severity Severity
	}{{least, Error}, {little, Warning}} {
		for _, v := range volumes {
			if free, total := of(&v.stat); total > 0 && free < limit.free {
				return bad(fmt.Sprintf("free some: du -x%s %s | sort -n | tail; crictl rmi --prune removes images that nobody uses", map[string]string{"bytes": "", "inodes": " --inodes"}[what], v.dir),
					"the file system of %s has %d of %d %s free", v.dir, free, total, what).at(limit.severity)
			}
		}
	}
	var rooms []string
	for _, v := range volumes {
		free, _ := of(&v.stat)
		rooms = append(rooms, fmt.Sprintf("%s %d", v.dir, free))
	}
	return good("free %s: %s", what, few(rooms))
}

func diskReadOnly(_ context.Context, n *Node) Result {
	volumes := n.volumes()
	for _, v := range volumes {
		if v.dir != "/tmp" && v.stat.Flags&unix.ST_RDONLY != 0 {
			return bad("dmesg | grep -i remount shows why; repair the disk, then mount -o remount,rw the file system of "+v.dir+" && systemctl restart crinetd", "the file system of %s is mounted read-only", v.dir)
		}
	}
	return good("%d file systems can be written to", len(volumes))
}

func clock(_ context.Context, n *Node) Result {
	now := time.Now()
	if now.Year() < 2020 {
		return bad("timedatectl set-ntp true; or date -s, and replace the clock's battery", "the clock says %s", now.UTC().Format(time.DateOnly))
	}
	if !n.Live {
		return good("it is %s", now.UTC().Format(time.DateOnly))
	}
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err == nil && t.Status&unix.STA_UNSYNC != 0 {
		return good("it is %s; the kernel does not know of a synchronisation", now.UTC().Format(time.DateTime))
	}
	return good("it is %s, synchronised", now.UTC().Format(time.DateTime))
}

func inotifyInstances(ctx context.Context, n *Node) Result {
	most, err := n.number("fs/inotify/max_user_instances")
	if err != nil {
		return unknown("%v", err)
	}
	mend := n.setSysctl("fs/inotify/max_user_instances", "8192")
	if most < 16 {
		return bad(mend, "fs.inotify.max_user_instances is %d", most)
	}
	used, err := n.countInotify(ctx, 0)
	if err != nil {
		return unknown("the limit is %d; who uses how many is not known: %v", most, err)
	}
	switch {
	case used >= most:
		return bad(mend, "root's processes have all %d inotify instances", most)
	case used*10 >= most*9:
		return bad(mend, "root's processes have %d of %d inotify instances", used, most).at(Warning)
	}
	return good("root's processes have %d of %d inotify instances", used, most)
}

func inotifyWatches(_ context.Context, n *Node) Result {
	most, err := n.number("fs/inotify/max_user_watches")
	if err != nil {
		return unknown("%v", err)
	}
	if most < 1024 {
		return bad(n.setSysctl("fs/inotify/max_user_watches", "524288"), "fs.inotify.max_user_watches is %d", most)
	}
	return good("fs.inotify.max_user_watches is %d", most)
}

func conntrackTable(_ context.Context, n *Node) Result {
	most, err := n.number("net/netfilter/nf_conntrack_max")
	if isMissing(err) {
		return skip("conntrack is not loaded")
	}
	if err != nil {
		return unknown("%v", err)
	}
	used, err := n.number("net/netfilter/nf_conntrack_count")
	if err != nil {
		return unknown("%v", err)
	}
	mend := n.setSysctl("net/netfilter/nf_conntrack_max", strconv.Itoa(max(2*most, 131072))) + "; kube-proxy sets it from conntrack.maxPerCore"
	switch {
	case most == 0:
		return good("conntrack has no limit, %d flows", used)
	case used*100 >= most*95:
		return bad(mend, "conntrack has %d of %d flows", used, most)
	case used*100 >= most*80:
		return bad(mend, "conntrack has %d of %d flows", used, most).at(Warning)
	}
	return good("conntrack has %d of %d flows", used, most)
}

func neighbourTable(ctx context.Context, n *Node) Result {
	worst := good("the tables have room")
	pods := 0
	if c, err := n.askCrinetd(ctx); err == nil {
		pods = len(c.Pods)
	}
	for _, family := range []struct{ name, table string }{{"ipv4", "arp_cache"}, {"ipv6", "ndisc_cache"}} {
		limit := "net/" + family.name + "/neigh/default/gc_thresh3"
		most, err := n.number(limit)
		if err != nil {
			continue // the kernel has no such family, or a namespace that is not the first
		}
		used := pods
		if text, err := n.read("/proc/net/stat/" + family.table); err == nil {
			used = max(used, firstHex(text))
		}
		worst.Found = fmt.Sprintf("%d of %d neighbours (IPv4, IPv6 alike)", used, most)
		if used*10 >= most*9 {
			return bad(n.setSysctl(limit, strconv.Itoa(8*most)), "%d neighbours or pods, net.%s.neigh.default.gc_thresh3 is %d", used, family.name, most)
		}
	}
	return worst
}

// firstHex is the first number of the second line of a file in /proc/net/stat.
func firstHex(text string) int {
	lines := strings.SplitN(text, "\n", 3)
	if len(lines) < 2 {
		return 0
	}
	word, _, _ := strings.Cut(strings.TrimSpace(lines[1]), " ")
	value, err := strconv.ParseInt(word, 16, 32)
	if err != nil {
		return 0
	}
	return int(value)
}

func processIDs(_ context.Context, n *Node) Result {
	most, err := n.number("kernel/pid_max")
	if err != nil {
		return unknown("%v", err)
	}
	text, err := n.read("/proc/loadavg") // 0.00 0.01 0.05 1/123 4567
	if err != nil {
		return unknown("%v", err)
	}
	used := 0
	if f := strings.Fields(text); len(f) > 3 {
		_, all, _ := strings.Cut(f[3], "/")
		used, _ = strconv.Atoi(all) // 0 for what is no number
	}
	if used*10 >= most*9 {
		return bad(n.setSysctl("kernel/pid_max", "4194304")+"; ps -eLf | awk '{print $NF}' | sort | uniq -c | sort -n | tail shows who has them", "%d of %d processes and threads", used, most)
	}
	return good("%d of %d processes and threads", used, most)
}

func crinetdFiles(ctx context.Context, n *Node) Result {
	pids := n.crinetdPIDs(ctx)
	if len(pids) == 0 {
		return skip("crinetd does not run")
	}
	dir := fmt.Sprintf("/proc/%d", pids[0])
	text, err := n.read(dir + "/limits")
	if err != nil {
		return unknown("%v", err)
	}
	most := 0
	for l := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(l, "Max open files"); ok && len(strings.Fields(rest)) > 0 {
			most, _ = strconv.Atoi(strings.Fields(rest)[0]) // 0 is unlimited
		}
	}
	open, err := filepath.Glob(n.path(dir + "/fd/*"))
	if err != nil {
		return unknown("%v", err)
	}
	if most > 0 && len(open)*10 >= most*9 {
		return bad("set LimitNOFILE="+strconv.Itoa(4*most)+" in a drop-in of crinetd.service && systemctl restart crinetd", "crinetd has %d of %d files open", len(open), most)
	}
	return good("crinetd has %d of %d files open", len(open), most)
}
