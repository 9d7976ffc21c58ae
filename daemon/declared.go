package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-bpf/holdfast/chain/declared"
	"github.com/holdfast-bpf/holdfast/internal/realize"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// declarations are the chains that files declare, each with whether it is as declared.
type declarations struct {
	daemon *Daemon
	mutex  sync.Mutex
	hooks  []*declaration
	// undone is how many of them are not as declared. To make one so takes long, and who
	// counts does not wait.
	undone atomic.Int64
}

type declaration struct {
	declared.Hook
	file string
	// done tells that the chain has been made as declared, and that nothing has been
	// noticed since.
	done bool
	// next is when it may be tried again, and wait how long the time before was:
	// whoever undoes what is restored is not fought with.
	next time.Time
	wait time.Duration
	// failed is the last error in words, which is told once.
	failed string
}

const (
	shortestWait = time.Second
	longestWait  = 5 * time.Minute
)

// read reads the files anew. Those that can't be read are left out, and told.
func (d *declarations) read() {
	files, err := filepath.Glob(filepath.Join(d.daemon.config.Dir, "attachments.d", "*.yaml"))
	if err != nil {
		d.daemon.log.Error("what is declared can't be read", "error", err)
		return
	}
	slices.Sort(files)
	var hooks []*declaration
	for _, name := range files {
		f, err := declared.Read(name)
		if err != nil {
			d.daemon.log.Error("what is declared can't be read", "file", name, "error", err)
			continue
		}
		for _, h := range f.Hooks {
			hooks = append(hooks, &declaration{Hook: h, file: name})
		}
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.hooks = hooks
}

// drifted says that something is not as it was at an interface of that name.
func (d *declarations) drifted(iface string) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for _, h := range d.hooks {
		if h.Interface == iface && h.Drift != declared.Leave {
			h.done = false
		}
	}
}

// step makes as declared what is not, as far as its time has come. An interface that is
// not there yet is looked for each time.
func (d *declarations) step(ctx context.Context) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for _, h := range d.hooks {
		if h.done || time.Now().Before(h.next) {
			continue
		}
		d.realize(ctx, h)
	}
	undone := 0
	for _, h := range d.hooks {
		if !h.done {
			undone++
		}
	}
	d.undone.Store(int64(undone))
}

func (d *declarations) realize(ctx context.Context, h *declaration) {
	changed, err := d.apply(ctx, h)
	switch {
	case errors.Is(err, xdp.ErrNotFound):
		return // until its interface comes
	case err != nil:
		if ctx.Err() == nil {
			d.daemon.metrics.Restored(err)
		}
		if ctx.Err() == nil && h.failed != err.Error() {
			h.failed = err.Error()
			d.daemon.tell(wire.Event{Kind: wire.Drift, Interface: h.Interface, Message: "it can't be made as declared: " + err.Error()})
			d.daemon.log.Error("what is declared can't be made", "file", h.file, "interface", h.Interface, "error", err)
		}
		h.back(time.Now())
		return
	}
	h.done, h.failed = true, ""
	if changed {
		d.daemon.metrics.Restored(nil)
		d.daemon.tell(wire.Event{Kind: wire.Restored, Interface: h.Interface, Message: "it is as declared in " + h.file})
		h.back(time.Now())
	}
}

// back makes the next try wait, twice as long as before unless that was long ago.
func (h *declaration) back(now time.Time) {
	switch {
	case h.wait == 0, now.Sub(h.next) > 2*longestWait:
		h.wait = shortestWait
	default:
		h.wait = min(2*h.wait, longestWait)
	}
	h.next = now.Add(h.wait)
}

func (d *declarations) apply(ctx context.Context, h *declaration) (changed bool, err error) {
	hook, err := realize.Open(h.Hook, "")
	if err != nil {
		return false, err
	}
	defer hook.Close()
	result, ack, err := hook.Apply(ctx, d.daemon.arbiter, false, false)
	if err != nil {
		return false, err
	}
	if ack != nil {
		err = ack()
	}
	return result.Changed, err
}
