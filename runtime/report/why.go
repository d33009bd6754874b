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
		Told: "crinetd", Find: s.Recorder.Find, Records: s.Engine.Records, Stands: s.Engine.Stands, Inspect: s.inspect,
	}, pod)
}

// inspect compares an attachment with the kernel.
func (s *Source) inspect(ctx context.Context, r *journal.Record) []inspect.Finding {
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
			return s.Table.Lacking(ctx, pod)
		}
	}
	return inspect.Inspect(ctx, subject)
}
