package report

import (
	"context"

	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/why"
)

// Operations are those that are recorded.
func (s *Source) Operations(q recorder.Query) ([]recorder.Operation, error) {
	return s.Recorder.Find(q)
}

// Why is what crinetctl why shows.
func (s *Source) Why(ctx context.Context, pod string) (*why.Story, error) {
	return why.Tell(ctx, why.Sources{
		Told: "crinetd", Find: s.Recorder.Find, Records: s.Engine.Records, Stands: s.Engine.Stands, Inspect: s.inspect, Drift: s.driftOf,
	}, pod)
}

// inspect compares an attachment with the kernel.
func (s *Source) inspect(ctx context.Context, r *journal.Record) []inspect.Finding {
	return inspect.Inspect(ctx, s.Subjects()(r))
}

// Subjects returns what says what the network of a record should be. It looks at the
// table once, for all records that it is asked for.
func (s *Source) Subjects() func(*journal.Record) inspect.Subject {
	look := s.Table.Look()
	return func(r *journal.Record) inspect.Subject { return s.subject(r, look) }
}

func (s *Source) subject(r *journal.Record, look *hostport.Look) inspect.Subject {
	subject := inspect.Subject{
		Attachment: r.Attachment,
		Hairpin:    s.Hairpin && !r.Adopted && hostport.HairpinFor(r.Attachment.ConfList),
	}
	pod, err := s.Engine.PortPod(r)
	if err != nil || len(pod.Mappings)+len(pod.Masquerade) > 0 && !pod.Foreign {
		subject.Table = func(ctx context.Context) ([]string, error) {
			if err != nil {
				return nil, err
			}
			return look.Lacking(ctx, pod)
		}
	}
	return subject
}

// driftOf says what was noticed of a record's drift; nil if nothing was.
func (s *Source) driftOf(r *journal.Record) *why.Drift {
	if s.Drift == nil {
		return nil
	}
	d := s.Drift.Of(r.Key())
	if d == nil {
		return nil
	}
	return &why.Drift{Since: d.Since, Ended: d.Ended, What: d.String()}
}
