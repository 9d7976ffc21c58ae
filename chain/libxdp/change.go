package libxdp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// change carries out a request: it reads the chain, plans, builds a dispatcher
// with all members and swaps. If the chain was changed meanwhile it starts over.
func (c *Chains) change(ctx context.Context, r request) (*Chain, error) {
	if r.hook.Mode() == xdp.Offload {
		return nil, r.error(xdp.ErrNotSupported, "network cards run no dispatchers", "use mode native")
	}
	adds, err := c.open(r)
	if err != nil {
		return nil, err
	}
	defer adds.close()
	for n := 1; ; n++ {
		result, err := c.try(ctx, r, adds)
		var changed *changedError
		if !errors.As(err, &changed) {
			return result, err
		}
		if n == attempts {
			e := changed.err
			e.Detail = fmt.Sprintf("others changed what is attached during each of %d attempts, the last time to this", n)
			e.Hint = "try again when they are done"
			return nil, e
		}
		c.log("the chain was changed meanwhile; starting over", "hook", r.hook.String(), "attempt", n)
		if n == 1 {
			// Who lost once waits in line with others of Holdfast who did, so
			// that they don't build dispatchers against each other. It is no
			// more than politeness, so after a while it goes on without.
			if line, err := c.root.Lock(ctx, c.timeout); err == nil {
				defer line.Unlock()
			}
		}
		// Those who lost together must not meet again.
		longest := min(time.Millisecond<<min(n, 10), 100*time.Millisecond)
		if err := pause(ctx, rand.N(longest)); err != nil {
			return nil, r.stopped(err)
		}
	}
}

// changedError says that the expected program was not attached any more.
type changedError struct{ err *xdp.Error }

func (e *changedError) Error() string { return e.err.Error() }

func (r request) error(sentinel error, detail, hint string) *xdp.Error {
	return &xdp.Error{Op: r.op, Hook: r.hook.String(), Err: sentinel, Detail: detail, Hint: hint}
}

func (r request) stopped(err error) error {
	return fmt.Errorf("%s %s: %w", r.op, r.hook, err)
}

// explain gives what keeps a plan from being made its place.
func (r request) explain(err error) error {
	var refused *refusal
	var place *chain.PlaceError
	switch {
	case errors.As(err, &refused):
		return r.error(refused.sentinel, refused.detail, refused.hint)
	case errors.As(err, &place):
		return r.error(place, "", "")
	}
	return err
}

// addition is a program that is to become a member. It is loaded once, however
// often the request is tried.
type addition struct {
	Addition
	item
	loaded *object.Loaded // nil until then, and for one that is given by its id
	fd     kernel.FD      // of one that is given by its id
}

type additions []*addition

func (as additions) close() {
	for _, a := range as {
		if a.loaded != nil {
			a.loaded.Close()
		}
		if a.fd >= 0 {
			a.fd.Close()
		}
	}
}

func (as additions) items() []item {
	var items []item
	for _, a := range as {
		items = append(items, a.item)
	}
	return items
}

func (as additions) adopt() bool {
	for _, a := range as {
		if a.Adopt {
			return true
		}
	}
	return false
}

// open finds out about the programs that the request brings, as far as can be
// done before they are loaded.
func (c *Chains) open(r request) (opened additions, err error) {
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	for i, a := range r.additions() {
		next := &addition{Addition: a, fd: -1}
		opened = append(opened, next)
		switch {
		case (a.Object == nil) == (a.ProgramID == 0):
			return opened, r.error(xdp.ErrInvalid, "a member comes from an object or from a program's id", "give one of the two")
		case a.Object != nil:
			err = next.describe(r)
		default:
			err = next.openByID(r)
		}
		if err != nil {
			return opened, err
		}
		next.old, next.added = none, i
		if a.Priority != nil {
			next.item.Priority = *a.Priority
		}
		if a.ProceedOn != nil {
			next.item.ProceedOn = *a.ProceedOn
		}
	}
	return opened, nil
}

