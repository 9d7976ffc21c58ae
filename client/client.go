// Package client asks the daemon for what package arbiter does in this process: a
// [Client] is an [arbiter.Service], so that a program is written once. It needs no
// privilege; the administrator's policy decides what it may do.
//
// What it holds it holds by descriptors of its own, and the kernel ends it with the
// process, whatever becomes of the daemon. When that is started again, the client
// claims what it holds by itself.
package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// DefaultSocket is where the daemon listens.
const DefaultSocket = wire.DefaultSocket

// DefaultPatience is how long a client waits for a daemon that has gone.
const DefaultPatience = 10 * time.Second

// ErrNoDaemon says that nobody listens at the socket.
var ErrNoDaemon = errors.New("there is no daemon")

// Options say which daemon is asked, and how.
type Options struct {
	// Socket is where it listens, DefaultSocket where it is empty.
	Socket string
	// Patience is how long a call that a daemon has not answered, because it ended,
	// waits for another one: DefaultPatience where it is 0. Asking again is safe:
	// what was done already is not done twice.
	Patience time.Duration
	// Notify, if there is one, is told what happens to held members. It is called
	// from goroutines of the client, and must not wait.
	Notify func(Notice)
}

// Notice is something that has happened to a held member.
type Notice struct {
	Kind   NoticeKind
	Member string
	// Err says why, of Lost and Ended.
	Err error
}

// NoticeKind is what kind of thing has happened.
type NoticeKind string

const (
	// Lost: the daemon has gone. The member goes on.
	Lost NoticeKind = "lost"
	// Claimed: a daemon is there again, and knows the member as this client's.
	Claimed NoticeKind = "claimed"
	// Moved: the chain has moved to another dispatcher, and the member with it.
	Moved NoticeKind = "moved"
	// Ended: the member has ended, see [arbiter.Handle].
	Ended NoticeKind = "ended"
)

// Client is a client of the daemon. Its methods can be called by several goroutines at
// once.
type Client struct {
	options Options

	mutex sync.Mutex
	// idle are connections that nobody uses at the moment.
	idle   []*varlink.Conn
	closed bool
}

var _ arbiter.Service = (*Client)(nil)

// Open connects to the daemon. The caller closes the client. The error is ErrNoDaemon
// where nobody listens, and xdp.ErrPermission where this process may not connect.
func Open(ctx context.Context, o Options) (*Client, error) {
	if o.Socket == "" {
		o.Socket = DefaultSocket
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	c := &Client{options: o}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.put(conn)
	return c, nil
}

// Close closes the client. What it holds goes on: each handle is closed by itself.
func (c *Client) Close() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.closed = true
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
	return nil
}

// limits are for answers: a list can be long, and a chain's leases have many maps.
var limits = varlink.Limits{Message: 64 << 20, Files: 4096}

func (c *Client) dial(ctx context.Context) (*varlink.Conn, error) {
	conn, err := varlink.Dial(ctx, c.options.Socket, limits)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w at %s", ErrNoDaemon, c.options.Socket)
	case errors.Is(err, os.ErrPermission):
		return nil, &xdp.Error{Op: "connect", Hook: c.options.Socket, Err: xdp.ErrPermission, Detail: err.Error(), Hint: "the rights of the socket say who may"}
	}
	return nil, err
}

// get takes a connection that is idle, or makes one. Fresh ones have not been used.
func (c *Client) get(ctx context.Context) (conn *varlink.Conn, fresh bool, err error) {
	c.mutex.Lock()
	closed := c.closed
	if n := len(c.idle); n > 0 {
		conn, c.idle = c.idle[n-1], c.idle[:n-1]
	}
	c.mutex.Unlock()
	if closed {
		return nil, false, os.ErrClosed
	}
	if conn != nil {
		return conn, false, nil
	}
	conn, err = c.dial(ctx)
	return conn, true, err
}

