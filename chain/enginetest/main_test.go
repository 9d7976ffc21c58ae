package enginetest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) { kerneltest.Main(m, nil) }

const (
	aborted  = uint32(chain.Aborted)
	drop     = uint32(chain.Drop)
	pass     = uint32(chain.Pass)
	tx       = uint32(chain.Tx)
	redirect = uint32(chain.Redirect)
)

// TestEngines has every engine show every behaviour.
func TestEngines(t *testing.T) {
	kerneltest.NoLeaks(t)
	found, err := features.Kernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := where{kernel: kerneltest.Kernel(), freplace: features.Find(found, features.Freplace).Supported == features.Yes}
	limits := readLimits(t)
	kerneltest.FillDispatcher(t)
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			for _, b := range behaviours {
				t.Run(b.name, func(t *testing.T) {
					kerneltest.NoLeaks(t)
					err := b.show(newSite(t, e))
					limits.judge(t, b.name, e, w, err)
				})
			}
		})
	}
}

// site is an interface whose hook is empty, for a chain of the engine.
type site struct {
	*testing.T
	engine engine
	veth   *kerneltest.Veth
	hook   *xdp.Hook
	script *ebpf.Map
}

func newSite(t *testing.T, e engine) *site {
	t.Helper()
	s := &site{T: t, engine: e, veth: kerneltest.NewVeth(t)}
	ns, err := xdp.OpenNamespace(s.veth.Near.Path())
	s.must(err)
	t.Cleanup(func() { ns.Close() })
	s.hook, err = ns.Hook(s.veth.NearName, xdp.Native)
	s.must(err)
	return s
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// member is a program that a chain is to be made of.
type member struct {
	object *object.Object
	info   object.ProgramInfo
	on     chain.Actions
	// maps are those that it uses, by name. They are made when the test makes
	// the member, and each engine runs it with these.
	maps map[string]*ebpf.Map
}

// options are how it is loaded.
func (m member) options() object.LoadOptions {
	return object.LoadOptions{Program: object.Choice{Name: m.info.Name}, MapReplacements: m.maps}
}

// read reads one of this project's objects, which change may alter before.
func (s *site) read(name string, change func([]byte) []byte) *object.Object {
	s.Helper()
	elf := bytes.Clone(bpfprog.ELF(name))
	if change != nil {
		elf = change(elf)
	}
	o, err := object.Read(name+".o", bytes.NewReader(elf))
	s.must(err)
	return o
}

// of makes a member of a program, that goes on after XDP_PASS.
func (s *site) of(o *object.Object, program string, replacements map[string]*ebpf.Map) member {
	s.Helper()
	info, err := o.Program(object.Choice{Name: program})
	s.must(err)
	opts := object.LoadOptions{Program: object.Choice{Name: info.Name}, MapReplacements: replacements}
	if s.engine.extends {
		opts.Extend = &object.Extension{} // as what its tail calls lead to has to be for that
	}
	p, err := o.Prepare(opts)
	s.must(err)
	s.Cleanup(func() { p.Close() })
	return member{object: o, info: info, on: chain.DefaultProceedOn, maps: p.Maps}
}

// parts are two members of each of these programs of bpf/parts.c, as different
// members are that were made of the same source.
func (s *site) parts(programs ...string) []member {
	s.Helper()
	var all []member
	for range 2 {
		for _, name := range programs {
			all = append(all, s.of(s.read("parts", nil), name, nil))
		}
	}
	return all
}

// value is what the member's map of that name holds at the offset, in 8 bytes.
func (s *site) value(m member, name string, offset int) uint64 {
	s.Helper()
	b, err := m.maps[name].LookupBytes(uint32(0))
	s.must(err)
	return binary.NativeEndian.Uint64(b[offset:])
}

// longest is how many members there can be of bpf/verdict.c.
const longest = 32

// script is what the members of bpf/verdict.c share.
type script struct {
	Returns [longest]uint32
	Met     uint32
	Order   [longest]uint32
}

// verdicts are n members that return what [site.scripted] says.
func (s *site) verdicts(n int) []member {
	s.Helper()
	if s.script == nil {
		spec, err := bpfprog.LoadVerdict()
		s.must(err)
		s.script, err = ebpf.NewMap(spec.Maps["scripts"])
		s.must(err)
		s.Cleanup(func() { s.script.Close() })
	}
	var all []member
	for i := range n {
		o := s.read("verdict", nil)
		s.must(o.Set(fmt.Sprintf("number=%d", i%longest)))
		all = append(all, s.of(o, "verdict", map[string]*ebpf.Map{"scripts": s.script}))
	}
	return all
}

// scripted sends a packet through the chain, with the members of bpf/verdict.c
// returning these values, by their number, and XDP_PASS where there is none. It
// returns what the chain returned and which of them the packet met, in order.
func (s *site) scripted(p *ebpf.Program, returns ...uint32) (result uint32, met []uint32) {
	s.Helper()
	script := s.write(returns...)
	result = s.run(p)
	s.must(s.script.Lookup(uint32(0), script))
	return result, script.Order[:min(script.Met, longest)]
}

func (s *site) write(returns ...uint32) *script {
	s.Helper()
	var script script
	for i := range script.Returns {
		script.Returns[i] = pass
	}
	copy(script.Returns[:], returns)
	s.must(s.script.Put(uint32(0), &script))
	return &script
}

// run sends a packet through the program.
func (s *site) run(p *ebpf.Program) uint32 {
	s.Helper()
	result, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 60)})
	s.must(err)
	return result
}

// build has the engine run these members, in this order. The error is the
// engine's.
func (s *site) build(members ...member) (*ebpf.Program, error) {
	s.Helper()
	return s.engine.build(s, members)
}

// passes is build, of members that pass if all is well with them, and sends a
// packet through them.
func (s *site) passes(members ...member) (*ebpf.Program, error) {
	s.Helper()
	p, err := s.build(members...)
	if err != nil {
		return nil, err
	}
	if got := s.run(p); got != pass {
		s.Fatalf("a member failed: the chain returned %d", got)
	}
	return p, nil
}
