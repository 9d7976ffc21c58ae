// Package holdfasttest is a machine in memory, for tests of programs that use
// Holdfast: its arbiters decide as those of [holdfast.Open] do, by the same code
// where there is something to decide, without root, kernel or packets.
//
//	m := holdfasttest.New("eth0")
//	a := m.NewProcess() // is a holdfast.Arbiter
//	member, err := holdfast.Attach(ctx, "eth0", "filter.o", holdfast.Options{Arbiter: a})
//	...
//	m.NewProcess().Apply(...) // somebody else comes in between
//	a.Kill()                  // and whoever held the member ends
//
// What it does not have is what takes a kernel: programs are parsed and never
// loaded, so that no verifier refuses them and nothing runs, and there is no
// engine to choose. [Machine.Refuse] is for what a kernel can refuse.
//
// The two are held to each other by a test that makes the same random changes on
// both.
package holdfasttest

import (
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-bpf/holdfast"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Machine is a machine with network interfaces. It can be used from several
// goroutines.
type Machine struct {
	// Refuse, if there is one, is asked before anything is changed. Its error is
	// what the change ends with, as if the kernel had refused it. It must be set
	// before the machine is used, and must not use the machine.
	Refuse func(holdfast.Transaction) error

	mu         sync.Mutex
	interfaces map[place]*iface
	processes  int
	lastID     uint32
}

// place is where an interface is.
type place struct{ namespace, name string }

// Interface is a network interface.
type Interface struct {
	Name string
	// Namespace is what [holdfast.Hook.Namespace] calls its network namespace.
	// There are those that have had an interface, and the one without a name.
	Namespace string
	// GenericOnly is an interface whose driver has no native mode, and Offload
	// one whose card runs programs.
	GenericOnly, Offload bool
}

// iface is an interface with what is attached to it. It is its own identity:
// whatever its name is, and whichever had that name before.
type iface struct {
	Interface
	index int
	// main is what native or generic mode has, and card what offload has; the
	// two are there beside each other.
	main, card hook
}

// hook is what is attached, and in which mode. Nothing is where there is neither
// a chain nor a foreign program.
type hook struct {
	mode xdp.Mode
	// foreign is what somebody else attached, nil where nobody did.
	foreign *xdp.Attachment
	// chain is Holdfast's, as its last change made it; members has the rest.
	chain   *owned.Chain
	members map[uint32]*member // by version
	// linkID and programID are what the kernel would have numbered.
	linkID, programID uint32
	// lost tells that a permanent chain was detached by force, and orphans are
	// who held members of a chain that was: they are told by the next change.
	lost    bool
	orphans []*handle
}

// New makes a machine with interfaces of these names, of drivers that have a
// native mode.
func New(names ...string) *Machine {
	m := &Machine{interfaces: map[place]*iface{}, processes: 1}
	for _, n := range names {
		m.AddInterface(Interface{Name: n})
	}
	return m
}

// AddInterface adds an interface, and its namespace where there is none. It
// panics where the name is taken.
func (m *Machine) AddInterface(i Interface) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := place{i.Namespace, i.Name}
	if m.interfaces[at] != nil {
		panic(fmt.Sprintf("holdfasttest: there is an interface %q already", i.Name))
	}
	if err := xdp.CheckName(i.Name); err != nil {
		panic("holdfasttest: " + err.Error())
	}
	m.interfaces[at] = &iface{Interface: i, index: int(m.nextID())}
}

// nextID numbers whatever the kernel would: interfaces, programs, links.
func (m *Machine) nextID() uint32 {
	m.lastID++
	return m.lastID
}

// DeleteInterface deletes the interface of the hook, with all that is attached to
// it. Members that were held there can be closed still. One of that name that is
// added later is another interface.
func (m *Machine) DeleteInterface(h holdfast.Hook) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.find(h); err != nil {
		return err
	}
	delete(m.interfaces, place{h.Namespace, h.Interface})
	return nil
}

// MoveInterface renames the interface of the hook, or moves it to another
// network namespace, with all that is attached to it.
func (m *Machine) MoveInterface(h holdfast.Hook, namespace, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.find(h)
	if err != nil {
		return err
	}
	to := place{namespace, name}
	if other := m.interfaces[to]; other != nil && other != i {
		return &xdp.Error{
			Op: "move interface", Hook: h.Interface, Err: xdp.ErrExists,
			Detail: fmt.Sprintf("there is one called %q already", name), Hint: "choose another name",
		}
	}
	delete(m.interfaces, place{h.Namespace, h.Interface})
	i.Namespace, i.Name = namespace, name
	m.interfaces[to] = i
	return nil
}

// AttachForeign attaches what no Holdfast knows of: a program of that name, by
// netlink or held by a link. In mode Auto it is native where the driver can. Like
// the kernel it is refused, as an xdp.ErrConflict, where anything is attached.
func (m *Machine) AttachForeign(h holdfast.Hook, program string, held xdp.Holding) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.find(h)
	if err != nil {
		return err
	}
	mode, err := i.attachMode(h)
	if err != nil {
		return err
	}
	at := i.at(h.Mode)
	if !at.empty() {
		return &xdp.Error{
			Op: "attach", Hook: describe(h), Err: xdp.ErrConflict, Rival: at.attachment(),
			Hint: "detach it first",
		}
	}
	foreign := &xdp.Attachment{Mode: mode, Held: held, Program: xdp.Program{ID: m.nextID(), Name: program, LoadedAt: time.Now()}}
	if held == xdp.HeldByLink {
		foreign.LinkID = m.nextID()
	}
	at.mode, at.foreign = mode, foreign
	return nil
}

