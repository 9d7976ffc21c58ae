package arbiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// The pins of a hook with a chain, besides linkPin:
//
//	chain                   the record
//	m16/                    member 16
//	    link-81-4           its link at slot 4 of dispatcher 81
//	    object              the file that it was loaded from
//	    map-0, map-1, ...   its maps, in the order of their names
const (
	chainPin      = "chain"
	memberPrefix  = "m"
	linkPinPrefix = "link-"
)

func memberDir(id uint32) string { return memberPrefix + strconv.FormatUint(uint64(id), 10) }

func linkPinName(dispatcher uint32, slot live.Slot) string {
	return fmt.Sprintf("%s%d-%d", linkPinPrefix, dispatcher, slot)
}

// execution carries a plan out, under the lock.
type execution struct {
	*Arbiter
	l    locked
	hook *xdp.Hook
	plan *plan
	*build
	sources *sources
	adopt   *adoption
	key     string
	record  *chainRecord
	// links are the members' new links that belong to nobody yet.
	links map[uint32]kernel.FD
	// tokens are those of new leases.
	tokens map[uint32]*os.File
	held   []Handle
	leases []*Lease
}

// execute makes the change, or leaves all as it was.
//
// Killed anywhere it leaves what settleChain completes, or undoes: the record
// says what was and what is to come, and the kernel which of both runs.
func (a *Arbiter) execute(l locked, now hookState, t *Transaction, p *plan, b *build, s *sources, applied *Applied) error {
	x := &execution{
		Arbiter: a, l: l, hook: t.Hook, plan: p, build: b, sources: s, adopt: t.adopt,
		key: now.key, links: map[uint32]kernel.FD{}, tokens: map[uint32]*os.File{},
	}
	defer func() {
		for _, fd := range x.links {
			fd.Close()
		}
		for _, f := range x.tokens {
			f.Close()
		}
	}()
	first := now.entry == nil
	if first {
		if err := x.create(); err != nil {
			return errors.Join(err, x.discard())
		}
	} else {
		x.record = now.entry.chain
	}
	release, err := x.record.keepOpen()
	if err == nil {
		err = x.run()
		release()
	}
	if err != nil {
		undo := x.undo
		if first {
			undo = x.discard
		}
		for _, m := range x.held {
			err = errors.Join(err, m.Close())
		}
		for _, lease := range x.leases {
			err = errors.Join(err, lease.Close())
		}
		return errors.Join(held(err, now.entry), undo())
	}
	applied.Held, applied.Leases = x.held, x.leases
	return nil
}

// create makes the directory of a hook that had nothing.
func (x *execution) create() error {
	if err := os.Mkdir(x.path(), 0o700); err != nil {
		return err
	}
	r, err := x.createChainRecord(x.path(chainPin), x.hook.Name())
	x.record = r
	return err
}

func (x *execution) path(elem ...string) string {
	return x.Arbiter.root.Path(append([]string{x.key}, elem...)...)
}

// run takes the steps, in the order that makes each of them safe to be the last.
func (x *execution) run() error {
	sources, fresh := x.sources.fresh(x.plan), map[uint32]memberRecord{}
	for id, s := range sources {
		fresh[id] = s.record
	}
	if x.next.Locked && !x.record.current.Locked {
		x.record.header.Locker = &memberRecord{Owner: x.sources.owner, Since: time.Now().Round(time.Second)}
	}
	if err := x.makeTokens(); err != nil {
		return err
	}
	if err := x.record.begin(x.l, x.sources.request(), x.next, fresh); err != nil {
		return err
	}
	for id, s := range sources {
		if err := s.pin(x.path(memberDir(id)), x.next.Engine); err != nil {
			return err
		}
	}
	root, err := x.openRoot()
	if err != nil {
		return err
	}
	defer func() {
		if root != nil {
			root.Close()
		}
	}()
	if root != nil {
		if err := x.keepRoot(root); err != nil {
			return err
		}
	}
	if err := x.fillSlots(); err != nil {
		return err
	}
	if root, err = x.commit(root); err != nil {
		return err
	}
	if err := x.hand(root); err != nil {
		return err
	}
	return x.finish()
}

// makeTokens makes those of the members that are to be leased.
func (x *execution) makeTokens() error {
	for i := range x.next.Members {
		m := &x.next.Members[i]
		if x.behalf == nil || !x.mine(*m) {
			continue
		}
		token, id, err := newToken()
		if err != nil {
			return err
		}
		m.Token, x.tokens[m.ID] = id, token
	}
	return nil
}

// openRoot opens the hook's link, nil where there is none yet.
func (x *execution) openRoot() (*xdp.Link, error) {
	if x.record.header.LinkID == 0 {
		return nil, nil
	}
	root, err := xdp.OpenPinned(x.path(linkPin))
	if errors.Is(err, xdp.ErrNotFound) {
		return xdp.OpenID(x.record.header.LinkID) // held members alone keep it
	}
	return root, err
}

