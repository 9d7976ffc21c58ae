package arbiter

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// sources are where the members' programs come from that a transaction loads. A
// program is loaded at most once for each way that it can run, however often the
// transaction has to be planned anew.
type sources struct {
	owner Owner
	// again tells that the process that asks may have asked before, because it is
	// another that was killed.
	again bool
	// digest names what is asked for, and is empty where it can't be asked for
	// again.
	digest    string
	persistAs string
	// changes are the sources of the transaction's adds and replaces, in the
	// order of its changes; nil for others.
	changes []*source
	// running are those of members that are in the chain already.
	running map[uint32]*source
	// refused are slots that the kernel did not give, because somebody has the
	// link of whoever was there still.
	refused live.Slots
}

// source is where one version of a member comes from.
type source struct {
	name   string
	record memberRecord
	frags  bool
	hook   *xdp.Hook
	// held tells that a process holds the member, and token by which lease.
	held  bool
	token uint32
	// object and options say what is loaded. Of a member that is in the chain
	// they are read from dir, with the maps that are pinned there.
	object  *object.Object
	options object.LoadOptions
	found   *chainRecord
	id      uint32
	dir     string
	pinned  map[string]*ebpf.Map

	prepared *object.Prepared
	extend   *object.Extension // as which it was prepared, nil for none
	// program and extension are what was loaded, as one or the other.
	program, extension *ebpf.Program
}

