package upstream

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ask calls Status with a caller's deadline and returns how long it took.
func ask(t *testing.T, w *Watcher) (Answer, time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	answer := w.Status(ctx)
	return answer, time.Since(began)
}

// A runtime is asked once in an interval while nobody wants to know: a question
// must not be the reason for the next one.
func TestRunAsksOnceInAnInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRuntime{}
		watch(t, direct{runtime: r}, "fake")
		time.Sleep(12*Interval + time.Millisecond)
		if statuses, _ := r.counts(); statuses != 13 {
			t.Errorf("%d questions in %s, want 13", statuses, 12*Interval)
		}
		r.checkQuestions(t)
	})
}

func TestStatusIsFreshWithinPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRuntime{delay: patience / 2, said: "old"}
		w, _ := watch(t, direct{runtime: r}, "fake")
		if answer, took := ask(t, w); said(answer) != "old" || answer.Silent != 0 || took != patience/2 {
			t.Fatalf("first answer %q after %s, silent %s", said(answer), took, answer.Silent)
		}
		r.set(func(r *fakeRuntime) { r.said = "new" })
		if answer, took := ask(t, w); said(answer) != "old" || took != 0 {
			t.Errorf("an answer that is %s old is %q after %s, want it from memory", patience/2, said(answer), took)
		}
		time.Sleep(2 * fresh)
		began := time.Now()
		if answer, took := ask(t, w); said(answer) != "new" || took != patience/2 || !answer.Asked.Equal(began) {
			t.Errorf("answer %q, asked %s, after %s; want a new one", said(answer), answer.Asked.Sub(began), took)
		}
		r.checkQuestions(t)
	})
}

// Row B8: a runtime that always takes longer than callers wait is nevertheless
// asked, one question at a time, and its answers stay young.
func TestSlowRuntimeIsAnsweredFromMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRuntime{delay: 35 * time.Millisecond}
		w, _ := watch(t, direct{runtime: r}, "fake")
		ask(t, w)
		for n := range 300 {
			answer, took := ask(t, w)
			if answer.Err != nil || answer.Status == nil || took > patience {
				t.Fatalf("call %d: %v after %s", n, answer.Err, took)
			}
			if age := time.Since(answer.Asked); age > fresh+200*time.Millisecond {
				t.Fatalf("call %d: the answer is %s old", n, age)
			}
			time.Sleep(100 * time.Millisecond)
		}
		r.checkQuestions(t)
	})
}

// Row B8: a runtime that hangs is answered from memory, and the answer says for
// how long it has been silent.
func TestHungRuntimeIsAnsweredFromMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRuntime{said: "old"}
		w, _ := watch(t, direct{runtime: r}, "fake")
		ask(t, w)
		hang := make(chan struct{})
		r.set(func(r *fakeRuntime) { r.hang, r.said = hang, "new" })
		before, _ := r.counts()
		time.Sleep(2 * fresh)
		var silent time.Duration
		var times []time.Duration
		for n := range 310 {
			answer, took := ask(t, w)
			times = append(times, took)
			if answer.Err != nil || said(answer) != "old" || took > patience {
				t.Fatalf("call %d: %q, %v after %s", n, said(answer), answer.Err, took)
			}
			if answer.Silent < silent {
				t.Fatalf("call %d: silent for %s, and for %s a call before", n, answer.Silent, silent)
			}
			silent = answer.Silent
			time.Sleep(100 * time.Millisecond)
		}
		slices.Sort(times)
		if median := times[len(times)/2]; median != 0 {
			t.Errorf("the median call waits %s; only the first has to wait", median)
		}
		if silent < Hung {
			t.Errorf("silent for %s after half a minute, want at least %s", silent, Hung)
		}
		if after, _ := r.counts(); after != before+1 {
			t.Errorf("%d questions while the runtime hung, want one", after-before)
		}
		close(hang)
		synctest.Wait()
		if answer := w.Last(); said(answer) != "new" || answer.Silent != 0 {
			t.Errorf("answer %q, silent %s; want the new one", said(answer), answer.Silent)
		}
		r.checkQuestions(t)
	})
}

