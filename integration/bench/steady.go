package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// cpuLimit is crinetd's share of one processor, in percent.
const cpuLimit = 1

// How often a kubelet asks, with its defaults: PLEG relists each second, the node's
// status is looked at every 5 s, statistics are collected every 10 s.
const (
	listEvery   = time.Second
	statusEvery = 5 * time.Second
	statsEvery  = 10 * time.Second
)

// steady asks as a kubelet does whose pods run, and measures what that costs.
func (s *sides) steady(ctx context.Context, o options, t *table) error {
	pid, err := s.node.CrinetdPID()
	if err != nil {
		return err
	}
	runtimePID, err := s.node.ContainerdPID()
	if err != nil {
		return err
	}
	polling, stop := context.WithTimeout(ctx, o.steady)
	defer stop()
	before, err := cpuTimes(pid, runtimePID)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := poll(polling, s.through); err != nil {
		return err
	}
	after, err := cpuTimes(pid, runtimePID)
	if err != nil {
		return err
	}
	took := time.Since(start)
	share := func(i int) float64 { return 100 * float64(after[i]-before[i]) / float64(took) }
	resident, err := s.resident()
	if err != nil {
		return err
	}
	what := fmt.Sprintf("polled by a kubelet for %.0f s with %d pods", took.Seconds(), o.pods)
	t.addValue("crinetd, "+what+": % of one CPU", share(0), cpuLimit, "%")
	t.addPlain("containerd, "+what+": % of one CPU", fmt.Sprintf("%.1f %%", share(1)))
	t.addValue("memory of crinetd, "+what, resident, memoryLimit, "MB")
	return nil
}

// poll makes a kubelet's calls until ctx ends.
func poll(ctx context.Context, c *node.Client) error {
	group, ctx := errgroup.WithContext(ctx)
	every := func(interval time.Duration, calls ...func(context.Context) error) {
		group.Go(func() error {
			ticks := time.NewTicker(interval)
			defer ticks.Stop()
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-ticks.C:
				}
				for _, call := range calls {
					if err := call(context.WithoutCancel(ctx)); err != nil {
						return err
					}
				}
			}
		})
	}
	runtime := c.Runtime
	every(listEvery, func(ctx context.Context) error {
		_, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return err
	}, func(ctx context.Context) error {
		_, err := runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return err
	})
	every(statusEvery, func(ctx context.Context) error {
		_, err := runtime.Status(ctx, &runtimeapi.StatusRequest{})
		return err
	}, func(ctx context.Context) error {
		_, err := runtime.Version(ctx, &runtimeapi.VersionRequest{})
		return err
	})
	every(statsEvery, func(ctx context.Context) error {
		_, err := runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		return err
	}, func(ctx context.Context) error {
		_, err := runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
		return err
	})
	events, err := runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return errors.Join(err, group.Wait())
	}
	for err == nil {
		_, err = events.Recv()
	}
	if ctx.Err() == nil {
		return fmt.Errorf("the stream of events ended: %w", err)
	}
	return group.Wait()
}

// clockTick is the unit of times in /proc/PID/stat (sysconf(3), _SC_CLK_TCK): it is
// the same on all architectures that Go knows.
const clockTick = time.Second / 100

// cpuTimes are the times that processes have run in user and system mode
// (proc_pid_stat(5), utime and stime).
func cpuTimes(pids ...int) (times []time.Duration, err error) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil, fmt.Errorf("read the processor time of a daemon: %w", err)
		}
		// The second field is a name in brackets, which may have blanks in it.
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		const utime, stime = 14 - 3, 15 - 3
		if len(fields) <= stime {
			return nil, fmt.Errorf("/proc/%d/stat is not as expected: %s", pid, text)
		}
		user, userErr := strconv.ParseInt(fields[utime], 10, 64)
		system, systemErr := strconv.ParseInt(fields[stime], 10, 64)
		if err := errors.Join(userErr, systemErr); err != nil {
			return nil, err
		}
		times = append(times, time.Duration(user+system)*clockTick)
	}
	return times, nil
}
