package arbiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Lease is a held member for another process, which is to have its descriptors.
// Whoever has them holds the member: it ends when the last of them is closed,
// whether or not the process that made it still runs. The caller hands them on and
// closes them.
//
// Unlike a [HeldMember] it has no descriptor of the hook's link, by which the
// whole chain could be changed: that stays pinned as long as there are leases.
type Lease struct {
	// Entry is the hook's directory in the state, and ID the member's version:
	// together they name the lease.
	Entry string
	ID    uint32
	// Member is its name.
	Member string
	// Token proves who holds the member, and keeps it where the engine knows no
	// better. It is a map that nobody else has.
	Token *os.File
	// Link is the member's at its slot, nil where the engine is not live, or
	// where the holder has it already. It keeps the member running: the kernel
	// empties the slot when it is closed.
	Link *os.File
	// Maps are the member's, by name. Claim returns none: the holder has them.
	Maps map[string]*os.File
}

// Close closes what is still open of the lease. What nobody else has ends then.
func (l *Lease) Close() error {
	var errs []error
	for _, f := range append([]*os.File{l.Token, l.Link}, mapFiles(l.Maps)...) {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	l.Token, l.Link, l.Maps = nil, nil, nil
	return errors.Join(errs...)
}

func mapFiles(maps map[string]*os.File) []*os.File {
	var all []*os.File
	for _, f := range maps {
		all = append(all, f)
	}
	return all
}

// tokenSpec is the smallest map that there is. It holds nothing: that it exists is
// what it says.
var tokenSpec = ebpf.MapSpec{Name: "holdfast_token", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}

// newToken makes a token, and returns its id with it.
func newToken() (*os.File, uint32, error) {
	m, err := ebpf.NewMap(&tokenSpec)
	if err != nil {
		return nil, 0, fmt.Errorf("make the token of a lease: %w", err)
	}
	defer m.Close()
	if err := m.Freeze(); err != nil {
		return nil, 0, fmt.Errorf("freeze the token of a lease: %w", err)
	}
	id, err := kernel.MapID(kernel.FD(m.FD()))
	if err != nil {
		return nil, 0, fmt.Errorf("read the token of a lease: %w", err)
	}
	f, err := fileOf(kernel.FD(m.FD()), tokenSpec.Name)
	return f, id, err
}

// fileOf duplicates a descriptor.
func fileOf(fd kernel.FD, name string) (*os.File, error) {
	own, err := fd.Dup()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), name), nil
}

// tokenLives tells whether anybody has the token of that id. Where the kernel won't
// say, it is taken to live.
func tokenLives(id uint32) bool {
	exists, err := kernel.MapExists(id)
	return err != nil || exists
}

// leaseEnded tells of a leased member whether nobody has its descriptors any more. Where
// it runs live the kernel looks at the link alone, unless that waits in a pin to be
// taken over.
func (a *Arbiter) leaseEnded(key string, r *chainRecord, m placed) bool {
	if r.current.Engine == Live && !exists(a.root.Path(key, memberDir(m.ID), linkPinName(r.current.ProgramID, m.Slot))) {
		return !linkLives(m.LinkID)
	}
	return !tokenLives(m.Token)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// lease makes the lease of a member that this change adds.
func (x *execution) lease(m placed, keep map[string]*ebpf.Map) (*Lease, error) {
	l := &Lease{Entry: x.key, ID: m.ID, Member: m.Name, Token: x.tokens[m.ID], Maps: map[string]*os.File{}}
	delete(x.tokens, m.ID)
	if fd, ok := x.links[m.ID]; ok {
		l.Link = os.NewFile(uintptr(fd), "link of "+m.Name)
		delete(x.links, m.ID)
	}
	for name, shared := range keep {
		f, err := fileOf(kernel.FD(shared.FD()), name)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.Maps[name] = f
	}
	return l, nil
}

// Claim finds the lease that the descriptor proves: its token, or its link at the
// member's slot. The holder of a lease claims it after it has lost whoever made it,
// as a daemon that was restarted, and is its owner from then on; and it claims a new
// link to say that it has taken it over, so that its pin can go.
//
// What is returned has the link that waits to be taken over, nil where none does.
// The errors are xdp.ErrNotFound where the descriptor is of no lease there is, and
// ErrLockTimeout.
func (a *Arbiter) Claim(ctx context.Context, f *os.File) (*Lease, error) {
	token, link, err := a.proves(f)
	if err != nil {
		return nil, err
	}
	l, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	entries, err := a.read()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.err != nil || e.chain == nil {
			continue
		}
		if err := a.settleEntry(l, e); err != nil {
			return nil, err
		}
		at := slices.IndexFunc(e.chain.current.Members, func(m placed) bool {
			return m.Token != 0 && (m.Token == token || link != 0 && m.LinkID == link)
		})
		if at >= 0 {
			return a.claim(e, e.chain.current.Members[at], link != 0)
		}
	}
	return nil, notProven("there is no such lease: it has ended, or the link was replaced by another")
}