// newSources reads what the changes want to be loaded. It loads nothing yet. behalf
// tells that another process asks.
func newSources(t *Transaction, owner Owner, behalf bool) (_ *sources, err error) {
	s := &sources{owner: owner, again: behalf, running: map[uint32]*source{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	t.Changes = slices.Clone(t.Changes) // they are completed, and the caller's are not
	type asked struct {
		owned.Change
		Digest string
	}
	request := struct {
		Edit    string
		Changes []asked
		Stats   *bool `json:",omitempty"`
	}{Edit: t.editName, Stats: t.Stats}
	var held bool
	for i := range t.Changes {
		c := &t.Changes[i]
		var src *source
		switch {
		case (c.Op == owned.Add || c.Op == owned.Replace) && c.Extension != nil:
			if t.Engine != "" && t.Engine != Live {
				return nil, &owned.Error{Op: c.Op, Member: c.Name, Err: owned.ErrInvalid, Detail: "a program that was loaded as an extension runs live only", Hint: "leave the engine out"}
			}
			t.Engine = Live
			if c.Op == owned.Add && c.Priority == nil && c.Before == "" && c.After == "" {
				c.Priority = new(chain.DefaultPriority) // it has no object that says one, and a policy is to see it
			}
			src = &source{name: c.Name, hook: t.Hook, record: memberRecord{Owner: owner, Since: time.Now().Round(time.Second), Object: "its holder's own"}}
			s.changes = append(s.changes, src)
			if err := c.ownLoaded(src); err != nil {
				return nil, err
			}
			request.Changes = append(request.Changes, asked{c.Change, src.record.Digest})
			held = true
			continue
		case c.Op == owned.Add || c.Op == owned.Replace:
			complete, loads, err := c.Complete(t.Hook.String())
			if err != nil {
				return nil, err
			}
			*c = complete
			cost, err := costOf(c.Object, loads.Program.Name)
			if err != nil {
				return nil, err
			}
			src = &source{name: c.Name, object: c.Object, options: c.Load, frags: loads.Program.Frags, hook: t.Hook, record: memberRecord{
				Owner: owner, Since: time.Now().Round(time.Second),
				Object: c.Object.Path(), Program: loads.Program.Name, Digest: loads.Digest, Variables: c.Object.Assignments(), Cost: cost,
			}}
			if behalf {
				src.record.Object = c.Object.Name() // it shall not learn which files there are
			}
			if c.PersistAs != "" {
				path, err := filepath.Abs(c.PersistAs) // it is removed from elsewhere
				if err != nil {
					return nil, err
				}
				s.persistAs = path
			}
			request.Changes = append(request.Changes, asked{c.Change, loads.Digest})
			held = held || c.Lifetime == owned.Held
		default:
			request.Changes = append(request.Changes, asked{Change: c.Change})
		}
		s.changes = append(s.changes, src)
	}
	if held || request.Edit == "" && len(request.Changes) == 0 && t.Stats == nil {
		return s, nil // what it made has ended with it, or is nobody's wish
	}
	b, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	s.digest = hex.EncodeToString(sum[:])
	return s, nil
}

// Loads is what an add or a replace loads.
type Loads struct {
	Program object.ProgramInfo
	// Digest is as in [object.Loaded].
	Digest string
}

// Complete returns an add or a replace of a member at the hook with what it
// leaves to its object: the name, and of an add the priority and the actions. It
// loads nothing. Errors: xdp.ErrInvalid where there is no object, and those of
// [object.Object.Program] and [object.Object.RunConfig].
func (c Change) Complete(hook string) (Change, Loads, error) {
	if c.Object == nil {
		return c, Loads{}, &xdp.Error{
			Op: opApply, Hook: hook, Err: xdp.ErrInvalid,
			Detail: fmt.Sprintf("there is no object to %s %q with", c.Op, c.Name), Hint: "give one",
		}
	}
	info, err := c.Object.Program(c.Load.Program)
	if err != nil {
		return c, Loads{}, err
	}
	digest, err := c.Object.Digest(c.Load)
	if err != nil {
		return c, Loads{}, err
	}
	if c.Name == "" {
		c.Name = info.Name
	}
	if c.Op == owned.Add {
		rc, err := c.Object.RunConfig(info.Name)
		if err != nil {
			return c, Loads{}, err
		}
		if c.Priority == nil && c.Before == "" && c.After == "" {
			c.Priority = &rc.Priority
		}
		if c.ProceedOn == nil {
			c.ProceedOn = &rc.ProceedOn
		}
	}
	return c, Loads{info, digest}, nil
}

func (s *sources) close() {
	all := slices.Concat(s.changes, slices.Collect(maps.Values(s.running)))
	for _, src := range all {
		if src != nil {
			src.close()
		}
	}
}

func (s *sources) request() request {
	return request{By: s.owner.Process, UID: s.owner.UID, Digest: s.digest}
}

// repeats tells whether the transaction is what a killed process did, under the
// same user, and was not acknowledged.
func (s *sources) repeats(r *request) bool {
	return r != nil && s.digest != "" && (!r.By.Alive() || s.again && r.By == s.owner.Process) && r.UID == s.owner.UID && r.Digest == s.digest
}

// madeAt tells the same of the last change of the chain at a hook.
func (s *sources) madeAt(now hookState) bool {
	return now.entry != nil && now.entry.chain != nil && s.repeats(now.entry.chain.header.Done)
}

// fresh are the sources of the member versions that the plan brings in, by id.
func (s *sources) fresh(p *plan) map[uint32]*source {
	fresh := map[uint32]*source{}
	for i, src := range s.changes {
		if src != nil && slices.ContainsFunc(p.after.Members, func(m owned.Member) bool { return m.ID == p.ids[i] }) {
			fresh[p.ids[i]] = src
		}
	}
	return fresh
}

// membersOf are the sources of the members that the plan comes to, in their
// order.
func (a *Arbiter) membersOf(h *xdp.Hook, p *plan, s *sources) ([]*source, error) {
	fresh := s.fresh(p)
	var all []*source
	for _, m := range p.after.Members {
		src := fresh[m.ID]
		if src == nil {
			if src = s.running[m.ID]; src == nil {
				src = a.runningSource(h, p, m.ID)
				s.running[m.ID] = src
			}
		}
		src.held = m.Lifetime == owned.Held
		all = append(all, src)
	}
	return all, nil
}

// runningSource is the source of a member in the chain.
func (a *Arbiter) runningSource(h *xdp.Hook, p *plan, id uint32) *source {
	m := p.found.current.find(id)
	return &source{
		name: m.Name, frags: m.Frags, options: object.LoadOptions{Ifindex: m.Ifindex}, hook: h,
		token: m.Token, found: p.found, id: id, dir: a.root.Path(p.key, memberDir(id)),
	}
}

// asItself loads the member as a program that a hook can run.
func (s *source) asItself() (*ebpf.Program, error) {
	p, err := s.prepare(nil)
	if err != nil || s.program != nil {
		return s.program, err
	}
	s.program, err = p.Load()
	if err != nil {
		return nil, err
	}
	return s.program, p.Pin()
}

// asExtension loads the member as an extension of a dispatcher's slot. running is
// the extension that runs already, 0 for none.
func (s *source) asExtension(d *live.Dispatcher, slot live.Slot, running uint32) (*ebpf.Program, error) {
	if s.extension != nil {
		return s.extension, nil // it fits every slot of every dispatcher
	}
	if running != 0 {
		p, err := ebpf.NewProgramFromID(ebpf.ProgramID(running))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: member %q has ended", errRaced, s.name)
		}
		if err != nil {
			return nil, fmt.Errorf("open the program of member %q: %w", s.name, err)
		}
		s.extension = p
		return p, nil
	}
	extend := d.Extension(slot)
	p, err := s.prepare(&extend)
	if err != nil {
		return nil, err
	}
	if s.extension, err = p.Load(); err != nil {
		return nil, err
	}
	return s.extension, p.Pin()
}

// asPart makes the member's maps, for a program that it will be a part of.
func (s *source) asPart(m placed) (fused.Member, error) {
	p, err := s.prepare(nil)
	return fused.Member{Name: s.name, Priority: m.Priority, ProceedOn: chain.Actions(m.ProceedOn), Program: p, Place: m.Counter}, err
}

// prepare makes the member's maps, or opens those that it has.
func (s *source) prepare(extend *object.Extension) (*object.Prepared, error) {
	if s.object == nil && s.found == nil {
		return nil, &owned.Error{Op: owned.Add, Member: s.name, Err: owned.ErrInvalid, Detail: "its holder loaded it, and it runs live only"}
	}
	if s.prepared != nil && (s.extend == nil) == (extend == nil) {
		return s.prepared, nil
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	options := s.options
	options.Extend = extend
	var p *object.Prepared
	prepare := func() (err error) {
		if s.dir == "" {
			p, err = s.object.Prepare(options)
		} else {
			p, err = s.object.Resume(options, s.pinned)
		}
		return err
	}
	var err error
	if options.Ifindex == 0 {
		err = prepare()
	} else {
		err = s.hook.Namespace().Do(prepare) // an index means nothing elsewhere
	}
	if err != nil {
		return nil, err
	}
	if s.prepared != nil {
		s.prepared.Close()
	}
	s.prepared, s.extend = p, extend
	return p, nil
}

func (s *source) close() {
	for _, p := range []*ebpf.Program{s.program, s.extension} {
		if p != nil {
			p.Close()
		}
	}
	if s.prepared != nil {
		s.prepared.Close()
	}
	for _, m := range s.pinned {
		m.Close()
	}
}

// The pins by which a member can be loaded again, with the maps that it has.
const (
	objectPin = "object"
	mapPrefix = "map-"
)

// mapPin names the pin of a map. A bpffs takes no dots, and no map's name has a
// hyphen.
func mapPin(name string) string { return mapPrefix + strings.ReplaceAll(name, ".", "-") }

func mapOfPin(pin string) (string, bool) {
	name, ok := strings.CutPrefix(pin, mapPrefix)
	return strings.ReplaceAll(name, "-", "."), ok
}

// open reads back what pin has pinned, of a member that is in the chain.
func (s *source) open() error {
	if s.object != nil {
		return nil
	}
	var err error
	if s.record, err = s.found.member(s.id); err != nil {
		return err
	}
	b, err := readBlob(filepath.Join(s.dir, objectPin))
	if err != nil {
		return fmt.Errorf("read the object of member %q, which the chain has kept: %w", s.name, err)
	}
	o, err := object.Read(s.record.Object, bytes.NewReader(b))
	if err != nil {
		return err
	}
	s.options.Program = object.Choice{Name: s.record.Program}
	s.pinned = map[string]*ebpf.Map{}
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		name, ok := mapOfPin(n.Name())
		if !ok {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(s.dir, n.Name()), nil)
		if err != nil {
			return fmt.Errorf("open map %s of member %q: %w", name, s.name, err)
		}
		s.pinned[name] = m
	}
	s.object = o
	return nil
}

// pin pins what it takes to load the member again, into its directory. What runs
// live is never loaded again, so of that only the maps are pinned: the kernel
// empties a program array that nobody has a descriptor or a pin of.
func (s *source) pin(dir string, engine Engine) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if engine == Live && s.held {
		return nil // the holder has them
	}
	for _, name := range slices.Sorted(maps.Keys(s.prepared.Maps)) {
		if err := kernel.Pin(kernel.FD(s.prepared.Maps[name].FD()), filepath.Join(dir, mapPin(name))); err != nil {
			return fmt.Errorf("pin map %s of member %q: %w", name, s.name, err)
		}
	}
	if engine == Live {
		return nil
	}
	return pinBlob(filepath.Join(dir, objectPin), s.object.ELF())
}

