package daemon

import (
	"context"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// foreign tells of programs that somebody attached, replaced or detached by netlink,
// behind everybody's back, in the daemon's network namespace. Who did it the kernel does
// not say.
type foreign struct {
	ns   *xdp.Namespace
	tell func(wire.Event)
	// seen is what each interface had when the kernel told of it last.
	seen map[int]map[xdp.Mode]seen
}

// seen is a program that was attached. The kernel tells nothing of it once it is no
// longer loaded.
type seen struct {
	program xdp.Program
	// linked says that a link held it, or holds what is there in its place: that is
	// drift, or somebody's right.
	linked bool
}

// watchForeign tells until ctx ends.
func (d *Daemon) watchForeign(ctx context.Context) {
	const again = 10 * time.Second
	for {
		if err := d.tellForeign(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("what others attach by netlink can't be told", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
}

func (d *Daemon) tellForeign(ctx context.Context) error {
	ns, err := xdp.OpenNamespace("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	f := &foreign{ns: ns, tell: d.tell, seen: map[int]map[xdp.Mode]seen{}}
	return ns.Notify(ctx, f.changed)
}

// changed compares what an interface has with what it had. What an interface comes with
// is nobody's doing now.
func (f *foreign) changed(i xdp.Interface, gone bool) error {
	if gone {
		delete(f.seen, i.Index)
		return nil
	}
	before, known := f.seen[i.Index]
	now := map[xdp.Mode]seen{}
	f.seen[i.Index] = now
	for _, mode := range []xdp.Mode{xdp.Native, xdp.Generic, xdp.Offload} {
		was, id := before[mode], i.Programs.At(mode)
		if was.program.ID == id {
			now[mode] = was
			continue
		}
		now[mode] = f.look(i, mode, id)
		if e, ok := foreignEvent(mode, was, now[mode]); ok && known {
			e.Interface, e.Netns = i.Name, f.ns.ID()
			f.tell(e)
		}
	}
	return nil
}

// look finds out what there is to know of the program that was attached when the kernel
// told of it.
func (f *foreign) look(i xdp.Interface, mode xdp.Mode, id uint32) seen {
	if id == 0 {
		return seen{}
	}
	s := seen{program: xdp.LookUpProgram(id)}
	h, err := f.ns.HookAt(i.Index, mode)
	if err != nil {
		return s // gone since
	}
	state, err := h.Query()
	if err != nil {
		return s
	}
	at := state.At(mode)
	s.linked = at != nil && at.Program.ID == id && at.Held == xdp.HeldByLink
	return s
}

// foreignEvent says what happened between two looks, if netlink did it.
func foreignEvent(mode xdp.Mode, was, now seen) (e wire.Event, ok bool) {
	byNetlink := xdp.Attachment{Mode: mode, Program: now.program, Held: xdp.HeldByNetlink}
	e.ProgramID, e.OldProgramID = now.program.ID, was.program.ID
	switch {
	case now.linked, now.program.ID == 0 && was.linked:
		return e, false
	case now.program.ID == 0:
		e.Kind, e.Message = wire.Detached, was.program.String()+" was detached from "+mode.String()+" mode by netlink"
	case was.program.ID == 0 || was.linked:
		e.Kind, e.Message = wire.Attached, byNetlink.String()
	default:
		e.Kind, e.Message = wire.Replaced, byNetlink.String()+" in the place of "+was.program.String()
	}
	return e, true
}