// keepRoot pins the hook's link where what is to run shall outlive its holders.
func (x *execution) keepRoot(root *xdp.Link) error {
	if !x.next.pinned() {
		return nil
	}
	err := root.Persist(x.path(linkPin))
	if errors.Is(err, xdp.ErrExists) {
		return nil
	}
	return err
}

// fillSlots attaches the live engine's members where packets can't meet them yet.
func (x *execution) fillSlots() error {
	for _, s := range x.slots {
		m := &x.next.Members[s.member]
		if err := x.dispatcher.SetProceedOn(m.Slot, chain.Actions(m.ProceedOn)); err != nil {
			return err
		}
		if err := x.dispatcher.SetCounter(m.Slot, m.Counter); err != nil {
			return err
		}
		fd, err := attachSlot(x.dispatcher, m.Slot, s.program)
		if errors.Is(err, live.ErrSlotTaken) {
			x.sources.refused = x.sources.refused.With(m.Slot)
		}
		if err != nil {
			return err
		}
		x.links[m.ID] = fd
		link, err := kernel.ReadExtensionLink(fd)
		if err != nil {
			return err
		}
		m.LinkID = link.ID
		if x.mine(*m) {
			continue // its holder gets it, and nothing else shall have it
		}
		if err := kernel.Pin(fd, x.path(memberDir(m.ID), linkPinName(x.next.ProgramID, m.Slot))); err != nil {
			return fmt.Errorf("pin the link of member %q: %w", m.Name, err)
		}
	}
	if len(x.slots) == 0 {
		return nil
	}
	return x.record.amend(x.l, x.next)
}

// attachSlot attaches an extension to a slot that no member has. A link that had
// it may be there still: the kernel releases one some milliseconds after its last
// pin is removed, which is not worth another plan. Who holds a link that had it
// may take longer, and then there is one.
func attachSlot(d *live.Dispatcher, slot live.Slot, p *ebpf.Program) (kernel.FD, error) {
	const patience = 50 * time.Millisecond
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		fd, err := d.Attach(slot, kernel.FD(p.FD()))
		if !errors.Is(err, live.ErrSlotTaken) || time.Now().After(deadline) {
			return fd, err
		}
	}
}

// mine tells whether the member is one that this change adds, and whoever asks is
// to hold.
func (x *execution) mine(m placed) bool {
	return m.Lifetime == owned.Held && x.sources.isFresh(x.plan, m.ID)
}

// commit is the step that packets notice.
func (x *execution) commit(root *xdp.Link) (*xdp.Link, error) {
	if x.dispatcher != nil {
		if err := x.dispatcher.Commit(x.enabled); err != nil {
			return root, err
		}
	}
	switch {
	case x.next.ProgramID == 0: // nothing is left
		if root == nil {
			return nil, nil
		}
		if err := x.record.removePersistAs(); err != nil {
			return root, err
		}
		// The pin goes first, see detachLink.
		if err := remove(x.path(linkPin)); err != nil {
			return root, err
		}
		if err := root.Detach(); err != nil && !errors.Is(err, xdp.ErrGone) {
			return root, atHook(err, x.hook)
		}
		return root, nil
	case x.build.root == nil:
		return root, nil
	case root == nil:
		return x.attachRoot()
	}
	err := root.Replace(xdp.ReplaceOptions{
		Program: x.build.root, Expect: xdp.ExpectID(x.record.current.ProgramID), Hook: x.hook, BoundTo: x.boundTo(),
	})
	return root, atHook(err, x.hook)
}

func (x *execution) boundTo() int {
	if len(x.next.Members) == 0 {
		return 0
	}
	return x.next.Members[0].Ifindex // all are bound to it, or none is
}