// describe tells what is known of an object's program before it is loaded.
func (a *addition) describe(r request) error {
	if a.Load.Offload {
		return r.error(xdp.ErrNotSupported, "network cards run no chains", "load the program for no device")
	}
	if a.Load.Ifindex != 0 && a.Load.Ifindex != r.hook.Index() {
		return r.error(xdp.ErrDeviceBound,
			fmt.Sprintf("the program is to be bound to interface %d, and the chain's is %d", a.Load.Ifindex, r.hook.Index()),
			"load it for this interface, or for none")
	}
	p, err := a.Object.Program(a.Load.Program)
	if err != nil {
		return err
	}
	config, err := a.Object.RunConfig(p.Name)
	if err != nil {
		return err
	}
	a.item = item{
		Member: chain.Member{
			Name: p.Name, Priority: config.Priority, ProceedOn: config.ProceedOn, Instructions: p.Instructions,
		},
		frags: p.Frags, deviceBound: a.Load.Ifindex != 0,
	}
	return nil
}

func (a *addition) openByID(r request) error {
	fd, err := kernel.ProgramByID(a.ProgramID)
	switch {
	case errors.Is(err, unix.ENOENT):
		return r.error(xdp.ErrNotFound, fmt.Sprintf("there is no program %d", a.ProgramID), "look at what is loaded now")
	case errors.Is(err, unix.EPERM):
		return r.error(xdp.ErrPermission, "", "opening a program by its id needs CAP_SYS_ADMIN")
	case err != nil:
		return r.error(xdp.ErrUnexpected, err.Error(), "give its object instead")
	}
	a.fd = fd
	info, err := kernel.ReadProgram(fd)
	if err != nil {
		return r.error(xdp.ErrUnexpected, err.Error(), "give its object instead")
	}
	if !info.IsExtension() {
		return r.error(ErrPlain,
			fmt.Sprintf("program %d %q was not loaded as an extension", info.ID, info.Name),
			"give the object that it comes from, which is loaded anew")
	}
	a.item = item{Member: memberOf(info), id: info.ID}
	a.item.Priority, a.item.ProceedOn = chain.DefaultPriority, chain.DefaultProceedOn
	return nil
}

// memberOf is what decides the place of a loaded program, but for its priority.
func memberOf(p kernel.ProgramInfo) chain.Member {
	return chain.Member{Name: fullName(p), Loaded: true, Tag: p.Tag, LoadTime: p.LoadTime}
}

// items are the members that are there.
func (s *snapshot) items() []item {
	var items []item
	for i, m := range s.members {
		it := item{Member: memberOf(m.info), id: m.info.ID, old: i, added: none}
		conf := s.conf.slots[i]
		it.Priority, it.ProceedOn = conf.priority, conf.proceedOn
		it.frags, it.deviceBound = conf.frags, conf.deviceBound
		items = append(items, it)
	}
	return items
}

// admit says whether what is at the hook can be changed by the request at all.
func (c *Chains) admit(r request, s *snapshot, adopt bool) error {
	rival := func(sentinel error, detail, hint string) error {
		e := r.error(sentinel, detail, hint)
		e.Rival = s.Attachment
		if e.Rival == nil {
			e.Rival = s.otherMode
		}
		return e
	}
	switch {
	case s.Attachment != nil && s.Attachment.Held == xdp.HeldByLink:
		xdp.FindHolders(s.Attachment)
		return rival(xdp.ErrConflict, "the hook is owned", "whoever holds the link must let go first")
	case s.otherMode != nil:
		return rival(xdp.ErrConflict, "the hook is taken in another mode", "name that mode, or detach it first")
	case s.Kind == Empty && len(r.add) == 0:
		return r.error(xdp.ErrNotAttached, "the hook is empty", "there is nothing to do")
	case s.Kind == Single && !adopt:
		return rival(xdp.ErrConflict, "a single program has the hook, and can't become a member as it is",
			"detach it first, or give its object to be adopted into the chain")
	case s.Problem != "":
		return rival(ErrDamaged, s.Problem, "what is attached can be detached as a whole, and added anew")
	case c.root == nil:
		return r.error(ErrNoFreplace, "no bpffs is mounted at "+c.where,
			"mount one: mount -t bpf bpf "+c.where+"; or attach one program alone")
	}
	return nil
}

// try carries out the request on what is there now. It is a changedError if
// that changed before it was done.
func (c *Chains) try(ctx context.Context, r request, adds additions) (*Chain, error) {
	there, err := c.read(ctx, r.op, r.hook)
	if err != nil {
		return nil, err
	}
	result, err := c.tryOn(ctx, r, there, adds)
	if err != nil {
		there.close()
		return nil, err
	}
	c.mend(r.hook, there.Dispatcher.ID, result.Dispatcher.ID)
	c.letGo(r.hook, there.Dispatcher.ID, there.close)
	return result, nil
}

