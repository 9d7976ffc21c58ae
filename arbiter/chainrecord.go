package arbiter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Engine is how a chain runs.
type Engine string

const (
	// Single: the only member is attached as itself.
	Single Engine = "single"
	// Live: a dispatcher calls the members, each of which has a slot of it.
	Live Engine = "live"
	// Fused: the members are one program.
	Fused Engine = "fused"
)

// Check tells why the chain can't be asked to run so, with an owned.ErrInvalid. No
// engine at all leaves the choice to the arbiter.
func (e Engine) Check(c owned.Chain) error {
	refuse := func(detail, hint string) error {
		return &owned.Error{Op: opApply, Err: owned.ErrInvalid, Detail: detail, Hint: hint}
	}
	switch e {
	case "", Live, Fused:
		return nil
	case Single:
		if n := len(c.Members); n > 1 {
			return refuse(fmt.Sprintf("the chain would have %d members, and as itself only one can run", n), "choose live or fused, or none")
		}
		if c.Stats {
			return refuse("a program that runs as itself is counted by nobody", "choose live or fused, or none, or do without the statistics")
		}
		return nil
	}
	return refuse(fmt.Sprintf("there is no engine %q", e), "it is single, live or fused")
}

// arrangement is a chain as it runs, or as a change wants it to run. What
// belongs to a member and never changes is in its memberRecord.
type arrangement struct {
	Generation uint64 `json:"generation"`
	NextID     uint32 `json:"next_id"`
	Exclusive  bool   `json:"exclusive,omitempty"`
	Locked     bool   `json:"locked,omitempty"`
	Engine     Engine `json:"engine,omitempty"`
	// ProgramID is what the hook's link runs, 0 where there is no link.
	ProgramID uint32 `json:"program_id,omitempty"`
	// Stats is the id of the map that the chain counts in, 0 where it does not.
	Stats uint32 `json:"stats,omitempty"`
	// Members are in the order that they run in.
	Members []placed `json:"members,omitempty"`
	// Left are slots of a live chain that members have left, and whose links were
	// there still: until those are gone nobody else can have the slots.
	Left []leftSlot `json:"left,omitempty"`
}

// leftSlot is a slot that a member has left, with its link there.
type leftSlot struct {
	Slot live.Slot `json:"slot"`
	Link uint32    `json:"link"`
}

// mostLeft is how many of them are remembered: of any other one the kernel says that
// it is taken.
const mostLeft = 24

// placed is a member in an arrangement, with all that deciding about a chain
// takes: an arrangement is one element, and read in one call.
type placed struct {
	ID         uint32         `json:"id"`
	Name       string         `json:"name"`
	Lifetime   owned.Lifetime `json:"lifetime"`
	Priority   uint32         `json:"priority"`
	ProceedOn  actions        `json:"proceed_on"`
	Generation uint64         `json:"generation"`
	Frags      bool           `json:"frags,omitempty"`
	// Ifindex is the device that the program is bound to, 0 for none.
	Ifindex int `json:"ifindex,omitempty"`
	// Token is the id of a map that whoever holds the member has, see [Lease]; 0
	// where it is not leased.
	Token uint32 `json:"token,omitempty"`
	// ProgramID is the member's own program, 0 where it is part of a fused one.
	ProgramID uint32 `json:"program_id,omitempty"`
	// Slot and LinkID are of the live engine.
	Slot   live.Slot `json:"slot,omitempty"`
	LinkID uint32    `json:"link_id,omitempty"`
	// Counter is the member's place in the map that the chain counts in.
	Counter int `json:"counter,omitempty"`
}

// actions is a set of actions as a number, which is short.
type actions uint32

// memberRecord is whose one version of a member is, and where it came from.
type memberRecord struct {
	Owner Owner     `json:"owner"`
	Since time.Time `json:"since"`
	// Object, Program and Digest say what was loaded, see [object.Loaded].
	Object  string `json:"object"`
	Program string `json:"program"`
	Digest  string `json:"digest"`
	// Variables are the assignments that were made before.
	Variables []string `json:"variables,omitempty"`
	Cost
	// CountedFrom is what its counter had when the member came, nil where the chain
	// did not count then.
	CountedFrom *countedFrom `json:"counted_from,omitempty"`
}

// countedFrom is what a place of a map had: another member had it before.
type countedFrom struct {
	Map      uint32         `json:"map"`
	Counters stats.Counters `json:"counters"`
}

