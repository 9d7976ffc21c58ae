package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// handle is a member that this process holds.
type handle struct {
	client    *Client
	entry     string
	id        uint32
	name      string
	token     *os.File
	maps      map[string]*ebpf.Map
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	followers sync.WaitGroup
	done      chan struct{}

	mutex sync.Mutex
	link  *os.File // nil where the engine has none
	gone  error
}

var _ arbiter.Handle = (*handle)(nil)

// applyHeld makes a transaction that may make held members. The call that made them
// stays open, for what happens to them.
func (c *Client) applyHeld(ctx context.Context, in wire.Apply, files []*os.File) (*arbiter.Applied, error) {
	var result *arbiter.Applied
	err := c.retry(ctx, func(conn *varlink.Conn) error {
		s, err := conn.Stream(ctx, wire.Interface+".Apply", in, files...)
		var out wire.Applied
		var got *varlink.Files
		if err == nil {
			got, err = s.Next(ctx, &out)
		}
		if err != nil {
			c.giveBack(conn, err)
			return err
		}
		defer got.Close()
		result = applied(out.Outcome, nil)
		if len(out.Leases) == 0 { // and so that was the last reply
			c.put(conn)
			return nil
		}
		g := &group{client: c, conn: conn, stream: s, handles: map[uint32]*handle{}}
		for _, l := range out.Leases {
			h, err := c.newHandle(l, got)
			if err != nil {
				conn.Close()
				for _, h := range result.Held {
					err = errors.Join(err, h.Close())
				}
				return &varlink.Error{Name: "unusable", Parameters: []byte(fmt.Sprintf("%q", err))}
			}
			g.handles[h.id] = h
			result.Held = append(result.Held, h)
		}
		g.start()
		return nil
	}, func(err error) error {
		if errors.Is(err, owned.ErrExists) {
			return errAgain // what was made ends, because nobody got its descriptors
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

// newHandle takes what belongs to a lease out of the files that came with it.
func (c *Client) newHandle(l wire.Lease, files *varlink.Files) (_ *handle, err error) {
	h := &handle{client: c, entry: l.Entry, id: l.ID, name: l.Member, maps: map[string]*ebpf.Map{}, done: make(chan struct{})}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			h.release()
		}
	}()
	if l.Token == nil {
		return nil, errors.New("the daemon gave no token")
	}
	if h.token, err = files.Take(*l.Token); err != nil {
		return nil, err
	}
	if l.Link != nil {
		if h.link, err = files.Take(*l.Link); err != nil {
			return nil, err
		}
	}
	for name, n := range l.Maps {
		f, err := files.Take(n)
		if err != nil {
			return nil, err
		}
		fd, err := duplicate(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		// It owns the descriptor from then on.
		m, err := ebpf.NewMapFromFD(fd)
		if err != nil {
			return nil, fmt.Errorf("open map %s of member %q: %w", name, l.Member, err)
		}
		h.maps[name] = m
	}
	return h, nil
}

// group follows the call that made some handles.
type group struct {
	client  *Client
	conn    *varlink.Conn
	stream  *varlink.Stream
	handles map[uint32]*handle
}

// start follows the call in the background, for as long as one of the handles is open.
func (g *group) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var open sync.WaitGroup
	for _, h := range g.handles {
		open.Add(1)
		h.followers.Add(1)
		context.AfterFunc(h.ctx, open.Done)
	}
	go func() {
		open.Wait()
		cancel()
	}()
	go func() {
		err := g.follow(ctx)
		g.stream.Close()
		g.conn.Close()
		cancel()
		for _, h := range g.handles {
			if h.ctx.Err() == nil && h.Err() == nil {
				h.notify(Lost, err)
				h.followers.Go(h.reclaim)
			}
			h.followers.Done()
		}
	}()
}

// follow does what the events say, until there are no more.
func (g *group) follow(ctx context.Context) error {
	for {
		var out wire.Applied
		files, err := g.stream.Next(ctx, &out)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			err, _ = refused(err)
			return err
		}
		if out.Event != nil {
			if h := g.handles[out.Event.ID]; h != nil {
				h.happened(ctx, out.Event, files)
			}
		}
		files.Close()
	}
}

// happened does what an event says.
func (h *handle) happened(ctx context.Context, e *wire.Event, files *varlink.Files) {
	switch {
	case e.Kind == wire.Ended:
		h.end(h.endedBecause(e.Message))
	case e.Kind == wire.Moved && e.Link != nil:
		if f, err := files.Take(*e.Link); err == nil {
			h.takeOver(ctx, f)
		}
	}
}

func (h *handle) endedBecause(why string) error {
	return &xdp.Error{Op: "hold", Hook: fmt.Sprintf("member %q", h.name), Err: xdp.ErrGone, Detail: why, Hint: "attach it anew"}
}

// takeOver holds a new link in place of the old one, and tells the daemon, which keeps
// it until then.
func (h *handle) takeOver(ctx context.Context, link *os.File) {
	err := h.client.call(ctx, "Claim", wire.Claim{}, nil, nil, link)
	if err != nil && ctx.Err() == nil && !errors.Is(err, xdp.ErrNotFound) {
		link.Close()
		return // the daemon keeps it, and says so again
	}
	h.mutex.Lock()
	old := h.link
	if h.ctx.Err() != nil {
		old, link = link, old // it is being closed
	}
	h.link = link
	h.mutex.Unlock()
	if old != nil {
		old.Close()
	}
	h.notify(Moved, nil)
}

// reclaim proves to a daemon that is there again that the member is this client's.
func (h *handle) reclaim() {
	for wait := 10 * time.Millisecond; h.ctx.Err() == nil; wait = min(2*wait, time.Second) {
		claimed, err := h.claim()
		if h.ctx.Err() != nil || h.Err() != nil {
			return
		}
		if errors.Is(err, xdp.ErrNotFound) {
			h.end(h.endedBecause("it ended while there was no daemon"))
			return
		}
		if claimed {
			wait = 10 * time.Millisecond
			h.notify(Lost, err)
		}
		select {
		case <-h.ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

// claim claims the member, and does what is said of it until the daemon has gone or the
// member has ended.
func (h *handle) claim() (claimed bool, err error) {
	conn, err := h.client.dial(h.ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	s, err := conn.Stream(h.ctx, wire.Interface+".Claim", wire.Claim{}, h.token)
	if err != nil {
		return false, err
	}
	defer s.Close()
	for {
		var out wire.ClaimReply
		files, err := s.Next(h.ctx, &out)
		if err != nil {
			err, _ = refused(err)
			return claimed, err
		}
		switch {
		case out.Lease != nil:
			claimed = true
			h.notify(Claimed, nil)
			if out.Lease.Link != nil {
				if f, err := files.Take(*out.Lease.Link); err == nil {
					h.takeOver(h.ctx, f)
				}
			}
		case out.Event != nil:
			h.happened(h.ctx, out.Event, files)
		}
		files.Close()
		if h.Err() != nil {
			return claimed, nil
		}
	}
}

func (h *handle) notify(kind NoticeKind, err error) {
	if f := h.client.options.Notify; f != nil {
		f(Notice{kind, h.name, err})
	}
}

func (h *handle) end(why error) {
	h.mutex.Lock()
	first := h.gone == nil
	if first {
		h.gone = why
	}
	h.mutex.Unlock()
	if first {
		close(h.done)
		h.notify(Ended, why)
	}
}

func (h *handle) Name() string { return h.name }

func (h *handle) Maps() map[string]*ebpf.Map { return h.maps }

func (h *handle) Done() <-chan struct{} { return h.done }

func (h *handle) Err() error {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return h.gone
}

// Remove takes the member out of its chain.
func (h *handle) Remove(ctx context.Context, hook *xdp.Hook) error {
	var m message
	defer m.close()
	at, err := m.hook(hook)
	if err != nil {
		return err
	}
	err = h.client.call(ctx, "Detach", wire.Detach{Hook: at, Name: h.name, ID: h.id}, nil, nil, m.files...)
	if errors.Is(err, xdp.ErrConflict) || errors.Is(err, xdp.ErrNotAttached) {
		return nil // the hook has come to be another's
	}
	return err
}

// Close gives the member up: it ends with its descriptors.
func (h *handle) Close() error {
	h.cancel()
	h.release()
	h.followers.Wait()
	return nil
}

// release closes the descriptors.
func (h *handle) release() {
	h.cancel()
	h.mutex.Lock()
	defer h.mutex.Unlock()
	for _, f := range []*os.File{h.token, h.link} {
		if f != nil {
			f.Close()
		}
	}
	h.link = nil
	for _, m := range h.maps {
		m.Close()
	}
	h.maps = nil
}

// duplicate makes another descriptor of a file.
func duplicate(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var dupErr error
	if err := raw.Control(func(p uintptr) { fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return 0, err
	}
	return fd, dupErr
}