// tryOn is try without what comes before and after.
func (c *Chains) tryOn(ctx context.Context, r request, there *snapshot, adds additions) (*Chain, error) {
	if err := c.admit(r, there, adds.adopt()); err != nil {
		return nil, err
	}
	planned, err := r.plan(there.items(), adds.items())
	if err != nil {
		return nil, r.explain(err)
	}
	if len(planned) == 0 {
		return c.detach(ctx, r, there)
	}
	b, err := c.build(r, there, adds, planned)
	if err != nil {
		return nil, err
	}
	defer b.close()
	if err := ctx.Err(); err != nil {
		return nil, r.stopped(err)
	}
	if err := c.swap(ctx, r, there, b); err != nil {
		return nil, err
	}
	return b.chain(r, there), nil
}

// expectation is what must still be attached when the change is made.
func (s *snapshot) expectation() xdp.Expectation {
	if s.Attachment == nil {
		return xdp.Empty
	}
	return xdp.ExpectID(s.Attachment.Program.ID)
}

// detach takes the last member away.
func (c *Chains) detach(ctx context.Context, r request, there *snapshot) (*Chain, error) {
	if err := ctx.Err(); err != nil {
		return nil, r.stopped(err)
	}
	if err := r.hook.Detach(there.expectation()); err != nil {
		return nil, r.refused(err)
	}
	return &Chain{Kind: Empty, Mode: there.Mode}, nil
}

// refused tells a lost race, after which the request is tried again, from other
// answers to an attach or detach.
func (r request) refused(err error) error {
	var e *xdp.Error
	if !errors.As(err, &e) {
		return err
	}
	e.Op = r.op
	lost := errors.Is(err, xdp.ErrConflict) && (e.Rival == nil || e.Rival.Held != xdp.HeldByLink)
	if lost || errors.Is(err, xdp.ErrNotAttached) {
		return &changedError{e}
	}
	return e
}

// build is a dispatcher with members, attached to no hook yet.
type build struct {
	*dispatcher
	members []built
	plan    []item
}

type built struct {
	program kernel.FD // of the snapshot or the addition
	link    kernel.FD
	info    kernel.ProgramInfo
}

func (b *build) close() {
	for _, m := range b.members {
		m.link.Close()
	}
	b.dispatcher.close()
}

// build loads a dispatcher and attaches the planned members to it.
func (c *Chains) build(r request, there *snapshot, adds additions, planned []item) (_ *build, err error) {
	conf, err := planConf(planned, there.Version)
	if err != nil {
		return nil, r.explain(err)
	}
	b := &build{plan: planned}
	load := func() (err error) {
		b.dispatcher, err = loadDispatcher(conf, r.hook.Index())
		return err
	}
	if conf.deviceBound {
		// The index is one of the hook's namespace.
		err = r.hook.Namespace().Do(load)
	} else {
		err = load()
	}
	if err != nil {
		return nil, r.explainDispatcher(err, conf)
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	for slot, it := range planned {
		m := built{link: -1}
		if it.added != none {
			m.program, err = adds[it.added].load(r, b.program, b.function(slot))
		} else {
			m.program = there.members[it.old].fd
		}
		if err != nil {
			return nil, err
		}
		if m.info, err = kernel.ReadProgram(m.program); err != nil {
			return nil, r.error(xdp.ErrUnexpected, err.Error(), "try again")
		}
		m.link, err = kernel.LinkCreateExtension(int(m.program), b.program.FD(), b.functions[slot])
		if err != nil {
			return nil, r.explainLink(err, it.Name)
		}
		b.members = append(b.members, m)
	}
	return b, nil
}

// load loads the addition as an extension of that function, once.
func (a *addition) load(r request, target *ebpf.Program, function string) (kernel.FD, error) {
	if a.fd >= 0 {
		return a.fd, nil
	}
	if a.loaded == nil {
		opts := a.Load
		opts.Extend = &object.Extension{Target: target, Function: function}
		loaded, err := a.Object.Load(opts)
		if errors.Is(err, object.ErrExtension) {
			return -1, r.error(ErrNoFreplace, "the kernel takes no extensions (BPF_PROG_TYPE_EXT)", "attach one program alone, or use a kernel that takes them")
		}
		if err != nil {
			return -1, err
		}
		a.loaded = loaded
		for _, name := range loaded.ProgramArrays() {
			if m := loaded.Maps[name]; !a.ArraysMayEmpty && !m.IsPinned() && a.Load.MapReplacements[name] == nil {
				return -1, r.error(xdp.ErrInvalid,
					fmt.Sprintf("the kernel would empty the program array %s of %q when this process ends, and its tail calls would fall through", name, a.Name),
					"have it pinned by name, and give a directory to pin maps in")
			}
		}
	}
	return kernel.FD(a.loaded.Program.FD()), nil
}

func (r request) explainDispatcher(err error, conf conf) error {
	switch {
	case errors.Is(err, errNoTypes):
		return r.error(ErrNoFreplace, err.Error(), "attach one program alone, or use a kernel with CONFIG_DEBUG_INFO_BTF")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return r.error(xdp.ErrPermission, "the kernel does not let this process load a dispatcher", "run as root or with CAP_BPF and CAP_NET_ADMIN")
	case conf.deviceBound:
		return r.error(xdp.ErrNotSupported, "the kernel loads no dispatcher for this device: "+err.Error(), "load the programs for no device")
	}
	return r.error(xdp.ErrUnexpected, "the kernel did not load the dispatcher: "+err.Error(), "attach one program alone")
}

// explainLink says why a member could not be attached to the dispatcher.
func (r request) explainLink(err error, name string) error {
	const enotsupp = unix.Errno(524) // the kernel's own, which user space has no name for
	var e *xdp.Error
	switch {
	case errors.Is(err, enotsupp), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM):
		e = r.error(ErrNoFreplace, "the kernel attaches no extensions on this machine", "attach one program alone")
	case errors.Is(err, unix.EINVAL):
		e = r.error(xdp.ErrInvalid, fmt.Sprintf("program %q does not fit into the dispatcher", name), "give its object, which is loaded anew")
	default:
		e = r.error(xdp.ErrUnexpected, fmt.Sprintf("attach program %q to the dispatcher", name), "try again")
	}
	errors.As(err, &e.Errno)
	return e
}