// chainHeader is the element that is read first.
type chainHeader struct {
	Version int `json:"version"`
	// Interface is its name when the chain was made. It may have another now.
	Interface string `json:"interface"`
	// LinkID is the hook's link, 0 until there is one.
	LinkID uint32 `json:"link_id,omitempty"`
	// PersistAs is the path of a second pin of the link, or empty.
	PersistAs string `json:"persist_as,omitempty"`
	// Locker is who locked the hook, and when, nil where nobody has.
	Locker *memberRecord `json:"locker,omitempty"`
	// Pending is the change that is putting the second arrangement in place of
	// the first. It is there only while the lock is held: who finds it with the
	// lock has found what a killed process left.
	Pending *request `json:"pending,omitempty"`
	// Done is the last change, until whoever asked for it has been told.
	Done *request `json:"done,omitempty"`
}

// request is who asked for a change, and for which.
type request struct {
	By     procfs.Process `json:"by"`
	UID    int            `json:"uid"`
	Digest string         `json:"digest"`
}

// The elements of the map. Members are at their ids, which begin above these.
const (
	keyHeader  uint32 = 0
	keyCurrent uint32 = 1
	keyNext    uint32 = 2
	firstID    uint32 = 16
)

const (
	chainVersion = 1
	// chainValueSize bounds the JSON of an element, in bytes: an arrangement of
	// as many members as an engine has room for is well below.
	chainValueSize = 8192
)

// chainSpec is a hash for the reason that recordSpec is.
var chainSpec = ebpf.MapSpec{
	Name: "holdfast_chain", Type: ebpf.Hash, Flags: unix.BPF_F_NO_PREALLOC,
	KeySize: 4, ValueSize: chainValueSize, MaxEntries: 256,
}

// chainRecord is what is recorded of a hook with an owned chain, as it was read.
type chainRecord struct {
	path    string
	header  chainHeader
	current arrangement
	next    arrangement // if header.Pending
	// nextJSON is next as it is written down.
	nextJSON []byte
	lately   *lately
	// elements is the map while it is kept open.
	elements *ebpf.Map
}

// keepOpen keeps the map open for what comes. The caller calls what it returns
// afterwards.
func (r *chainRecord) keepOpen() (release func(), err error) {
	if r.elements, err = openChainMap(r.path); err != nil {
		return nil, err
	}
	return func() {
		r.elements.Close()
		r.elements = nil
	}, nil
}

// with calls f with the map.
func (r *chainRecord) with(f func(*ebpf.Map) error) error {
	if r.elements != nil {
		return f(r.elements)
	}
	m, err := openChainMap(r.path)
	if err != nil {
		return err
	}
	defer m.Close()
	return f(m)
}

// lately is the arrangement that an arbiter has read or written last, by its
// JSON. A change reads the chain twice, and who makes several finds what the last
// one wrote: reading the JSON would be most of what it takes, and the more so
// the more members there are.
type lately struct {
	mutex sync.Mutex
	json  []byte
	known arrangement
	// members are those that were read. Under its id, in the chain of a link, there
	// is never another one; only who has claimed it may be new, which claim keeps.
	members map[memberOf]memberRecord
}

// memberOf names a member for as long as the machine runs.
type memberOf struct{ link, id uint32 }

// mostMembers is how many are kept, until all are read anew.
const mostMembers = 10_000

func (l *lately) member(link, id uint32) (memberRecord, bool) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	found, ok := l.members[memberOf{link, id}]
	return found, ok
}

func (l *lately) keepMember(link, id uint32, m memberRecord) {
	if link == 0 {
		return // the chain has no link yet, which would name it
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.members == nil || len(l.members) >= mostMembers {
		l.members = map[memberOf]memberRecord{}
	}
	l.members[memberOf{link, id}] = m
}

func (l *lately) keep(json []byte, a arrangement) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	a.Members = slices.Clone(a.Members)
	l.json, l.known = json, a
}

// decode reads an arrangement, and keeps it.
func (l *lately) decode(json []byte) (arrangement, error) {
	l.mutex.Lock()
	same := bytes.Equal(json, l.json)
	a := l.known
	l.mutex.Unlock()
	if same {
		a.Members = slices.Clone(a.Members)
		return a, nil
	}
	a = arrangement{}
	if err := decodeElement(json, &a); err != nil {
		return a, err
	}
	l.keep(bytes.Clone(json), a)
	return a, nil
}

func (l *lately) forgetMember(link, id uint32) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	delete(l.members, memberOf{link, id})
}

// createChainRecord makes a record that says that there is nothing yet, and pins
// it.
func (a *Arbiter) createChainRecord(path, iface string) (*chainRecord, error) {
	m, err := ebpf.NewMap(&chainSpec)
	if err != nil {
		return nil, fmt.Errorf("make the chain's record: %w", err)
	}
	defer m.Close()
	r := &chainRecord{
		path: path, header: chainHeader{Version: chainVersion, Interface: iface},
		current: arrangement{NextID: firstID}, lately: a.lately,
	}
	if err := errors.Join(putElement(m, keyCurrent, r.current), putElement(m, keyHeader, r.header)); err != nil {
		return nil, err
	}
	if err := kernel.Pin(kernel.FD(m.FD()), path); err != nil {
		return nil, fmt.Errorf("pin the chain's record: %w", err)
	}
	return r, nil
}

