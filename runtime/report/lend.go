package report

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/engine"
)

// maxWho bounds a borrower's name in characters.
const maxWho = 100

// Lend lends attachments of the selected network, or of a candidate.
func (s *Source) Lend(ctx context.Context, what admin.Lend) (admin.Loan, error) {
	if s.Watcher == nil {
		return nil, errors.New("--network-plugin is noop: crinetd networks no pods, and has no network to test")
	}
	l := &loan{source: s}
	var plan engine.Planner
	if what.Candidate == nil {
		network, err := s.Selection.Selected()
		if err != nil {
			return nil, fmt.Errorf("network not ready: %w", err)
		}
		l.file = network.File
	} else {
		network, warnings, problem := what.Candidate.Network(s.Probe, config.ScanOptions{MTU: s.MTU})
		if problem != nil {
			return nil, errors.New(problem.String())
		}
		l.file, l.warnings = network.File, warnings
		plan = func(a cni.Attachment) (*cni.Attachment, error) { return s.Chain.PlanOn(network, a) }
	}
	var err error
	l.loan, err = s.Engine.Lend(ctx, plain(what.Who), plan)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// plain makes a borrower's name fit for logs and terminals.
func plain(who string) string {
	who = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, who)
	return fmt.Sprintf("%.*s", maxWho, who)
}

// loan is the engine's loan in admin's words.
type loan struct {
	source   *Source
	loan     *engine.Loan
	file     string
	warnings []string
}

func (l *loan) Add(ctx context.Context, hostPorts bool) (*admin.Lent, error) {
	lent, err := l.loan.Add(ctx, hostPorts)
	if err != nil {
		return nil, err
	}
	a := &lent.Attachment
	view := &admin.Lent{
		ContainerID: a.ContainerID, NetNS: a.NetNS, IfName: a.IfName, Network: a.Network, File: l.file, Warnings: l.warnings,
		Addresses: lent.Addresses, NoHostPort: lent.WhyNoHostPorts, ConfList: a.ConfList,
	}
	if view.HasCheck, err = a.HasCheck(); err != nil {
		return nil, err
	}
	for _, b := range a.Builtin {
		view.Builtin = append(view.Builtin, b.Type)
	}
	if len(lent.HostPorts) > 0 {
		view.HostPort, view.ContainerPort, view.MappedBy = lent.HostPorts[0].HostPort, lent.HostPorts[0].ContainerPort, "plugin"
		if l.source.HostPorts != nil {
			view.MappedBy, view.NoLoopback = "crinetd", l.source.HostPorts.Report().Limited[a.ContainerID]
		}
	}
	return view, nil
}

func (l *loan) Check(ctx context.Context, index int) error { return l.loan.Check(ctx, index) }

func (l *loan) Return(ctx context.Context) ([]string, error) { return l.loan.Return(ctx) }
