package watchdog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/crinet-project/crinet/internal/backoff"
)

// statusEvery is the time between two looks at the status text.
const statusEvery = time.Second

// Config of Run.
type Config struct {
	// CRI and CNI are the sockets' paths.
	CRI, CNI string
	// Held says that the sockets are the service manager's: starting crinetd anew
	// would not bring a path back that somebody removed.
	Held bool
	// Interval is the time within which the service manager wants a sign of life;
	// 0 if it wants none.
	Interval time.Duration
	// Status returns the line that describes crinetd.
	Status func() string
	// Notify sends a state to the service manager.
	Notify func(state string) error
	Log    *slog.Logger
}

// Run tells the service manager until ctx ends.
func Run(ctx context.Context, c Config) {
	var told string
	var next time.Time
	wait := statusEvery
	if c.Interval > 0 {
		wait = min(wait, c.Interval/3)
	}
	for {
		if text := c.Status(); text != told && c.tell("STATUS="+text) {
			told = text
		}
		if now := time.Now(); c.Interval > 0 && !now.Before(next) {
			next = now.Add(c.Interval / 3)
			c.live(ctx)
		}
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}

// live gives a sign of life if there is life.
func (c *Config) live(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.Interval/3)
	defer cancel()
	err := errors.Join(c.ask(ctx, c.CRI, askCRI), c.ask(ctx, c.CNI, askCNI))
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			c.Log.Error("crinetd does not answer its own question; the service manager will start it anew if that stays so", "err", err)
		}
		return
	}
	c.tell(daemon.SdNotifyWatchdog)
}

// ask asks one question.
func (c *Config) ask(ctx context.Context, path string, question func(context.Context, string) error) error {
	if _, err := os.Lstat(path); c.Held && errors.Is(err, fs.ErrNotExist) {
		c.Log.Error("somebody removed a socket's path, so that nobody can call crinetd; systemctl restart crinetd.socket makes it anew", "socket", path)
		return nil
	}
	if err := question(ctx, path); err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	return nil
}

// tell sends a state, and says whether it was sent.
func (c *Config) tell(state string) bool {
	if err := c.Notify(state); err != nil {
		c.Log.Warn("the service manager cannot be told", "state", state, "err", err)
		return false
	}
	return true
}