// put gives back a connection that can be used again.
func (c *Client) put(conn *varlink.Conn) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	const most = 4
	if c.closed || len(c.idle) >= most {
		conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

// refused makes an error of the daemon's what it was there, and tells whether it is
// one: any other says no more than that the connection is of no use.
func refused(err error) (error, bool) {
	var e *varlink.Error
	if !errors.As(err, &e) {
		return err, false
	}
	return wire.Decode(e.Name, e.Parameters), true
}

// retry has f called with a connection until the daemon has answered, or patience ends.
// f is told of each connection once, and gives it back, or closes it.
//
// A daemon that ended while it was asked may have done what it was asked for. settle, if
// there is one, is told of what is refused after that: it returns nil where that is
// because it was done, errAgain to be asked again, and else the error.
func (c *Client) retry(ctx context.Context, f func(*varlink.Conn) error, settle func(error) error) error {
	deadline := time.Now().Add(c.options.Patience)
	unsure := false
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		conn, fresh, err := c.get(ctx)
		if err == nil {
			err = f(conn)
			if err == nil {
				return nil
			}
			var known bool
			if err, known = refused(err); known {
				settled := err
				if unsure && settle != nil {
					settled = settle(err)
				}
				switch {
				case !errors.Is(settled, errAgain):
					return settled
				case time.Now().After(deadline):
					return err
				}
				fresh = true // it has answered
			}
			unsure = true
		} else if !errors.Is(err, ErrNoDaemon) {
			return err
		}
		switch {
		case ctx.Err() != nil:
			return errors.Join(context.Cause(ctx), err)
		case conn != nil && !fresh:
			continue // it was one of a daemon that has ended since
		case time.Now().After(deadline):
			return fmt.Errorf("the daemon has not answered for %s: %w", c.options.Patience, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

// errAgain says that a call is to be made again.
var errAgain = errors.New("ask again")

// try makes one call on a connection, and gives that back where it can be used again.
func (c *Client) try(ctx context.Context, conn *varlink.Conn, method string, in, out any, files []*os.File) (*varlink.Files, error) {
	got, err := conn.Call(ctx, wire.Interface+"."+method, in, out, files...)
	c.giveBack(conn, err)
	return got, err
}

// giveBack puts a connection back, or closes it where an error says that it is of no use.
func (c *Client) giveBack(conn *varlink.Conn, err error) {
	if err != nil {
		if _, known := refused(err); !known {
			conn.Close()
			return
		}
	}
	c.put(conn)
}

// call calls a method that changes nothing, or that may be called twice. take, if there
// is one, takes the descriptors that come with the reply.
func (c *Client) call(ctx context.Context, method string, in, out any, take func(*varlink.Files) error, files ...*os.File) error {
	return c.retry(ctx, func(conn *varlink.Conn) error {
		got, err := c.try(ctx, conn, method, in, out, files)
		if err != nil {
			return err
		}
		defer got.Close()
		if take == nil {
			return nil
		}
		return take(got)
	}, nil)
}

// confirmed calls a method whose effect is to be acknowledged on the same connection.
func (c *Client) confirmed(ctx context.Context, method string, settle func(error) error, in, out any, files ...*os.File) (arbiter.Acknowledge, error) {
	var used *varlink.Conn
	err := c.retry(ctx, func(conn *varlink.Conn) error {
		got, err := conn.Call(ctx, wire.Interface+"."+method, in, out, files...)
		if err != nil {
			c.giveBack(conn, err)
			return err
		}
		used = conn // until it is acknowledged
		return got.Close()
	}, settle)
	if err != nil || used == nil {
		return nil, err
	}
	var once sync.Once
	return func() (err error) {
		once.Do(func() {
			got, callErr := used.Call(context.Background(), wire.Interface+".Acknowledge", nil, nil)
			if callErr != nil {
				used.Close()
				err, _ = refused(callErr)
				return
			}
			got.Close()
			c.put(used)
		})
		return err
	}, nil
}

// message is what goes with a call: descriptors, and what must be closed afterwards.
type message struct {
	files []*os.File
}

func (m *message) add(f *os.File) int {
	m.files = append(m.files, f)
	return len(m.files) - 1
}

func (m *message) close() {
	for _, f := range m.files {
		f.Close()
	}
}

func (m *message) hook(h *xdp.Hook) (wire.Hook, error) {
	f, err := h.Namespace().File()
	if err != nil {
		return wire.Hook{}, err
	}
	mode, n := h.Mode(), m.add(f)
	return wire.Hook{Interface: h.Name(), Ifindex: h.Index(), Mode: &mode, Netns: &n}, nil
}

func (m *message) namespace(ns *xdp.Namespace) (*int, error) {
	f, err := ns.File()
	if err != nil {
		return nil, err
	}
	n := m.add(f)
	return &n, nil
}

// embeddedOnly is the error of what the daemon does not do for anybody.
func embeddedOnly(what, why string) error {
	return &xdp.Error{Op: "ask the daemon", Err: xdp.ErrInvalid, Detail: what + ": " + why, Hint: "do it without the daemon, with --embedded and as root"}
}

// object sends what a change loads, as a file in memory: the daemon opens no path.
func (m *message) object(c arbiter.Change) (*wire.Object, error) {
	if c.Object == nil {
		return nil, nil
	}
	switch {
	case c.PersistAs != "":
		return nil, embeddedOnly("a second pin", "the daemon pins nothing in other people's directories")
	case c.Load.PinMaps != "":
		return nil, embeddedOnly("pinned maps", "the daemon pins nothing in other people's directories")
	case len(c.Load.MapReplacements) > 0:
		return nil, embeddedOnly("maps of this process", "the daemon makes its own")
	case c.Load.Extend != nil, c.Load.NoAttachType:
		return nil, embeddedOnly("a program of another kind", "the daemon loads members of chains")
	}
	f, err := inMemory(c.Object.ELF())
	if err != nil {
		return nil, err
	}
	return &wire.Object{
		File: m.add(f), Name: c.Object.Path(), Program: c.Load.Program.Name, Section: c.Load.Program.Section,
		First: c.Load.Program.First, Variables: c.Object.Assignments(), DeviceBound: c.Load.Ifindex != 0 && !c.Load.Offload,
	}, nil
}

// inMemory makes a file of bytes that nobody can change any more.
func inMemory(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("object", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "object")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}

func changeOf(c arbiter.Change, o *wire.Object) wire.Change {
	return wire.Change{
		Op: c.Op, Name: c.Name, Expect: c.Expect, Lifetime: c.Lifetime, Object: o,
		Placing: wire.Placing{Priority: c.Priority, Before: c.Before, After: c.After, ProceedOn: c.ProceedOn, Exclusive: c.Exclusive},
	}
}

// Apply makes a transaction, as [arbiter.Arbiter.Apply] does.
func (c *Client) Apply(ctx context.Context, t arbiter.Transaction) (*arbiter.Applied, error) {
	var m message
	defer m.close()
	hook, err := m.hook(t.Hook)
	if err != nil {
		return nil, err
	}
	in := wire.Apply{Hook: hook, Changes: []wire.Change{}, Expect: t.Expect, Engine: t.Engine, Stats: t.Stats, Foreign: t.Foreign, DryRun: t.DryRun}
	holds := false
	for _, change := range t.Changes {
		o, err := m.object(change)
		if err != nil {
			return nil, err
		}
		one := changeOf(change, o)
		if change.Extension != nil {
			fd, err := unix.FcntlInt(uintptr(change.Extension.FD()), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil, os.NewSyscallError("fcntl", err)
			}
			n := m.add(os.NewFile(uintptr(fd), "extension"))
			one.Extension = &n
		}
		in.Changes = append(in.Changes, one)
		holds = holds || change.Op == owned.Replace || change.Op == owned.Add && change.Lifetime == owned.Held
	}
	if holds && !t.DryRun {
		return c.applyHeld(ctx, in, m.files)
	}
	in.Confirm = !t.DryRun
	var out wire.Applied
	ack, err := c.confirmed(ctx, "Apply", func(err error) error { return c.made(t, err) }, in, &out, m.files...)
	if err != nil {
		return nil, err
	}
	return applied(out.Outcome, ack), nil
}

// made tells whether the chain is as a transaction, which was refused, would make it:
// then an earlier call has made it, whose answer was lost. It returns the refusal where
// the chain is otherwise.
func (c *Client) made(t arbiter.Transaction, refusal error) error {
	if !owned.IsConflict(refusal) && !errors.Is(refusal, owned.ErrNoMember) && !errors.Is(refusal, xdp.ErrNotAttached) {
		return refusal
	}
	st, err := c.At(t.Hook)
	if err != nil {
		return refusal
	}
	members := map[string]arbiter.MemberStatus{}
	if st != nil && st.Chain != nil {
		for _, m := range st.Chain.Members {
			members[m.Name] = m
		}
	}
	for _, change := range t.Changes {
		switch change.Op {
		case owned.Remove:
			if _, there := members[change.Name]; there {
				return refusal
			}
		case owned.Add:
			complete, loads, err := change.Complete(t.Hook.String())
			if err != nil {
				return refusal
			}
			if m, there := members[complete.Name]; !there || m.Digest != loads.Digest || m.Owner.PID != os.Getpid() {
				return refusal
			}
		default:
			return refusal // which would not have been refused for having been made
		}
	}
	return nil
}

func applied(out wire.Outcome, ack arbiter.Acknowledge) *arbiter.Applied {
	a := &arbiter.Applied{Acknowledge: ack}
	if out.Before != nil {
		a.Before = *out.Before
	}
	if out.After != nil {
		a.After = *out.After
	}
	if out.Diff != nil {
		a.Diff = *out.Diff
	}
	return a
}

// Adopt takes over what netlink attached, as [arbiter.Arbiter.Adopt] does.
func (c *Client) Adopt(ctx context.Context, r arbiter.AdoptRequest) (*arbiter.Adopted, error) {
	var m message
	defer m.close()
	hook, err := m.hook(r.Hook)
	if err != nil {
		return nil, err
	}
	o, err := m.object(arbiter.Change{Object: r.Object, Load: r.Load})
	if err != nil {
		return nil, err
	}
	var out wire.AdoptReply
	ack, err := c.confirmed(ctx, "Adopt", nil, wire.Adopt{Hook: hook, Object: *o, Name: r.Name, Confirm: true}, &out, m.files...)
	if err != nil {
		return nil, err
	}
	return &arbiter.Adopted{Applied: applied(out.Outcome, ack), ProgramID: out.ProgramID, Gap: out.Gap}, nil
}

// Lock and Unlock are those of [arbiter.Arbiter].
func (c *Client) Lock(ctx context.Context, h *xdp.Hook) (arbiter.Acknowledge, error) {
	return c.edit(ctx, "Lock", h)
}

// Unlock undoes Lock.
func (c *Client) Unlock(ctx context.Context, h *xdp.Hook) (arbiter.Acknowledge, error) {
	return c.edit(ctx, "Unlock", h)
}

func (c *Client) edit(ctx context.Context, method string, h *xdp.Hook) (arbiter.Acknowledge, error) {
	var m message
	defer m.close()
	hook, err := m.hook(h)
	if err != nil {
		return nil, err
	}
	return c.confirmed(ctx, method, nil, wire.Lock{Hook: hook, Confirm: true}, nil, m.files...)
}

// Slot returns what to load a program against that becomes a member without the daemon
// reading its object, as [arbiter.Arbiter.Slot] does.
func (c *Client) Slot(ctx context.Context, h *xdp.Hook) (slot object.Extension, err error) {
	var m message
	defer m.close()
	hook, err := m.hook(h)
	if err != nil {
		return slot, err
	}
	var out wire.SlotReply
	err = c.call(ctx, "Slot", wire.Slot{Hook: hook}, &out, func(got *varlink.Files) (err error) {
		slot.Function = out.Function
		slot.Target, err = programOf(got, out.Target)
		return err
	}, m.files...)
	return slot, err
}

// programOf makes a program of a descriptor that came with a message.
func programOf(files *varlink.Files, n int) (*ebpf.Program, error) {
	f, err := files.Take(n)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd, err := duplicate(f)
	if err != nil {
		return nil, err
	}
	return ebpf.NewProgramFromFD(fd) // which owns the descriptor from then on
}

// At returns what is attached at the hook, nil where nothing is.
func (c *Client) At(h *xdp.Hook) (*arbiter.Status, error) {
	var m message
	defer m.close()
	hook, err := m.hook(h)
	if err != nil {
		return nil, err
	}
	var out wire.GetReply
	if err := c.call(context.Background(), "Get", wire.Get{Hook: hook}, &out, nil, m.files...); err != nil {
		return nil, err
	}
	if out.Attachment != nil {
		out.Attachment.Namespace = h.Namespace().Spec()
	}
	return out.Attachment, nil
}

// Chain reads the chain at the hook, as [arbiter.Arbiter.Chain] does.
func (c *Client) Chain(h *xdp.Hook) (owned.Chain, error) {
	st, err := c.At(h)
	if err != nil || st == nil {
		return owned.Chain{}, err
	}
	if st.Chain == nil {
		return owned.Chain{}, c.Explain(h, &xdp.Error{
			Op: "read the chain", Hook: h.String(), Err: xdp.ErrConflict, Rival: &st.Attachment, Hint: "it has no chain of Holdfast's",
		})
	}
	return st.Chain.Model(), nil
}

// Status tells what is attached in the namespaces.
func (c *Client) Status(namespaces []*xdp.Namespace) ([]arbiter.Status, error) {
	return c.List(context.Background(), namespaces, true)
}

// List is Status; without holders it leaves out what takes longer, as
// [arbiter.Arbiter.List] does.
func (c *Client) List(ctx context.Context, namespaces []*xdp.Namespace, holders bool) ([]arbiter.Status, error) {
	all := []arbiter.Status{}
	defunct := map[uint32]bool{} // they are in no namespace, and told with each
	for _, ns := range namespaces {
		var m message
		n, err := m.namespace(ns)
		if err != nil {
			return nil, err
		}
		var out wire.ListReply
		err = c.call(ctx, "List", wire.List{Netns: n, Holders: holders}, &out, nil, m.files...)
		m.close()
		if err != nil {
			return nil, err
		}
		for _, st := range out.Attachments {
			if st.Lifetime == arbiter.Defunct {
				if defunct[st.LinkID] {
					continue
				}
				defunct[st.LinkID] = true
			} else {
				st.Namespace = ns.Spec()
			}
			all = append(all, st)
		}
	}
	return all, nil
}

// GC removes what attaches nothing any more, as [arbiter.Arbiter.GC] does.
func (c *Client) GC(ctx context.Context, dryRun bool) ([]arbiter.Stale, error) {
	out := wire.CollectReply{Stale: []arbiter.Stale{}}
	err := c.call(ctx, "Collect", wire.Collect{DryRun: dryRun}, &out, nil)
	return out.Stale, err
}

// Explain adds to a conflict at the hook what is known of the rival.
func (c *Client) Explain(h *xdp.Hook, conflict *xdp.Error) error {
	if conflict.Rival == nil {
		return conflict
	}
	st, err := c.At(h)
	if err != nil || st == nil || st.Owner == nil || st.Program.ID != conflict.Rival.Program.ID {
		return conflict
	}
	return &arbiter.HeldError{Err: conflict, Record: arbiter.Record{
		Name: st.Name, Interface: st.Interface, Held: st.Held, Owner: *st.Owner, Since: st.Since, ProgramID: st.Program.ID,
	}}
}

// Features tells what the daemon's kernel can do.
func (c *Client) Features(ctx context.Context) ([]features.Feature, error) {
	var out wire.FeaturesReply
	err := c.call(ctx, "Features", nil, &out, nil)
	return out.Features, err
}

// Question is what [Client.May] asks.
type Question struct {
	Verb arbiter.Verb
	// Hook is nil where the verb is about none.
	Hook      *xdp.Hook
	Member    string
	Lifetime  owned.Lifetime
	Priority  *uint32
	Exclusive bool
}

// Answer is the policy's.
type Answer struct {
	Allowed bool
	// Rule is the name of the rule that says so, empty where none matches.
	Rule, Reason string
}

// May tells whether this process may do that.
func (c *Client) May(ctx context.Context, q Question) (Answer, error) {
	var m message
	defer m.close()
	in := wire.May{Verb: q.Verb, Member: q.Member, Lifetime: q.Lifetime, Priority: q.Priority, Exclusive: q.Exclusive}
	if q.Hook != nil {
		h, err := m.hook(q.Hook)
		if err != nil {
			return Answer{}, err
		}
		in.Hook = &h
	}
	var out wire.MayReply
	err := c.call(ctx, "May", in, &out, nil, m.files...)
	return Answer{out.Allowed, out.Rule, out.Reason}, err
}

// Reload has the daemon read its policy and what is declared anew.
func (c *Client) Reload(ctx context.Context) error { return c.call(ctx, "Reload", nil, nil, nil) }

// Event is something that the daemon tells.
type Event = wire.Event

// Watch calls f with what happens, beginning with what has happened since that time as
// far as the daemon remembers it, until ctx ends or f returns an error, which is
// returned. With an interface's name it is what happens there.
func (c *Client) Watch(ctx context.Context, since time.Time, iface string, f func(Event) error) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	in := wire.Watch{Interface: iface}
	if !since.IsZero() {
		in.Since = &since
	}
	s, err := conn.Stream(ctx, wire.Interface+".Watch", in)
	if err != nil {
		err, _ = refused(err)
		return err
	}
	defer s.Close()
	for {
		var out wire.WatchReply
		got, err := s.Next(ctx, &out)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			err, _ = refused(err)
			return err
		}
		got.Close()
		if err := f(out.Event); err != nil {
			return err
		}
	}
}