// Detach detaches whatever is attached to the hook, by force and whoever holds
// it, as root can. What Holdfast had there is lost. Nobody watches for that: the
// next who wants to change it is told, and only then are its holders. An empty
// hook stays empty.
func (m *Machine) Detach(h holdfast.Hook) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.find(h)
	if err != nil {
		return err
	}
	at := i.at(h.Mode)
	switch {
	case at.foreign != nil:
		at.foreign = nil
	case at.chain != nil:
		lost := hook{lost: at.permanent()}
		for _, m := range at.members {
			if m.handle != nil && !m.dead {
				lost.orphans = append(lost.orphans, m.handle)
			}
		}
		*at = lost
	}
	return nil
}

// Digest tells which program runs as the member of that name: it is that of
// [github.com/holdfast-bpf/holdfast/object.Object.Digest], and empty where there
// is no such member.
func (m *Machine) Digest(h holdfast.Hook, name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.find(h)
	if err != nil {
		return ""
	}
	at := i.at(h.Mode)
	if c := at.running(); c.Find(name) >= 0 {
		return at.members[c.Members[c.Find(name)].ID].digest
	}
	return ""
}

// find returns the interface of the hook.
func (m *Machine) find(h holdfast.Hook) (*iface, error) {
	if i := m.interfaces[place{h.Namespace, h.Interface}]; i != nil {
		return i, nil
	}
	for at := range m.interfaces {
		if at.namespace == h.Namespace || h.Namespace == "" {
			return nil, &xdp.Error{
				Op: "find interface", Hook: h.Interface, Err: xdp.ErrNotFound, Detail: "no such interface" + in(h.Namespace),
				Hint: "add it to the machine",
			}
		}
	}
	return nil, &xdp.Error{
		Op: "open network namespace", Hook: h.Namespace, Err: xdp.ErrNotFound, Detail: "no such namespace",
		Hint: "add an interface in it to the machine",
	}
}

// at is the hook that a mode means. Native and generic are one and the same: the
// kernel has either.
func (i *iface) at(mode xdp.Mode) *hook {
	if mode == xdp.Offload {
		return &i.card
	}
	return &i.main
}

// attachMode is the mode that a program gets which is attached to the hook.
func (i *iface) attachMode(h holdfast.Hook) (xdp.Mode, error) {
	refuse := func(detail, hint string) (xdp.Mode, error) {
		return 0, &xdp.Error{Op: "attach", Hook: describe(h), Err: xdp.ErrNotSupported, Detail: detail, Hint: hint}
	}
	switch h.Mode {
	case xdp.Auto:
		if i.GenericOnly {
			return xdp.Generic, nil
		}
		return xdp.Native, nil
	case xdp.Native:
		if i.GenericOnly {
			return refuse("the driver has no native mode", "use mode generic")
		}
	case xdp.Offload:
		if !i.Offload {
			return refuse("the driver does not offload programs", "use mode native")
		}
	}
	return h.Mode, nil
}

func (k *hook) empty() bool { return k.foreign == nil && k.chain == nil }

// running is the chain without the members whose holders have ended.
func (k *hook) running() owned.Chain {
	if k.chain == nil {
		return owned.Chain{}
	}
	c := *k.chain
	c.Members = nil
	for _, m := range k.chain.Members {
		if !k.members[m.ID].dead {
			c.Members = append(c.Members, m)
		}
	}
	return c
}

// permanent tells whether it is a chain that outlives all processes.
func (k *hook) permanent() bool {
	if k.chain == nil {
		return false
	}
	for _, m := range k.chain.Members {
		if m.Lifetime == owned.Permanent {
			return true
		}
	}
	return k.chain.Locked
}

// release is called when holders have ended: with the last member the hook
// becomes empty.
func (k *hook) release() {
	if k.chain != nil && len(k.running().Members) == 0 && !k.chain.Locked {
		*k = hook{}
	}
}

// settle is what everybody does first who wants to change the chain: those who
// held members of one that was are told. It returns whether that one is missed.
func (k *hook) settle() (lost bool) {
	for _, h := range k.orphans {
		h.end("its chain is gone")
	}
	lost = k.lost
	k.lost, k.orphans = false, nil
	return lost
}

// attachment is what the kernel would show.
func (k *hook) attachment() *xdp.Attachment {
	if k.foreign != nil {
		at := *k.foreign
		return &at
	}
	return &xdp.Attachment{Mode: k.mode, Held: xdp.HeldByLink, LinkID: k.linkID, Program: xdp.Program{ID: k.programID}}
}

// describe is the hook's name in messages.
func describe(h holdfast.Hook) string {
	if h.Mode == xdp.Auto {
		return h.Interface + in(h.Namespace)
	}
	return fmt.Sprintf("%s (%s)%s", h.Interface, h.Mode, in(h.Namespace))
}

func in(namespace string) string {
	if namespace == "" {
		return ""
	}
	return fmt.Sprintf(" in network namespace %q", namespace)
}