// attachRoot makes the hook's link. It is written down before it is pinned, so
// that whoever finds the pin finds whose it is.
func (x *execution) attachRoot() (*xdp.Link, error) {
	attach := func() (*xdp.Link, error) { return x.hook.AttachLink(x.build.root) }
	if x.adopt != nil {
		attach = func() (*xdp.Link, error) { return x.adopt.takeOver(x.hook, x.build.root) }
	}
	root, err := attach()
	if err != nil {
		return nil, err
	}
	info, err := root.Info()
	if err == nil {
		x.record.header.LinkID, x.record.header.PersistAs = info.ID, x.sources.persistAs
		err = x.record.putHeader()
	}
	// Its own pin comes last: it is the one that says that all is done.
	if err == nil && x.sources.persistAs != "" {
		err = root.Persist(x.sources.persistAs)
	}
	if err == nil {
		err = x.keepRoot(root)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// hand gives whoever asks what it is to hold.
func (x *execution) hand(root *xdp.Link) error {
	for i, id := range x.plan.ids { // in the order of the changes
		m := x.next.find(id)
		if x.sources.changes[i] == nil || m == nil || !x.mine(*m) {
			continue
		}
		if x.behalf != nil {
			var keep map[string]*ebpf.Map
			if p := x.sources.fresh(x.plan)[id].prepared; p != nil {
				keep = p.Maps // else the holder has them
			}
			lease, err := x.lease(*m, keep)
			if err != nil {
				return err
			}
			x.leases = append(x.leases, lease)
			continue
		}
		fd, err := kernel.FD(root.FD()).Dup()
		if err != nil {
			return err
		}
		own, err := xdp.Adopt(int(fd))
		if err != nil {
			fd.Close()
			return err
		}
		link, ok := x.links[id]
		if !ok {
			link = noFD
		}
		h, err := x.hold(x.key, id, m.Name, own, link, x.sources.keep(x.plan, id))
		if err != nil {
			own.Close()
			return err
		}
		delete(x.links, id)
		x.held = append(x.held, h)
	}
	return nil
}

// finish writes down that the change is made, and removes what only the chain
// before it needed.
func (x *execution) finish() error {
	before := x.record.current
	if err := x.record.decide(x.l); err != nil {
		return err
	}
	drain := leaves(before, x.next)
	if drain || x.drops(before) {
		if err := x.sweep(x.l, x.key, x.record, drain); err != nil {
			return err
		}
	}
	by := x.sources.request()
	x.record.header.Done = &by
	return x.record.end(x.l, before)
}

// drops tells whether the change takes something out of the chain.
func (x *execution) drops(before arrangement) bool {
	for _, m := range before.Members {
		if x.next.find(m.ID) == nil {
			return true
		}
	}
	return before.pinned() && !x.next.pinned()
}

// leaves tells whether packets may still be under way in a slot that the change
// has emptied.
func leaves(before, after arrangement) bool {
	if before.Engine != Live {
		return false
	}
	for _, m := range before.Members {
		n := after.find(m.ID)
		if before.ProgramID != after.ProgramID || n == nil || n.Slot != m.Slot {
			return true
		}
	}
	return false
}

// undo takes a change back that failed.
func (x *execution) undo() error {
	_, err := x.settleChain(x.l, x.key, x.record)
	return err
}

// discard removes a directory whose first change failed.
func (x *execution) discard() error {
	e, err := x.readEntry(x.key)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return x.removeEntry(x.l, e)
}

// settleChain completes or undoes the change that a killed process left, and
// removes what is not needed any more. It tells whether there was one.
func (a *Arbiter) settleChain(l locked, key string, r *chainRecord) (bool, error) {
	if r.header.Pending == nil {
		return false, nil
	}
	made, err := a.wasMade(r)
	if err != nil {
		return false, err
	}
	if made && r.next.ProgramID == 0 {
		if err := detachByID(r.header.LinkID); err != nil {
			return false, err
		}
	}
	a.log("settled a change that a killed process had begun", "entry", key, "made", made)
	drain := leaves(r.current, r.next) || leaves(r.next, r.current)
	had := r.current
	if made {
		if err := a.keepSettled(key, r); err != nil {
			return false, err
		}
		if err := r.decide(l); err != nil {
			return false, err
		}
		r.header.Done = r.header.Pending
	}
	if err := a.sweep(l, key, r, drain); err != nil {
		return false, err
	}
	return true, r.end(l, had, r.next)
}

// keepSettled pins the link of a hook that its second pin alone has kept so far.
func (a *Arbiter) keepSettled(key string, r *chainRecord) error {
	if r.header.PersistAs == "" || !r.next.pinned() || r.next.ProgramID == 0 {
		return nil
	}
	root, err := xdp.OpenID(r.header.LinkID)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Persist(a.root.Path(key, linkPin)); err != nil && !errors.Is(err, xdp.ErrExists) {
		return err
	}
	return nil
}

// wasMade asks the kernel which of two arrangements runs.
func (a *Arbiter) wasMade(r *chainRecord) (bool, error) {
	if r.next.ProgramID == 0 && r.current.pinned() && !exists(filepath.Join(filepath.Dir(r.path), linkPin)) {
		// The pin goes before the link is detached. Whoever removed it was killed in
		// between, or after that, and the kernel takes a moment to let the link go.
		return true, nil
	}
	program := uint32(0)
	if r.header.LinkID != 0 {
		root, err := xdp.OpenID(r.header.LinkID)
		if err == nil {
			info, infoErr := root.Info()
			root.Close()
			if infoErr != nil {
				return false, infoErr
			}
			if !info.Defunct() {
				program = info.ProgramID
			}
		} else if !errors.Is(err, xdp.ErrNotFound) {
			return false, err
		}
	}
	switch {
	case program != r.next.ProgramID:
		return false, nil
	case program != r.current.ProgramID || r.next.Engine != Live:
		return true, nil
	}
	d, err := live.Open(program)
	if err != nil {
		return false, err
	}
	defer d.Close()
	var wanted live.Slots
	for _, m := range r.next.Members {
		wanted = wanted.With(m.Slot)
	}
	return d.Enabled() == wanted, nil
}

// detachByID detaches a link that is about to go, if it is there still.
func detachByID(id uint32) error {
	if id == 0 {
		return nil
	}
	link, err := xdp.OpenID(id)
	if errors.Is(err, xdp.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer link.Close()
	if err := link.Detach(); err != nil && !errors.Is(err, xdp.ErrGone) {
		return err
	}
	return nil
}

// sweep removes the pins that the chain has no use for. With drain it first
// waits for the packets that may be under way in what they keep.
func (a *Arbiter) sweep(_ locked, key string, r *chainRecord, drain bool) error {
	names, err := os.ReadDir(a.root.Path(key))
	if err != nil {
		return err
	}
	if drain {
		if err := kernel.AwaitGracePeriod(); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("wait for packets under way: %w", err)
		}
	}
	for _, n := range names {
		id, ok := memberID(n.Name())
		if !ok {
			continue
		}
		if err := a.sweepMember(filepath.Join(key, n.Name()), r, r.current.find(id)); err != nil {
			return err
		}
	}
	if !r.current.pinned() {
		return remove(a.root.Path(key, linkPin))
	}
	return nil
}

// memberID reads the name of a member's directory.
func memberID(name string) (uint32, bool) {
	s, ok := strings.CutPrefix(name, memberPrefix)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(s, 10, 32)
	return uint32(id), err == nil
}

// sweepMember removes a member's directory, or, of one that is in the chain, the
// links at slots that are not its own any more.
func (a *Arbiter) sweepMember(dir string, r *chainRecord, m *placed) error {
	names, err := os.ReadDir(a.root.Path(dir))
	if err != nil {
		return err
	}
	for _, n := range names {
		if m != nil && (!strings.HasPrefix(n.Name(), linkPinPrefix) || n.Name() == linkPinName(r.current.ProgramID, m.Slot)) {
			continue
		}
		if err := remove(a.root.Path(dir, n.Name())); err != nil {
			return err
		}
	}
	if m == nil {
		return remove(a.root.Path(dir))
	}
	return nil
}

// removeMembers removes the directories of all members.
func (a *Arbiter) removeMembers(key string) error {
	names, err := os.ReadDir(a.root.Path(key))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, n := range names {
		if _, ok := memberID(n.Name()); !ok {
			continue
		}
		if err := a.sweepMember(filepath.Join(key, n.Name()), nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// deadMembers are the held members whose holders have ended.
func (a *Arbiter) deadMembers(key string, r *chainRecord) map[uint32]bool {
	dead := map[uint32]bool{}
	for _, m := range r.current.Members {
		if m.Lifetime != owned.Held {
			continue
		}
		if m.Token != 0 {
			if a.leaseEnded(key, r, m) {
				dead[m.ID] = true
			}
			continue
		}
		if r.current.Engine == Live {
			pin := a.root.Path(key, memberDir(m.ID), linkPinName(r.current.ProgramID, m.Slot))
			if _, err := os.Lstat(pin); err != nil {
				if !linkLives(m.LinkID) {
					dead[m.ID] = true
				}
				continue
			}
			// It waits to be taken over, and lives by its pin until then.
		}
		if record, err := r.member(m.ID); err == nil && !record.Owner.Alive() {
			dead[m.ID] = true
		}
	}
	return dead
}

func linkLives(id uint32) bool {
	fd, err := kernel.LinkByID(id)
	if err != nil {
		return !errors.Is(err, unix.ENOENT)
	}
	fd.Close()
	return true
}

func programID(p *ebpf.Program) (uint32, error) {
	info, err := kernel.ReadProgram(kernel.FD(p.FD()))
	return info.ID, err
}

// acknowledgeChain forgets who made the last change, once whoever asked for it
// has been told. A chain that has come to its end goes with it.
func (a *Arbiter) acknowledgeChain(key string, owner Owner) Acknowledge {
	return func() error {
		l, err := a.lock(context.Background())
		if err != nil {
			return err
		}
		defer l.unlock()
		r, err := a.readChainRecord(a.root.Path(key, chainPin))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if r.header.Pending != nil || r.header.Done == nil || r.header.Done.By != owner.Process {
			return nil // others went on from there
		}
		if r.current.ProgramID == 0 {
			e, err := a.readIfThere(key)
			if err != nil || e == nil {
				return err
			}
			return a.removeEntry(l, e)
		}
		r.header.Done = nil
		return r.putHeader()
	}
}