const opClaim = "claim"

func notProven(detail string) error {
	return &xdp.Error{Op: opClaim, Err: xdp.ErrNotFound, Detail: detail, Hint: "attach anew"}
}

// proves reads which token or link a descriptor is.
func (a *Arbiter) proves(f *os.File) (token, link uint32, err error) {
	fd := kernel.FD(f.Fd())
	if kernel.IsLink(fd) {
		info, err := kernel.ReadExtensionLink(fd)
		if err != nil {
			return 0, 0, notProven("the descriptor is of a link that is at no slot")
		}
		return 0, info.ID, nil
	}
	id, err := kernel.MapID(fd)
	if err != nil {
		return 0, 0, notProven("the descriptor is of neither a token nor a link")
	}
	return id, 0, nil
}

// claim makes the process that asks the owner of a lease. byLink tells that it
// has shown the member's link, and so needs no pin of it any more.
func (a *Arbiter) claim(e *entry, m placed, byLink bool) (*Lease, error) {
	owner, err := a.who()
	if err != nil {
		return nil, err
	}
	record, err := e.chain.member(m.ID)
	if err != nil {
		return nil, err
	}
	if err := a.permit(Intent{Verb: VerbClaim, Interface: e.chain.header.Interface, Entry: e.key, Member: m.Name, Lifetime: owned.Held, Owner: &record.Owner}); err != nil {
		return nil, err
	}
	pin := a.root.Path(e.key, memberDir(m.ID), linkPinName(e.chain.current.ProgramID, m.Slot))
	if record.Owner.Process != owner.Process {
		record.Owner = owner
		if err := e.chain.with(func(elements *ebpf.Map) error { return putElement(elements, m.ID, record) }); err != nil {
			return nil, err
		}
		e.chain.lately.keepMember(e.chain.header.LinkID, m.ID, record)
	}
	lease := &Lease{Entry: e.key, ID: m.ID, Member: m.Name}
	if e.chain.current.Engine != Live {
		return lease, nil
	}
	if byLink {
		return lease, remove(pin)
	}
	lease.Link, err = openPinFile(pin)
	return lease, err
}