// pinBlob keeps bytes in the kernel, in a map that nobody can write any more.
func pinBlob(path string, b []byte) error {
	size := (len(b) + 8 + 7) / 8 * 8
	value := make([]byte, size)
	binary.NativeEndian.PutUint64(value, uint64(len(b)))
	copy(value[8:], b)
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "holdfast_object", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(size), MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: value}},
	})
	if err != nil {
		return fmt.Errorf("keep a copy of the object: %w", err)
	}
	defer m.Close()
	if err := m.Freeze(); err != nil {
		return fmt.Errorf("keep a copy of the object: %w", err)
	}
	return kernel.Pin(kernel.FD(m.FD()), path)
}

func readBlob(path string) ([]byte, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var value []byte
	if err := m.Lookup(uint32(0), &value); err != nil {
		return nil, err
	}
	if len(value) < 8 {
		return nil, errNoObject
	}
	size := binary.NativeEndian.Uint64(value)
	if size > uint64(len(value)-8) {
		return nil, errNoObject
	}
	return value[8 : 8+size], nil
}

var errNoObject = errors.New("what is pinned there is no copy of an object")

// isFresh tells whether the change brings that version of a member in.
func (s *sources) isFresh(p *plan, id uint32) bool { return s.fresh(p)[id] != nil }

// keep hands over what the holder of a member has to keep open: its maps, the
// program arrays among them.
func (s *sources) keep(p *plan, id uint32) *object.Prepared {
	src := s.fresh(p)[id]
	prepared := src.prepared
	src.prepared = nil
	return prepared
}