func openChainMap(path string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open the chain's record: %w", err)
	}
	if m.Type() != chainSpec.Type || m.KeySize() != chainSpec.KeySize || m.ValueSize() != chainValueSize {
		m.Close()
		return nil, errors.New("what is pinned as the chain's record is another map")
	}
	return m, nil
}

// readChainRecord reads the record that is pinned there.
func (a *Arbiter) readChainRecord(path string) (*chainRecord, error) {
	m, err := openChainMap(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	r := &chainRecord{path: path, lately: a.lately}
	if err := getElement(m, keyHeader, &r.header); err != nil {
		return nil, err
	}
	if r.header.Version != chainVersion {
		return nil, fmt.Errorf("the chain's record is of version %d, and this Holdfast knows version %d", r.header.Version, chainVersion)
	}
	err = withElement(m, keyCurrent, func(json []byte) error {
		r.current, err = r.lately.decode(json)
		return err
	})
	if err != nil || r.header.Pending == nil {
		return r, err
	}
	return r, withElement(m, keyNext, func(json []byte) error {
		r.nextJSON = bytes.Clone(json)
		return decodeElement(json, &r.next)
	})
}

// member reads whose a member is.
func (r *chainRecord) member(id uint32) (memberRecord, error) {
	if found, ok := r.lately.member(r.header.LinkID, id); ok {
		return found, nil
	}
	var found memberRecord
	if err := r.with(func(m *ebpf.Map) error { return getElement(m, id, &found) }); err != nil {
		return found, err
	}
	r.lately.keepMember(r.header.LinkID, id, found)
	return found, nil
}

// element is one of the map as it is there, with zeros behind its JSON.
type element [chainValueSize]byte

// elements are for the next one that is read or written: they are large, and a
// change takes some ten.
var elements = sync.Pool{New: func() any { return new(element) }}

// withElement reads an element for as long as f runs.
func withElement(m *ebpf.Map, key uint32, f func(json []byte) error) error {
	e := elements.Get().(*element)
	defer elements.Put(e)
	if err := m.Lookup(key, e); err != nil {
		return fmt.Errorf("read the chain's record: %w", err)
	}
	json, _, _ := bytes.Cut(e[:], []byte{0})
	return f(json)
}

func getElement(m *ebpf.Map, key uint32, into any) error {
	return withElement(m, key, func(json []byte) error { return decodeElement(json, into) })
}

func decodeElement(b []byte, into any) error {
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("the chain's record can't be read: %w", err)
	}
	return nil
}

// putElement writes one element, for whoever reads it in one step.
func putElement(m *ebpf.Map, key uint32, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return putJSON(m, key, b)
}

func putJSON(m *ebpf.Map, key uint32, json []byte) error {
	if len(json) > chainValueSize {
		return fmt.Errorf("%w: names and paths together are too long: they take %d bytes, %d at most", xdp.ErrInvalid, len(json), chainValueSize)
	}
	e := elements.Get().(*element)
	defer elements.Put(e)
	clear(e[copy(e[:], json):])
	if err := m.Put(key, e); err != nil {
		return fmt.Errorf("write the chain's record: %w", err)
	}
	return nil
}

func (r *chainRecord) putHeader() error {
	return r.with(func(m *ebpf.Map) error { return putElement(m, keyHeader, r.header) })
}