// openPinFile opens a pin, nil where there is none.
func openPinFile(path string) (*os.File, error) {
	fd, err := kernel.OpenPin(path)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// settleEntry completes or undoes what a killed process left of a chain's change.
func (a *Arbiter) settleEntry(l locked, e *entry) error {
	if e.chain.header.Pending == nil {
		return nil
	}
	if _, err := a.settleChain(l, e.key, e.chain); err != nil {
		return err
	}
	fresh, err := a.readChainRecord(a.root.Path(e.key, chainPin))
	if err == nil {
		e.chain = fresh
	}
	return err
}

// ChainState is what is recorded of an owned hook, for whoever looks often.
type ChainState struct {
	Entry     string
	Interface string
	// LinkID is the hook's link, ProgramID what Holdfast made it run, and Engine
	// how. Generation counts the chain's changes.
	LinkID, ProgramID uint32
	Engine            Engine
	Generation        uint64
	Locked            bool
	// Pinned tells that the hook's link outlives the processes that hold members.
	Pinned bool
	// Changing tells that the chain is being changed at the moment, and that the
	// members are those before that.
	Changing bool
	// Lost tells in what the hook is not as Holdfast has left it, empty where it is.
	Lost    string
	Members []MemberState
}

// MemberState is what is recorded of a member.
type MemberState struct {
	ID       uint32
	Name     string
	Lifetime Lifetime
	// Leased tells that it is another process's by its descriptors, Waits that a
	// new link waits to be taken over, and Ended that the holder has ended.
	Leased, Waits, Ended bool
	// Owner is whose it is, and Cost what was loaded for it.
	Owner Owner
	Cost  Cost
}

// Chains reads what is recorded of all owned hooks. It takes no lock.
func (a *Arbiter) Chains() ([]ChainState, error) {
	entries, err := a.read()
	if err != nil {
		return nil, err
	}
	var all []ChainState
	for _, e := range entries {
		if e.err != nil || e.chain == nil {
			continue
		}
		r := e.chain
		s := ChainState{
			Entry: e.key, Interface: r.header.Interface, LinkID: r.header.LinkID, ProgramID: r.current.ProgramID,
			Engine: r.current.Engine, Generation: r.current.Generation, Locked: r.current.Locked,
			Pinned: r.current.pinned() && r.current.ProgramID != 0, Changing: r.header.Pending != nil,
		}
		if !s.Changing {
			s.Lost = a.lost(e)
		}
		dead := a.deadMembers(e.key, r)
		for _, m := range r.current.Members {
			record, _ := r.member(m.ID) // what can't be read is left out
			s.Members = append(s.Members, MemberState{
				Owner: record.Owner, Cost: record.Cost,
				ID: m.ID, Name: m.Name, Lifetime: m.Lifetime, Leased: m.Token != 0, Ended: dead[m.ID],
				Waits: m.Token != 0 && r.current.Engine == Live &&
					exists(a.root.Path(e.key, memberDir(m.ID), linkPinName(r.current.ProgramID, m.Slot))),
			})
		}
		all = append(all, s)
	}
	return all, nil
}

// lost tells in what an owned hook is not as the record says.
func (a *Arbiter) lost(e *entry) string {
	runs := e.chain.current
	switch {
	case runs.ProgramID == 0:
		return ""
	case e.link == nil || e.link.Defunct():
		return e.dead(nil)
	case e.link.ProgramID != runs.ProgramID:
		return fmt.Sprintf("somebody put program %d in place of program %d", e.link.ProgramID, runs.ProgramID)
	case runs.pinned() && !exists(a.root.Path(e.key, linkPin)):
		return lostPin
	}
	return ""
}

const lostPin = "the pin of its link is missing"

// Drift is in what a hook is not as Holdfast has left it.
type Drift struct {
	// Lost is empty where there is none.
	Lost string
	// Repinned tells that no more was missing than the pin of its link, and that it
	// has been made again. Whoever removed it can have had nothing else in mind than
	// the link's end.
	Repinned bool
	// Gone tells that the interface is, and At is what is attached to it now, nil
	// where nothing is, or its network namespace can't be found from here.
	Gone bool
	At   *xdp.Attachment
}

// Drift looks closely at a hook that seemed to be otherwise than it should be: it waits
// for who is changing it.
func (a *Arbiter) Drift(ctx context.Context, entry string) (Drift, error) {
	d, err := a.settledDrift(ctx, entry)
	if err != nil || d.Lost == "" {
		return d, err
	}
	err = a.atHookOf(entry, func(h *xdp.Hook) error {
		if h == nil {
			d.Gone = true
			return nil
		}
		s, err := h.Query()
		if err == nil {
			d.At = s.At(h.Mode())
		}
		return err
	})
	if errors.Is(err, errElsewhere) {
		err = nil
	}
	return d, err
}

func (a *Arbiter) settledDrift(ctx context.Context, entry string) (d Drift, err error) {
	l, err := a.lock(ctx)
	if err != nil {
		return d, err
	}
	defer l.unlock()
	e, err := a.readIfThere(entry)
	if err != nil || e == nil || e.chain == nil || e.chain.header.Pending != nil {
		return d, err
	}
	if d.Lost = a.lost(e); d.Lost != lostPin {
		return d, nil
	}
	root, err := xdp.OpenID(e.chain.header.LinkID)
	if err != nil {
		return d, err
	}
	defer root.Close()
	d.Repinned = true
	return d, root.Persist(a.root.Path(entry, linkPin))
}

// Moved tells which of the entries' interfaces are not where they were when they were
// attached to, as far as their network namespaces can be found. What is attached goes
// with an interface to another namespace, and the link says nothing of it.
func (a *Arbiter) Moved(entries []string) (map[string]bool, error) {
	moved := map[string]bool{}
	for ns, err := range xdp.Namespaces() {
		if err != nil {
			continue // as if it could not be found
		}
		here := map[string]int{}
		for _, entry := range entries {
			if index, _, ok := hookOfKey(entry, ns.ID()); ok {
				here[entry] = index
			}
		}
		var interfaces []xdp.Interface
		if len(here) > 0 {
			interfaces, err = ns.Interfaces()
		}
		ns.Close()
		if err != nil {
			return nil, err
		}
		for entry, index := range here {
			if !slices.ContainsFunc(interfaces, func(i xdp.Interface) bool { return i.Index == index }) {
				moved[entry] = true
			}
		}
	}
	return moved, nil
}

// Waiting opens the link that waits for the holder of a lease to take it over, nil
// where none does. The caller closes it.
func (a *Arbiter) Waiting(entry string, id uint32) (*os.File, error) {
	r, err := a.readChainRecord(a.root.Path(entry, chainPin))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m := r.current.find(id)
	if m == nil || m.Token == 0 || r.current.Engine != Live {
		return nil, nil
	}
	return openPinFile(a.root.Path(entry, memberDir(id), linkPinName(r.current.ProgramID, m.Slot)))
}

// Forget takes the members out of the chain of that entry whose holders have
// ended, if its hook can be found from here.
func (a *Arbiter) Forget(ctx context.Context, entry string) error { return a.forgetDead(ctx, entry) }