// Row B8 over gRPC: callers have deadlines, the runtime sees none, no call fails.
func TestHungRuntimeOverGRPC(t *testing.T) {
	r := &fakeRuntime{said: "old"}
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path, r)
	w, _ := watch(t, dial(t, path), path)
	if answer, _ := ask(t, w); answer.Err != nil || said(answer) != "old" {
		t.Fatalf("first answer: %q, %v", said(answer), answer.Err)
	}
	hang := make(chan struct{})
	defer close(hang) // before the server is stopped, which waits for its calls
	r.set(func(r *fakeRuntime) { r.hang = hang })
	w.Wake()
	waitFor(t, func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.running == 1 })
	w.mu.Lock()
	w.last.Asked = w.last.Asked.Add(-2 * fresh) // as if time had passed
	w.mu.Unlock()
	var times []time.Duration
	for n := range 300 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		began := time.Now()
		answer := w.Status(ctx)
		times = append(times, time.Since(began))
		cancel()
		if answer.Err != nil || said(answer) != "old" {
			t.Fatalf("call %d: %q, %v", n, said(answer), answer.Err)
		}
	}
	slices.Sort(times)
	if median := times[len(times)/2]; median > 5*time.Millisecond {
		t.Errorf("the median call takes %s, want less than 5ms", median)
	}
	if w.Last().Silent == 0 {
		t.Error("the runtime hangs and does not count as silent")
	}
	r.checkQuestions(t)
}

func TestFirstAnswerIsWaitedForAsLongAsTheCallerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		r := &fakeRuntime{hang: hang, said: "first"}
		w, _ := watch(t, direct{runtime: r}, "fake")
		patient := make(chan Answer)
		go func() { patient <- w.Status(t.Context()) }()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		answer := w.Status(ctx)
		if took := time.Since(began); status.Code(answer.Err) != codes.DeadlineExceeded || took != 3*time.Second {
			t.Errorf("Status = %v after %s, want DeadlineExceeded after 3s", answer.Err, took)
		}
		if last := w.Last(); last.Err != nil || last.Status != nil || last.Silent != 3*time.Second {
			t.Errorf("one caller's deadline counts as the runtime's answer: %+v", last)
		}
		close(hang)
		if answer := <-patient; answer.Err != nil || said(answer) != "first" {
			t.Errorf("the other caller got %q, %v", said(answer), answer.Err)
		}
		r.checkQuestions(t)
	})
}

func TestCallerThatIsGoneGetsTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRuntime{said: "old"}
		w, _ := watch(t, direct{runtime: r}, "fake")
		ask(t, w)
		hang := make(chan struct{})
		defer close(hang)
		r.set(func(r *fakeRuntime) { r.hang = hang })
		time.Sleep(2 * fresh)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if answer := w.Status(ctx); answer.Err != nil || said(answer) != "old" {
			t.Errorf("Status = %q, %v; want the last answer", said(answer), answer.Err)
		}
	})
}

func TestFailureIsToldAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRuntime{said: "old", version: "v1.7.27"}
		w, logs := watch(t, direct{runtime: r}, "fake")
		ask(t, w)
		r.set(func(r *fakeRuntime) { r.failure = status.Error(codes.Unknown, "no luck") })
		time.Sleep(Interval)
		synctest.Wait()
		before, _ := r.counts()
		time.Sleep(10 * retryInterval)
		synctest.Wait()
		if after, _ := r.counts(); after != before+10 {
			t.Errorf("%d questions in %s, want 10", after-before, 10*retryInterval)
		}
		answer, _ := ask(t, w)
		if status.Code(answer.Err) != codes.Unknown || !strings.Contains(answer.Err.Error(), "no luck") || said(answer) != "old" {
			t.Errorf("Status = %q, %v; want the runtime's own error beside the last answer", said(answer), answer.Err)
		}
		r.set(func(r *fakeRuntime) { r.failure, r.version, r.said, r.delay = nil, "v2.4.2", "new", failedPatience/2 })
		answer, took := ask(t, w)
		if answer.Err != nil || said(answer) != "new" || took != failedPatience/2 {
			t.Errorf("Status = %q, %v after %s; want the new answer", said(answer), answer.Err, took)
		}
		if answer.Facts.Version != "v2.4.2" {
			t.Errorf("version %s, want that of the runtime that came back", answer.Facts.Version)
		}
		if logs.count("does not answer") != 1 || logs.count("answers again") != 1 {
			t.Errorf("the failure and its end must be logged once each:\n%s", logs)
		}
		r.checkQuestions(t)
	})
}

