package arbiter

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// entry is one directory of the state, as it was read.
type entry struct {
	key string
	// err is why the entry can't be understood. Such an entry is another
	// Holdfast's, or somebody else's: it is left alone.
	err    error
	record Record
	// recordErr is errNoRecord where there is none.
	recordErr error
	// link is what is pinned as the link, nil where there is none.
	link *xdp.LinkInfo
	// arrays are the names of pinned program arrays.
	arrays []string
	// chain is what is recorded of an owned hook, nil for a shared one. The
	// record is then made up of it, for messages.
	chain *chainRecord
}

const (
	linkPin     = "link"
	recordPin   = "record"
	arrayPrefix = "array_"
	// movedPrefix starts the key of an attachment whose interface went to
	// another namespace while one with its index came to the old.
	movedPrefix = "moved-"
	// offloadSuffix ends the key of a program on the card, which can be there
	// beside a native or generic one.
	offloadSuffix = "-offload"
)

// isKey tells whether the name is one that key or moveAside makes.
func isKey(name string) bool {
	if link, ok := strings.CutPrefix(name, movedPrefix); ok {
		return isNumber(link)
	}
	if name == "" || name[0] != 'c' && name[0] != 'i' {
		return false
	}
	namespace, index, ok := strings.Cut(strings.TrimSuffix(name[1:], offloadSuffix), "-")
	return ok && isNumber(namespace) && isNumber(index)
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// hookKey names a hook's directory.
func hookKey(h *xdp.Hook) string { return key(h.Namespace().ID(), h.Index(), h.Mode()) }

func key(namespaceID string, index int, mode xdp.Mode) string {
	key := fmt.Sprintf("%s-%d", namespaceID, index)
	if mode == xdp.Offload {
		key += offloadSuffix
	}
	return key
}

// hookOfKey is the other way round, of a hook in the namespace of that id.
func hookOfKey(key, namespaceID string) (index int, mode xdp.Mode, ok bool) {
	rest, ok := strings.CutPrefix(key, namespaceID+"-")
	if !ok {
		return 0, 0, false
	}
	if number, offload := strings.CutSuffix(rest, offloadSuffix); offload {
		rest, mode = number, xdp.Offload
	}
	index, err := strconv.Atoi(rest)
	return index, mode, err == nil
}

// whole is what is known of the entry, for people.
func (e *entry) whole() Record {
	if e.chain != nil {
		return e.chain.whole()
	}
	return e.record
}

// in tells whether the entry was made in the namespace of that id.
func (e *entry) in(namespaceID string) bool { return strings.HasPrefix(e.key, namespaceID+"-") }

// read reads all entries.
func (a *Arbiter) read() ([]*entry, error) {
	if a.root == nil {
		return nil, nil
	}
	dirs, err := os.ReadDir(a.root.Path())
	if err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	var entries []*entry
	for _, d := range dirs {
		if !d.IsDir() || !isKey(d.Name()) {
			continue // iproute2 makes directories in whichever bpffs it finds
		}
		e, err := a.readIfThere(d.Name())
		if err != nil {
			return nil, err
		}
		if e != nil { // else removed meanwhile
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// readAbout reads the entries that what is attached at the hook of that key can
// be of, and the one of the key itself: no more than that one if nothing is
// attached, or if it is of that. Attachments are many, and few have moved.
func (a *Arbiter) readAbout(key string, at *xdp.Attachment) ([]*entry, error) {
	if a.root == nil {
		return nil, nil
	}
	own, err := a.readIfThere(key)
	switch {
	case err != nil:
		return nil, err
	case own != nil && (at == nil || own.fits(at)):
		return []*entry{own}, nil
	case at == nil:
		return nil, nil
	}
	return a.read()
}

// readIfThere reads an entry, nil where there is none.
func (a *Arbiter) readIfThere(key string) (*entry, error) {
	e, err := a.readEntry(key)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, errNotOurs) {
		a.log("left alone what this Holdfast did not make", "entry", key, "error", err)
		return &entry{key: key, err: err}, nil
	}
	return e, err
}

func (a *Arbiter) readEntry(key string) (*entry, error) {
	e, err := a.readChainEntry(key)
	if e != nil || err != nil {
		return e, err
	}
	names, err := os.ReadDir(a.root.Path(key))
	if err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	e = &entry{key: key, recordErr: errNoRecord}
	for _, n := range names {
		switch name := n.Name(); {
		case name == recordPin:
			e.record, e.recordErr = readRecord(a.root.Path(key, recordPin))
			if errors.Is(e.recordErr, os.ErrNotExist) {
				e.recordErr = errNoRecord
			} else if e.recordErr != nil {
				return nil, a.notOurs(key, e.recordErr)
			}
		case name == linkPin:
			if e.link, err = a.readLink(key); err != nil {
				return nil, err
			}
		case strings.HasPrefix(name, arrayPrefix):
			e.arrays = append(e.arrays, name)
		}
	}
	return e, nil
}

// readChainEntry reads the entry of an owned chain, nil where it is none. Names
// are not listed for that: there are as many as members.
func (a *Arbiter) readChainEntry(key string) (*entry, error) {
	chain, err := a.readChainRecord(a.root.Path(key, chainPin))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, a.notOurs(key, err)
	}
	e := &entry{key: key, chain: chain, record: chain.summary()}
	if e.link, err = a.readLink(key); err != nil || e.link != nil || chain.header.LinkID == 0 {
		return e, err
	}
	// Nobody pinned it: the holders of its members alone keep it.
	l, err := xdp.OpenID(chain.header.LinkID)
	if errors.Is(err, xdp.ErrNotFound) {
		return e, nil
	}
	if err != nil {
		return nil, err
	}
	e.link, err = infoOf(l)
	return e, err
}

// readLink reads the pinned link, nil where there is none.
func (a *Arbiter) readLink(key string) (*xdp.LinkInfo, error) {
	l, err := xdp.OpenPinned(a.root.Path(key, linkPin))
	switch {
	case errors.Is(err, xdp.ErrNotFound):
		return nil, nil
	case errors.Is(err, xdp.ErrInvalid):
		return nil, a.notOurs(key, errors.New("what is pinned as the link is no XDP link"))
	case err != nil:
		return nil, err
	}
	return infoOf(l)
}

// infoOf reads a link and closes it.
func infoOf(l *xdp.Link) (*xdp.LinkInfo, error) {
	info, err := l.Info()
	l.Close()
	if err != nil {
		return nil, err
	}
	return &info, nil
}

// errNotOurs says that an entry has what this Holdfast does not put there.
var errNotOurs = errors.New("not made by this version of Holdfast, and left alone")

func (a *Arbiter) notOurs(key string, why error) error {
	return fmt.Errorf("state in %s: %w: %w; use the Holdfast that made it, or remove it by hand",
		filepath.Join(a.root.Name, key), errNotOurs, why)
}

// place is a hook, as far as it takes to find its entry.
type place struct {
	key       string
	namespace string // its id
	name      string // the interface's
}

func placeOf(ns *xdp.Namespace, name string, index int, mode xdp.Mode) place {
	return place{key(ns.ID(), index, mode), ns.ID(), name}
}

// find returns the entry of what is attached at the place, or nil if Holdfast
// did not attach it, or nothing is.
func find(entries []*entry, p place, at *xdp.Attachment) (*entry, error) {
	e, moved := match(entries, p, at)
	if !moved {
		return e, nil
	}
	attached, err := everywhere([]*entry{e})
	if at, found := attached[e.key]; err != nil || !found || e.fits(at) {
		return nil, err
	}
	return e, nil
}

// match finds the entry by what the state alone tells. A link is found by its
// id, wherever its interface went. Where a link's id can't be told, only the
// hook's own directory says that it is Holdfast's. A program that netlink
// attached may have moved here with its interface, from another namespace and
// under the same name: it has if the hook where it was attached can be found,
// and has it no more.
func match(entries []*entry, p place, at *xdp.Attachment) (e *entry, moved bool) {
	if at == nil {
		return nil, false
	}
	var movers []*entry
	for _, e := range entries {
		switch {
		case !e.fits(at):
		case e.key == p.key, at.LinkID != 0:
			return e, false
		case at.Held == xdp.HeldByNetlink && !e.in(p.namespace) && e.record.Interface == p.name:
			movers = append(movers, e)
		}
	}
	if len(movers) == 1 {
		return movers[0], true
	}
	return nil, false
}

// fits tells whether the entry can be the one of the attachment.
func (e *entry) fits(at *xdp.Attachment) bool {
	switch {
	case at == nil, e.err != nil:
		return false
	case at.Held == xdp.HeldByNetlink:
		return e.link == nil && e.recordErr == nil && e.record.Held == xdp.HeldByNetlink &&
			(e.record.ProgramID == at.Program.ID || e.record.Pending != nil && e.record.Pending.ProgramID == at.Program.ID)
	case at.Held != xdp.HeldByLink, e.link == nil:
		return false
	case at.LinkID != 0:
		return e.link.ID == at.LinkID
	default:
		return e.link.ProgramID == at.Program.ID
	}
}

// dead tells why nothing is attached by the entry any more, or "". at is what
// is attached at the entry's own hook, nil where that is nothing or unknown.
func (e *entry) dead(at *xdp.Attachment) string {
	switch {
	case e.err != nil:
		return ""
	case e.link != nil && e.link.Defunct():
		return "its interface is gone, or somebody detached the link by force"
	case e.link != nil:
		return ""
	case e.recordErr != nil:
		return "it was never attached"
	case e.chain != nil:
		return e.chain.dead()
	case e.record.Held == xdp.HeldByLink:
		return "its link is no longer pinned"
	case at != nil && at.Held == xdp.HeldUnknown:
		return "" // who may not ask how it is held can't tell
	case at == nil:
		return "the program is no longer attached"
	case !e.fits(at):
		return "another program is attached now"
	}
	return ""
}

// removeEntry takes a directory away. What its link attaches is detached.
func (a *Arbiter) removeEntry(l locked, e *entry) error {
	if e.link != nil {
		if err := a.detachLink(l, e); err != nil {
			return err
		}
	}
	return a.removeRest(e)
}

// detachLink detaches the entry's link and removes its pins.
func (a *Arbiter) detachLink(_ locked, e *entry) error {
	if err := a.removePersistAs(e); err != nil {
		return err
	}
	pin := a.root.Path(e.key, linkPin)
	l, err := xdp.OpenID(e.link.ID)
	if errors.Is(err, xdp.ErrNotFound) {
		return nil // its last holder has ended
	}
	if err != nil {
		return err
	}
	defer l.Close()
	// The pin goes first: killed before the detach, the process drops the
	// link's last descriptor.
	if err := remove(pin); err != nil {
		return err
	}
	if err := l.Detach(); !errors.Is(err, xdp.ErrGone) {
		return err
	}
	return nil
}

// removeRest removes what says nothing any more without link.
func (a *Arbiter) removeRest(e *entry) error {
	if err := a.removeMembers(e.key); err != nil {
		return err
	}
	for _, name := range append(e.arrays, recordPin, chainPin) {
		if err := remove(a.root.Path(e.key, name)); err != nil {
			return err
		}
	}
	return remove(a.root.Path(e.key))
}

// removePersistAs removes the second pin.
func (a *Arbiter) removePersistAs(e *entry) error {
	if e.chain == nil || e.link == nil {
		return nil
	}
	return e.chain.removePersistAs()
}

// removePersistAs removes the second pin of the hook's link.
func (r *chainRecord) removePersistAs() error {
	if !r.secondPin() {
		return nil
	}
	return remove(r.header.PersistAs)
}

// secondPin tells whether the second pin is there, as this link's: it may have
// been removed, replaced by something else, or not be visible from here.
func (r *chainRecord) secondPin() bool {
	if r.header.PersistAs == "" {
		return false
	}
	l, err := xdp.OpenPinned(r.header.PersistAs)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	return err == nil && info.ID == r.header.LinkID
}

// settle completes or removes what a killed process left of the entry, after
// reading what its hook has now. It returns nil where the entry is gone.
func (a *Arbiter) settle(l locked, e *entry, at *xdp.Attachment) (*entry, error) {
	if why := e.dead(at); why != "" {
		a.log("removed a stale entry", "entry", e.key, "name", e.record.Name, "why", why)
		return nil, a.removeEntry(l, e)
	}
	if e.chain != nil {
		settled, err := a.settleChain(l, e.key, e.chain)
		if err != nil || !settled {
			return e, err
		}
		e, err = a.readEntry(e.key)
		if err == nil && e.dead(at) != "" {
			return nil, a.removeEntry(l, e) // the change took everything off
		}
		return e, err
	}
	if p := e.record.Pending; p.abandoned() && e.programID(at) == p.ProgramID {
		// The program is in place, so the change was made.
		e.record.ProgramID, e.record.Digest = p.ProgramID, p.Digest
	}
	if err := a.removeArrays(l, e, e.programID(at)); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *entry) programID(at *xdp.Attachment) uint32 {
	switch {
	case e.link != nil:
		return e.link.ProgramID
	case at != nil:
		return at.Program.ID
	}
	return 0
}

// pinArrays keeps the program arrays of a program alive. They are pinned already
// where the program is replaced by itself.
func (a *Arbiter) pinArrays(_ locked, key string, p *object.Loaded, id uint32) error {
	for i, name := range p.ProgramArrays() {
		path := a.root.Path(key, fmt.Sprintf("%s%d_%d", arrayPrefix, id, i))
		err := kernel.Pin(kernel.FD(p.Maps[name].FD()), path)
		if errors.Is(err, os.ErrExist) && isPinnedAt(p.Maps[name], path) {
			continue
		}
		if err != nil {
			return fmt.Errorf("pin program array %s: %w", name, err)
		}
	}
	return nil
}

// isPinnedAt tells whether the pin at the path is of that very map.
func isPinnedAt(m *ebpf.Map, path string) bool {
	pinned, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return false
	}
	defer pinned.Close()
	there, err1 := pinned.Info()
	own, err2 := m.Info()
	if err1 != nil || err2 != nil {
		return false
	}
	thereID, ok1 := there.ID()
	ownID, ok2 := own.ID()
	return ok1 && ok2 && thereID == ownID
}

// removeArrays unpins the program arrays of all programs but one.
func (a *Arbiter) removeArrays(_ locked, e *entry, keep uint32) error {
	prefix := arrayPrefix + strconv.FormatUint(uint64(keep), 10) + "_"
	var kept []string
	for _, name := range e.arrays {
		if strings.HasPrefix(name, prefix) {
			kept = append(kept, name)
			continue
		}
		if err := remove(a.root.Path(e.key, name)); err != nil {
			return err
		}
	}
	e.arrays = kept
	return nil
}

func (a *Arbiter) writeRecord(_ locked, e *entry) error {
	return updateRecord(a.root.Path(e.key, recordPin), e.record)
}

// hookState is what a change finds at its hook.
type hookState struct {
	// key is that of the entry, or the one that the hook would get.
	key string
	// at is what is attached, nil where that is nothing.
	at *xdp.Attachment
	// entry is Holdfast's entry of it, nil where Holdfast did not attach it.
	entry *entry
	// detached tells that a detach was begun here, by a process that was
	// killed before it could say so, and has been completed.
	detached bool
	// detachedBy is who asked for that, of an owned hook.
	detachedBy *request
	// lost is what Holdfast attached here and is attached no more, although
	// nobody asked Holdfast; nil where there is no such thing.
	lost *entry
}

// here reads what is attached at the hook, and completes or removes what a
// killed process left there.
func (a *Arbiter) here(l locked, h *xdp.Hook) (hookState, error) {
	if s, err := a.ownedHere(l, h); s != nil || err != nil {
		return *cmp.Or(s, &hookState{}), err
	}
	state, err := h.Query()
	if err != nil {
		return hookState{}, err
	}
	s := hookState{at: state.At(h.Mode())}
	if s.at == nil && h.Mode() != xdp.Offload {
		s.at = state.At(xdp.Auto) // in the other mode, it is in the way just the same
	}
	key := hookKey(h)
	s.key = key
	if s.at != nil && s.at.Held == xdp.HeldUnknown {
		return s, &xdp.Error{
			Op: "look at", Hook: h.String(), Err: xdp.ErrPermission,
			Detail: "it can't be told how the program there is held", Hint: "changes need CAP_NET_ADMIN",
		}
	}
	entries, err := a.readAbout(key, s.at)
	if err != nil {
		return s, err
	}
	if s.entry, err = find(entries, placeOf(h.Namespace(), state.Interface.Name, h.Index(), h.Mode()), s.at); err != nil {
		return s, err
	}
	for _, e := range entries {
		if e.key != key || e == s.entry {
			continue
		}
		if e.err != nil {
			return s, e.err
		}
		// The directory is of something that is not at this hook any more.
		if e.dead(s.at) == "" {
			if err := a.moveAside(l, e); err != nil {
				return s, err
			}
			continue
		}
		if e.chain != nil {
			s.detachedBy = e.chain.detachedBy()
			s.detached = s.detachedBy != nil
			if !s.detached && e.chain.current.ProgramID != 0 && e.chain.current.permanent() {
				s.lost = e
			}
			if _, err := a.settle(l, e, s.at); err != nil {
				return s, err
			}
			continue
		}
		s.detached = e.record.Pending.abandoned() && e.record.Pending.Op == opDetach
		// What has a pin, or no change under way, had been attached.
		if !s.detached && e.recordErr == nil && (e.link != nil || e.record.Pending == nil) {
			s.lost = e
		}
		if _, err := a.settle(l, e, s.at); err != nil {
			return s, err
		}
	}
	if s.entry != nil {
		if s.entry, err = a.settle(l, s.entry, s.at); s.entry != nil {
			s.key = s.entry.key
		}
	}
	if s.entry == nil && s.at != nil && s.at.Held == xdp.HeldByLink && s.at.LinkID == 0 && len(entries) > 0 {
		a.log("can't tell which link holds the hook: links of several namespaces look alike", "hook", h)
	}
	return s, err
}

// ownedHere is here where the hook's own entry says what is attached, and nil
// where it does not. That is nearly always so, and takes far fewer calls: going
// through the links of all chains for the one that holds the hook would take the
// longer the more members there are.
func (a *Arbiter) ownedHere(l locked, h *xdp.Hook) (*hookState, error) {
	e, err := a.readIfThere(hookKey(h))
	if err != nil || e == nil || e.chain == nil || e.link == nil {
		return nil, err
	}
	at, err := h.AttachedBy(*e.link)
	if err != nil || at == nil {
		return nil, err
	}
	s := &hookState{key: e.key, at: at}
	s.entry, err = a.settle(l, e, at)
	if s.entry != nil && s.entry.link.ProgramID != at.Program.ID || s.entry == nil {
		return nil, err // it was settled, and is looked at anew
	}
	return s, err
}

// moveAside frees a key whose attachment lives on elsewhere.
func (a *Arbiter) moveAside(_ locked, e *entry) error {
	a.log("an attachment moved with its interface", "entry", e.key, "name", e.record.Name)
	return os.Rename(a.root.Path(e.key), a.root.Path(movedPrefix+strconv.FormatUint(uint64(e.link.ID), 10)))
}