// begin writes down what a change is about to do. From then on whoever reads the
// record can complete it or undo it.
func (r *chainRecord) begin(l locked, by request, next arrangement, fresh map[uint32]memberRecord) error {
	err := r.with(func(m *ebpf.Map) error {
		for id, member := range fresh {
			if err := putElement(m, id, member); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.amend(l, next); err != nil {
		return err
	}
	r.header.Pending = &by
	return r.putHeader()
}

// amend writes down more of what a change is about to do.
func (r *chainRecord) amend(_ locked, next arrangement) (err error) {
	r.next = next
	if r.nextJSON, err = json.Marshal(next); err != nil {
		return err
	}
	return r.with(func(m *ebpf.Map) error { return putJSON(m, keyNext, r.nextJSON) })
}

// decide says that what the change was about to do is what runs.
//
// Killed afterwards, whoever finds the change pending decides once more, and
// comes to the same.
func (r *chainRecord) decide(_ locked) error {
	r.current = r.next
	if err := r.with(func(m *ebpf.Map) error { return putJSON(m, keyCurrent, r.nextJSON) }); err != nil {
		return err
	}
	r.lately.keep(r.nextJSON, r.next)
	return nil
}

// end closes a change that was decided, and forgets the members that are not in
// the chain: those of the arrangements that are given.
func (r *chainRecord) end(_ locked, had ...arrangement) error {
	err := r.with(func(m *ebpf.Map) error {
		for _, a := range had {
			for _, p := range a.Members {
				if r.current.find(p.ID) != nil {
					continue
				}
				r.lately.forgetMember(r.header.LinkID, p.ID)
				if err := m.Delete(p.ID); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					return fmt.Errorf("write the chain's record: %w", err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.header.Pending = nil
	return r.putHeader()
}

// summary is the record of the chain as a whole, but for its owner.
func (r *chainRecord) summary() Record {
	var names []string
	for _, p := range r.current.Members {
		names = append(names, p.Name)
	}
	return Record{
		Name: strings.Join(names, ", "), Interface: r.header.Interface, Held: xdp.HeldByLink,
		ProgramID: r.current.ProgramID, PersistAs: r.header.PersistAs,
	}
}

// whole is the summary with the owner of the member that came first, as far as
// that can be read.
func (r *chainRecord) whole() Record {
	s := r.summary()
	if l := r.header.Locker; l != nil {
		s.Owner, s.Since = l.Owner, l.Since
	}
	for _, p := range r.current.Members {
		m, err := r.member(p.ID)
		if err != nil {
			continue
		}
		if s.Since.IsZero() || m.Since.Before(s.Since) {
			s.Owner, s.Since = m.Owner, m.Since
		}
		if len(r.current.Members) == 1 {
			s.Digest = m.Digest
		}
	}
	return s
}

// dead tells why nothing is attached any more, of a chain whose link has ended.
func (r *chainRecord) dead() string {
	switch {
	case r.detachedBy() != nil, r.current.ProgramID == 0 && r.header.Done != nil:
		return "it was detached"
	case r.current.ProgramID == 0:
		return "it was never attached"
	case r.current.pinned():
		return "its link is no longer pinned"
	}
	return "the processes that held it have ended"
}

// detachedBy is who asked for all to be taken off the hook, and was killed before
// it could say so; nil where nobody did.
func (r *chainRecord) detachedBy() *request {
	by := r.header.Done
	switch {
	case r.header.Pending != nil && r.next.ProgramID == 0:
		// Whoever made the change was killed. Who asked for it may be another, and
		// alive.
		return r.header.Pending
	case r.current.ProgramID != 0:
		return nil
	}
	if by == nil || by.By.Alive() {
		return nil
	}
	return by
}

// model is the arrangement as the rules of owned chains know it, without some
// members.
func (a *arrangement) model(without map[uint32]bool) owned.Chain {
	c := owned.Chain{Generation: a.Generation, NextID: a.NextID, Exclusive: a.Exclusive, Locked: a.Locked}
	for _, p := range a.Members {
		if without[p.ID] {
			continue
		}
		c.Members = append(c.Members, owned.Member{
			Name: p.Name, Priority: p.Priority, ProceedOn: chain.Actions(p.ProceedOn), Lifetime: p.Lifetime,
			Generation: p.Generation, ID: p.ID,
		})
	}
	c.Stats = a.Stats != 0 && len(c.Members) > 0
	return c
}

// arrange is the other way round: the chain as it is to run, with nothing of the
// kernel in it yet.
func arrange(c owned.Chain, sources []*source) arrangement {
	a := arrangement{Generation: c.Generation, NextID: c.NextID, Exclusive: c.Exclusive, Locked: c.Locked}
	for i, m := range c.Members {
		a.Members = append(a.Members, placed{
			ID: m.ID, Name: m.Name, Lifetime: m.Lifetime, Priority: m.Priority, ProceedOn: actions(m.ProceedOn),
			Generation: m.Generation, Frags: sources[i].frags, Ifindex: sources[i].options.Ifindex,
			Token: sources[i].token,
		})
	}
	return a
}

// permanent tells whether the arrangement outlives the processes that hold its
// members.
func (a *arrangement) permanent() bool {
	return a.Locked || slices.ContainsFunc(a.Members, func(m placed) bool { return m.Lifetime == owned.Permanent })
}

// pinned tells whether the hook's link has to be: held by leases alone, nobody but
// the pin has it.
func (a *arrangement) pinned() bool {
	return a.permanent() || slices.ContainsFunc(a.Members, func(m placed) bool { return m.Token != 0 })
}

// find returns the member of that id, nil where there is none.
func (a *arrangement) find(id uint32) *placed {
	for i := range a.Members {
		if a.Members[i].ID == id {
			return &a.Members[i]
		}
	}
	return nil
}