// A runtime that is replaced between two questions fails none of them.
func TestVersionOfAReplacedRuntimeIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRuntime{version: "v1.7.27"}
		w, _ := watch(t, direct{runtime: r}, "fake")
		ask(t, w)
		r.set(func(r *fakeRuntime) { r.version = "v2.4.2" })
		time.Sleep(Interval)
		synctest.Wait()
		if facts := w.Last().Facts; facts.Name != "containerd" || facts.Version != "v2.4.2" {
			t.Errorf("the runtime is %s %s, want containerd v2.4.2", facts.Name, facts.Version)
		}
	})
}

// What changed while a question was under way may not be in its answer: one more
// question follows.
func TestWakeAsksAgainAndDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRuntime{}
		w, _ := watch(t, direct{runtime: r}, "fake")
		ask(t, w)
		hang := make(chan struct{})
		r.set(func(r *fakeRuntime) { r.hang = hang })
		w.Wake()
		synctest.Wait()
		before, _ := r.counts()
		for range 5 {
			w.Wake()
		}
		close(hang)
		synctest.Wait()
		if after, _ := r.counts(); after != before+1 {
			t.Errorf("%d questions after Wake, want one", after-before)
		}
		r.checkQuestions(t)
	})
}

// The end of crinetd is not the end of the runtime.
func TestEndOfRunIsNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRuntime{said: "old"}
		w, logs := watch(t, direct{runtime: r}, "fake")
		ask(t, w)
		hang := make(chan struct{})
		defer close(hang)
		r.set(func(r *fakeRuntime) { r.hang = hang })
		other := NewWatcher(direct{runtime: r}, "fake", w.log)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); other.Run(ctx) }()
		synctest.Wait()
		cancel()
		<-done
		if err := other.Last().Err; err != nil || logs.count("does not answer") != 0 {
			t.Errorf("the end of Run counts as a failure of the runtime: %v", err)
		}
	})
}

// A runtime that is down is named; one that is back is seen within two seconds,
// whether somebody asks for it or not.
func TestDownRuntimeIsNamedAndItsReturnSeen(t *testing.T) {
	r := &fakeRuntime{said: "back"}
	path := filepath.Join(t.TempDir(), "s")
	w, _ := watch(t, dial(t, path), path)
	for _, asks := range []bool{true, false} {
		waitFor(t, func() bool { answer, _ := ask(t, w); return answer.Err != nil })
		answer, _ := ask(t, w)
		if status.Code(answer.Err) != codes.Unavailable || !strings.Contains(answer.Err.Error(), path) {
			t.Fatalf("Status = %v, want Unavailable that names %s", answer.Err, path)
		}
		kill := serve(t, path, r)
		began := time.Now()
		waitFor(t, func() bool {
			answer := w.Last()
			if asks {
				answer, _ = ask(t, w)
			}
			return answer.Err == nil && said(answer) == "back"
		})
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the runtime's return was seen after %s (asked: %v), want 2s at most", took, asks)
		}
		kill()
		w.Wake()
	}
	r.checkQuestions(t)
}

// A call that a dying runtime breaks off is a failure, not silence.
func TestRuntimeThatDiesWhileItHangs(t *testing.T) {
	hang := make(chan struct{})
	r := &fakeRuntime{said: "old"}
	path := filepath.Join(t.TempDir(), "s")
	kill := serve(t, path, r)
	w, _ := watch(t, dial(t, path), path)
	ask(t, w)
	r.set(func(r *fakeRuntime) { r.hang = hang })
	defer close(hang)
	w.Wake()
	waitFor(t, func() bool { return w.Last().Silent > 0 })
	kill()
	waitFor(t, func() bool { return w.Last().Err != nil })
	answer, _ := ask(t, w)
	if status.Code(answer.Err) != codes.Unavailable || said(answer) != "old" {
		t.Errorf("Status = %q, %v; want Unavailable", said(answer), answer.Err)
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what was waited for did not come")
		}
	}
}
