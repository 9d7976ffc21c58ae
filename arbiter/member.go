package arbiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Handle is a member of a chain that lives as long as it is held.
type Handle interface {
	// Name is the member's.
	Name() string
	// Maps are the member's maps, by their names in its object. They are the
	// handle's, and closed with it.
	Maps() map[string]*ebpf.Map
	// Done is closed when the member has ended without Close: somebody took it
	// out of the chain, or its interface is gone. Err says which, and is nil
	// before.
	Done() <-chan struct{}
	Err() error
	// Remove takes the member out of the chain of its hook, so that nothing is
	// left of it; Close only lets go. It is no error if somebody else has taken
	// it out.
	Remove(ctx context.Context, h *xdp.Hook) error
	// Close gives the member up.
	Close() error
}

// HeldMember is a member of a chain that lives as long as this process holds it.
// Nothing but Close, or the process's end, gives it up. When the chain has to
// move to another dispatcher, a goroutine takes over the member's link there.
type HeldMember struct {
	arbiter *Arbiter
	key     string
	// chain is the id of the hook's link, which no other chain has had: the next
	// one at the hook begins with the same key and the same ids of members.
	chain uint32
	id    uint32
	name  string
	// keep is what has to stay open besides: the program arrays.
	keep *object.Prepared
	// watch is an inotify descriptor on the member's directory. stop is the pipe
	// that ends the goroutine which looks at it, cancel ends its waiting for the
	// lock, and stopped is closed when it has ended.
	watch, stop *os.File
	cancel      context.CancelFunc
	stopped     chan struct{}

	mu   sync.Mutex
	link kernel.FD // of the member's slot; noFD where the engine has none
	root *xdp.Link // of the hook
	gone error
	done chan struct{}
}

const noFD kernel.FD = -1

// hold makes a handle of what a change has attached for this process. It owns
// the descriptors from then on.
func (a *Arbiter) hold(key string, id uint32, name string, root *xdp.Link, link kernel.FD, keep *object.Prepared) (*HeldMember, error) {
	info, err := root.Info()
	if err != nil {
		return nil, err
	}
	h := &HeldMember{arbiter: a, key: key, chain: info.ID, id: id, name: name, keep: keep, root: root, link: link, done: make(chan struct{}), stopped: make(chan struct{})}
	watch, err := watchDir(a.root.Path(key, memberDir(id)))
	if err != nil {
		return nil, err
	}
	stopOut, stopIn, err := os.Pipe()
	if err != nil {
		watch.Close()
		return nil, err
	}
	h.watch, h.stop = watch, stopIn
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	go h.follow(ctx, stopOut)
	return h, nil
}

// watchDir opens an inotify instance that tells of names that come and go in the
// directory.
func watchDir(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the member: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_DELETE_SELF|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch the member: %w", err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// Name is the member's name.
func (h *HeldMember) Name() string { return h.name }

// Maps are the member's maps, by their names in its object.
func (h *HeldMember) Maps() map[string]*ebpf.Map {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keep == nil {
		return nil // closed, or loaded by the caller
	}
	return h.keep.Maps
}

// Done is closed when the member has ended without Close: somebody took it out
// of the chain, or its interface is gone. Err says which.
func (h *HeldMember) Done() <-chan struct{} { return h.done }

// Err is why Done is closed, nil as long as it is not.
func (h *HeldMember) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone
}

// follow takes over new links until the member ends or is given up.
func (h *HeldMember) follow(ctx context.Context, stop *os.File) {
	defer close(h.stopped)
	defer stop.Close()
	events := make([]byte, 4096)
	wait := -1 // for as long as nothing happens
	for {
		fds := []unix.PollFd{{Fd: int32(stop.Fd()), Events: unix.POLLIN}, {Fd: int32(h.watch.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, wait); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[0].Revents != 0 {
			return
		}
		switch {
		case fds[1].Revents != 0:
			_, _ = unix.Read(int(h.watch.Fd()), events) // whichever they are, all is looked at anew
		case wait < 0:
			continue
		}
		wait = -1
		err := h.takeOver(ctx)
		if errors.Is(err, ErrLockTimeout) {
			// The pin keeps the member meanwhile. Nothing may happen that would
			// be told, so it is tried again.
			wait = 1000
			continue
		}
		if ctx.Err() == nil && err != nil {
			h.mu.Lock()
			h.gone = err
			h.mu.Unlock()
			close(h.done)
			return
		}
	}
}

// takeOver makes the link that the chain has for the member now the one that is
// held. It waits for the lock, because a link of a change that is not made yet
// is none to rely on. The error is xdp.ErrGone where the chain has no such
// member any more.
func (h *HeldMember) takeOver(ctx context.Context) error {
	a := h.arbiter
	lock, err := a.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.unlock()
	r, err := h.record()
	if err != nil {
		return err
	}
	if r == nil {
		return h.ended("its chain is gone")
	}
	p := r.current.find(h.id)
	if p == nil {
		return h.ended("somebody took it out of the chain")
	}
	pin := a.root.Path(h.key, memberDir(h.id), linkPinName(r.current.ProgramID, p.Slot))
	fd, err := kernel.OpenPin(pin)
	if errors.Is(err, unix.ENOENT) {
		return nil // nothing that is not held already
	}
	if err != nil {
		return err
	}
	h.mu.Lock()
	if h.link != noFD {
		h.link.Close()
	}
	h.link = fd
	h.mu.Unlock()
	return remove(pin)
}

// record reads the record of the member's chain, nil where there is none any more.
// It may have another key by now, if the interface moved away and another has its
// index.
func (h *HeldMember) record() (*chainRecord, error) {
	a := h.arbiter
	r, err := a.readChainRecord(a.root.Path(h.key, chainPin))
	switch {
	case err == nil && r.header.LinkID == h.chain:
		return r, nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	entries, err := a.read()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.chain != nil && e.chain.header.LinkID == h.chain {
			h.key = e.key
			return e.chain, nil
		}
	}
	return nil, nil
}

func (h *HeldMember) ended(why string) error {
	return &xdp.Error{Op: "hold", Hook: fmt.Sprintf("member %q", h.name), Err: xdp.ErrGone, Detail: why, Hint: "attach it anew"}
}

// Remove takes the member out of the chain of its hook, so that nothing is left
// of it; Close only lets go. It is no error if somebody else has taken it out.
func (h *HeldMember) Remove(ctx context.Context, hook *xdp.Hook) error {
	applied, err := h.arbiter.Apply(ctx, Transaction{Hook: hook, of: h.chain, edit: func(c owned.Chain) (owned.Chain, error) {
		for _, m := range c.Members {
			if m.ID == h.id {
				r, err := c.Apply(owned.Transaction{Changes: []owned.Change{{Op: owned.Remove, Name: m.Name}}})
				return r.After, err
			}
		}
		return c, nil
	}})
	if errors.Is(err, xdp.ErrConflict) {
		return nil // the hook has come to be another's
	}
	if err != nil || applied.Acknowledge == nil {
		return err
	}
	return applied.Acknowledge()
}

// Close gives the member up: the kernel empties its slot at once, and the next
// change of the chain forgets it. A member that was attached alone is detached.
func (h *HeldMember) Close() error {
	h.cancel()
	h.stop.Close()
	<-h.stopped
	h.watch.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	if h.link != noFD {
		errs = append(errs, h.link.Close())
		h.link = noFD
	}
	errs = append(errs, h.root.Close())
	if h.keep != nil {
		errs = append(errs, h.keep.Close())
		h.keep = nil
	}
	return errors.Join(errs...)
}