// swap pins the members and puts the new dispatcher in the place of what was
// there, all under the lock: who reads under the lock finds the pins of what is
// attached, and nobody takes new pins for a dead process's. If another program
// is there by now, nothing is left.
func (c *Chains) swap(ctx context.Context, r request, there *snapshot, b *build) error {
	l, err := c.makeAndLock(ctx)
	if err != nil {
		return c.lockError(r.op, r.hook, err)
	}
	defer l.unlock()
	if err := c.still(r, there); err != nil {
		return err
	}
	index := r.hook.Index()
	if err := l.pin(index, b.id, b.members); err != nil {
		return r.error(xdp.ErrUnexpected, err.Error(), "look at what is in that directory")
	}
	if err := r.hook.Attach(b.program, there.expectation()); err != nil {
		if err := l.unpin(index, b.id); err != nil {
			c.log("pins are left", "error", err)
		}
		return r.refused(err)
	}
	return nil
}

// still tells early, and for less than an attempt costs, that what was there is
// no longer attached.
func (c *Chains) still(r request, there *snapshot) error {
	state, err := r.hook.Query()
	if err != nil {
		return err
	}
	var id uint32
	now := state.At(r.hook.Mode())
	if now != nil {
		id = now.Program.ID
	}
	if there.expectation().Holds(id) {
		return nil
	}
	e := r.error(xdp.ErrConflict, "", "")
	e.Rival = now
	return r.refused(e)
}

// tidyTimeout bounds what is done after the change is made, which is none of
// the caller's context any more.
const tidyTimeout = time.Minute

// mend removes what killed processes left at the hook, which is all but the pins
// of the old and the new dispatcher. The change is made already: what stays is
// for the next one.
func (c *Chains) mend(h *xdp.Hook, old, now uint32) {
	ctx, cancel := context.WithTimeout(context.Background(), tidyTimeout)
	defer cancel()
	found, err := c.directories(ctx, h.Index())
	if err == nil {
		found = slices.DeleteFunc(found, func(f Cleaned) bool {
			return f.DispatcherID == old || f.DispatcherID == now || c.leaving.has(f.DispatcherID)
		})
		if len(found) > 0 {
			_, err = c.cleanUp(ctx, h.Namespace(), found)
		}
	}
	if err != nil {
		c.log("old pins are left", "error", err)
	}
}

