package libxdp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// clean removes what killed processes left, and tells of what it left alone.
func (c *Chains) clean(ctx context.Context, ns *xdp.Namespace, index int) ([]Cleaned, error) {
	c.Wait()
	found, err := c.directories(ctx, index)
	if err != nil {
		return nil, err
	}
	return c.cleanUp(ctx, ns, found)
}

// leftovers tells what clean would remove and leave.
func (c *Chains) leftovers(ctx context.Context, ns *xdp.Namespace, index int) ([]Cleaned, error) {
	c.Wait()
	found, err := c.directories(ctx, index)
	if err != nil {
		return nil, err
	}
	unused, err := c.unused(ns, found)
	for i := range unused {
		if u := &unused[i]; u.Reason == "" {
			u.Removed, u.Reason = true, attachedNowhere
		}
	}
	return unused, err
}

// attachedNowhere is why pins are removed.
const attachedNowhere = "its dispatcher is attached nowhere"

// directories are those of dispatchers for the interface of that index, 0 for
// all. There are none where there is no bpffs.
func (c *Chains) directories(ctx context.Context, index int) ([]Cleaned, error) {
	l, err := c.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &xdp.Error{Op: "clean", Hook: c.where, Err: xdp.ErrUnexpected, Detail: err.Error(), Hint: "try again"}
	}
	found, err := l.dispatchers(index)
	l.unlock()
	if err != nil {
		return nil, &xdp.Error{Op: "clean", Hook: c.where, Err: xdp.ErrUnexpected, Detail: err.Error(), Hint: "try again"}
	}
	return found, nil
}

// unused are those of the directories that ns does not use. One that somebody
// else does has a reason to be kept.
func (c *Chains) unused(ns *xdp.Namespace, found []Cleaned) ([]Cleaned, error) {
	var unused []Cleaned
	here, err := attachedIn(ns)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if at, ok := here[f.DispatcherID]; !ok || at.index != f.Index {
			unused = append(unused, f)
		}
	}
	if len(unused) == 0 {
		return nil, nil
	}
	return unused, judge(unused, ns)
}

// cleanUp removes those of the directories whose dispatchers nobody will ever
// attach again: they are attached nowhere, and no process has them open. It
// decides that without the lock, because it takes a while and stays true. Those
// that ns uses it leaves out of what it returns.
func (c *Chains) cleanUp(ctx context.Context, ns *xdp.Namespace, found []Cleaned) ([]Cleaned, error) {
	unused, err := c.unused(ns, found)
	if err != nil || len(unused) == 0 {
		return nil, err
	}
	l, err := c.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock %s/%s: %w", c.where, pinsDir, err)
	}
	defer l.unlock()
	for i := range unused {
		u := &unused[i]
		if u.Reason != "" {
			c.log("pins are kept", "path", u.Path, "reason", u.Reason)
			continue
		}
		if err := l.unpin(u.Index, u.DispatcherID); err != nil {
			u.Reason = err.Error()
			continue
		}
		u.Removed, u.Reason = true, attachedNowhere
		c.log("pins of a killed process are removed", "path", u.Path)
	}
	return unused, nil
}

// place is an interface with a program.
type place struct {
	index       int
	name, netns string
}

func (p place) String() string {
	if p.netns == "" {
		return fmt.Sprintf("it is attached to %s", p.name)
	}
	return fmt.Sprintf("it is attached to %s in another network namespace (%s)", p.name, p.netns)
}

// attachedIn are the programs of a namespace's interfaces, by id.
func attachedIn(ns *xdp.Namespace) (map[uint32]place, error) {
	interfaces, err := ns.Interfaces()
	if err != nil {
		return nil, err
	}
	attached := map[uint32]place{}
	for _, i := range interfaces {
		for _, id := range []uint32{i.Programs.Native, i.Programs.Generic, i.Programs.Offload} {
			if id != 0 {
				attached[id] = place{index: i.Index, name: i.Name}
			}
		}
	}
	return attached, nil
}

// judge gives a reason to those whose dispatchers somebody has.
func judge(unused []Cleaned, ns *xdp.Namespace) error {
	// First who has them open, then where they are attached, in ns as well: a
	// process that attaches one and closes it meanwhile is seen either way.
	open, err := procfs.Scan()
	if err != nil {
		return err
	}
	here, err := attachedIn(ns)
	if err != nil {
		return err
	}
	everywhere, incomplete := attachedEverywhere()
	for i := range unused {
		u := &unused[i]
		holders := open.Programs[u.DispatcherID]
		at, attached := everywhere[u.DispatcherID]
		switch at2, ok := here[u.DispatcherID]; {
		case attached:
			u.Reason = at.String()
		case ok:
			u.Reason = at2.String()
		case len(holders) > 0 && mayBeDispatcher(u.DispatcherID):
			u.Reason = fmt.Sprintf("process %d (%s) has its dispatcher open, and is about to attach it", holders[0].PID, holders[0].Comm)
		case incomplete != "" && mayBeDispatcher(u.DispatcherID):
			u.Reason = incomplete
		}
	}
	return nil
}

// mayBeDispatcher tells whether the program of that id is a dispatcher, as far as
// can be told: none that is no longer loaded, or is something else, will ever be
// attached as the one that a directory was made for.
func mayBeDispatcher(id uint32) bool {
	fd, err := kernel.ProgramByID(id)
	if err != nil {
		return !errors.Is(err, unix.ENOENT)
	}
	defer fd.Close()
	info, err := kernel.ReadProgram(fd)
	return err != nil || info.Name == dispatcherName
}

// attachedEverywhere are the programs of the interfaces of all network
// namespaces that can be found. incomplete says in words if one of them could
// not be looked into.
func attachedEverywhere() (attached map[uint32]place, incomplete string) {
	attached = map[uint32]place{}
	for ns, err := range xdp.Namespaces() {
		var in map[uint32]place
		if err == nil {
			in, err = attachedIn(ns)
			ns.Close()
		}
		if err != nil {
			incomplete = fmt.Sprintf("whether it is attached in another network namespace can't be told: %s", err)
			continue
		}
		for id, at := range in {
			at.netns = ns.Spec()
			attached[id] = at
		}
	}
	return attached, incomplete
}