// letGo removes the pins of the dispatcher that was detached, 0 for none, and
// then calls done. A packet that was in the old dispatcher at that moment has
// yet to meet its members, which are gone with their pins: so they stay for as
// long as it can take, and nobody is kept waiting but Close. Until then what
// there is to close, the dispatcher above all, shows others that the pins are in
// use.
func (c *Chains) letGo(h *xdp.Hook, old uint32, done func()) {
	if old == 0 || c.root == nil {
		done()
		return
	}
	index := h.Index()
	c.leaving.start(old, func() {
		defer done()
		ctx, cancel := context.WithTimeout(context.Background(), tidyTimeout)
		defer cancel()
		if err := kernel.AwaitGracePeriod(); err != nil {
			c.log("the kernel offers no wait for the packets under way", "error", err)
			_ = pause(ctx, graceTime)
		}
		l, err := c.lock(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			return // nobody has pinned anything
		}
		if err == nil {
			err = l.unpin(index, old)
			l.unlock()
		}
		if err != nil {
			c.log("old pins are left", "error", err)
		}
	})
}

// leaving are dispatchers that were replaced and have pins still, each with a
// channel that is closed when they are gone.
type leaving struct {
	mutex sync.Mutex
	gone  map[uint32]chan struct{}
}

// start calls remove, which is to remove the dispatcher's pins, in the
// background.
func (l *leaving) start(id uint32, remove func()) {
	gone := make(chan struct{})
	l.mutex.Lock()
	if l.gone == nil {
		l.gone = map[uint32]chan struct{}{}
	}
	l.gone[id] = gone
	l.mutex.Unlock()
	go func() {
		remove()
		l.mutex.Lock()
		delete(l.gone, id)
		l.mutex.Unlock()
		close(gone)
	}()
}

func (l *leaving) has(id uint32) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.gone[id] != nil
}

// wait returns when there was a moment without any.
func (l *leaving) wait() {
	for {
		var gone chan struct{}
		l.mutex.Lock()
		for _, gone = range l.gone {
			break
		}
		l.mutex.Unlock()
		if gone == nil {
			return
		}
		<-gone
	}
}

// graceTime is far longer than a packet is in a program.
const graceTime = 100 * time.Millisecond

// chain is what was built, as Read would tell it.
func (b *build) chain(r request, there *snapshot) *Chain {
	mode := there.Mode
	if mode == xdp.Auto {
		if s, err := r.hook.Query(); err == nil {
			if a := s.At(mode); a != nil {
				mode = a.Mode
			}
		}
	}
	c := &Chain{
		Kind: Dispatcher, Version: b.conf.version, Mode: mode,
		Dispatcher: xdp.LookUpProgram(b.id),
		Frags:      b.conf.frags, DeviceBound: b.conf.deviceBound,
		MadeBy: MadeByHoldfast,
	}
	c.Attachment = &xdp.Attachment{Mode: mode, Program: c.Dispatcher, Held: xdp.HeldByNetlink}
	for slot, it := range b.plan {
		c.Members = append(c.Members, Member{
			Slot: slot, Name: it.Name, Priority: it.Priority, ProceedOn: it.ProceedOn,
			Frags: it.frags, DeviceBound: it.deviceBound,
			Program: xdp.LookUpProgram(b.members[slot].info.ID),
		})
	}
	return c
}

// hold opens what is attached, if anything, for letGo to close.
func hold(a *xdp.Attachment) (done func()) {
	if a != nil {
		if fd, err := kernel.ProgramByID(a.Program.ID); err == nil {
			return func() { fd.Close() }
		}
	}
	return func() {}
}

// removeAll detaches what is there.
func (c *Chains) removeAll(ctx context.Context, h *xdp.Hook, e xdp.Expectation) error {
	r := request{op: "detach", hook: h}
	for n := 1; ; n++ {
		state, err := h.Query()
		if err != nil {
			return err
		}
		a := state.At(h.Mode())
		expect := e
		if a != nil && e.IsAny() {
			expect = xdp.ExpectID(a.Program.ID)
		}
		done := hold(a)
		err = h.Detach(expect)
		if err == nil {
			if a != nil {
				c.mend(h, a.Program.ID, 0)
				c.letGo(h, a.Program.ID, done)
			}
			return nil
		}
		done()
		var changed *changedError
		if !e.IsAny() || !errors.As(r.refused(err), &changed) || n == attempts || a == nil {
			return err
		}
		if err := pause(ctx, rand.N(20*time.Millisecond)); err != nil {
			return r.stopped(err)
		}
	}
}
