package tracetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/trace"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) { kerneltest.Main(m, kerneltest.Commands{"trace": traceCommand}) }

const (
	drop = trace.Verdict(chain.Drop)
	pass = trace.Verdict(chain.Pass)
)

// site is an interface with a chain whose members do as the script says.
type site struct {
	*testing.T
	veth   *kerneltest.Veth
	hook   *xdp.Hook
	script *ebpf.Map
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{T: t, veth: kerneltest.NewVeth(t)}
	ns, err := xdp.OpenNamespace(s.veth.Near.Path())
	s.must(err)
	t.Cleanup(func() { ns.Close() })
	s.hook, err = ns.Hook(s.veth.NearName, xdp.Native)
	s.must(err)
	spec, err := bpfprog.LoadVerdict()
	s.must(err)
	s.script, err = ebpf.NewMap(spec.Maps["scripts"])
	s.must(err)
	t.Cleanup(func() { s.script.Close() })
	s.returns()
	return s
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// returns has members return these, by their numbers, and the others pass.
func (s *site) returns(verdicts ...trace.Verdict) {
	s.Helper()
	var script struct {
		Returns [32]trace.Verdict
		Met     uint32
		Order   [32]uint32
	}
	for i := range script.Returns {
		script.Returns[i] = pass
	}
	copy(script.Returns[:], verdicts)
	s.must(s.script.Put(uint32(0), &script))
}

// member reads bpf/verdict.c for the member of that number.
func (s *site) member(number int) (*object.Object, object.LoadOptions) {
	s.Helper()
	o, err := object.Read("verdict.o", bytes.NewReader(bpfprog.ELF("verdict")))
	s.must(err)
	s.must(o.Set(fmt.Sprintf("number=%d", number)))
	return o, object.LoadOptions{Program: object.Choice{Name: "verdict"}, MapReplacements: map[string]*ebpf.Map{"scripts": s.script}}
}

func name(i int) string { return fmt.Sprintf("member%d", i+1) }

// foreign is a program that is none of a chain's.
func foreign(t *testing.T) *ebpf.Program {
	t.Helper()
	return kerneltest.Load(t, "pass", nil).Programs["xdp_pass"]
}

// needTracing skips where the machine's own kernel attaches no programs that trace:
// all others do.
func needTracing(t *testing.T) {
	t.Helper()
	p := foreign(t)
	id := kerneltest.ProgramID(t, p)
	tr, err := trace.Open(trace.Options{Program: id, Members: []trace.Member{{Name: "pass", ProgramID: id}}, Count: 1})
	switch {
	case err == nil:
		tr.Close()
	case !kerneltest.InMachine() && (errors.Is(err, xdp.ErrPermission) || errors.Is(err, xdp.ErrNotSupported)):
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

// way builds a chain of n members at the site's hook.
type way struct {
	name string
	// members tells whether each member can be watched.
	members bool
	build   func(s *site, n int) trace.Options
}

var ways = []way{
	{"live", true, buildLive},
	{"fused", false, buildFused},
	{"libxdp", true, buildLibxdp},
}

func (s *site) own(p *ebpf.Program) {
	s.Helper()
	link, err := s.hook.AttachLink(p)
	s.must(err)
	s.Cleanup(func() { link.Close() })
}

func (s *site) options(program uint32, members ...trace.Member) trace.Options {
	return trace.Options{Hook: s.hook, Program: program, Members: members, Count: 1, Snap: 256}
}

func buildLive(s *site, n int) trace.Options {
	s.Helper()
	slots, err := live.Fresh(n)
	s.must(err)
	d, err := live.Load(live.Options{})
	s.must(err)
	s.Cleanup(func() { d.Close() })
	var members []trace.Member
	for i, slot := range slots {
		o, opts := s.member(i)
		extension := d.Extension(slot)
		opts.Extend = &extension
		loaded, err := o.Load(opts)
		if errors.Is(err, object.ErrExtension) {
			s.Skip(err)
		}
		s.must(err)
		link, err := d.Attach(slot, kernel.FD(loaded.Program.FD()))
		members = append(members, trace.Member{Name: name(i), ProgramID: kerneltest.ProgramID(s, loaded.Program), ProceedOn: chain.DefaultProceedOn})
		loaded.Close()
		s.must(err)
		s.Cleanup(func() { link.Close() })
	}
	s.must(d.Commit(live.SetOf(slots...)))
	s.own(d.Program())
	return s.options(d.ID(), members...)
}

func buildFused(s *site, n int) trace.Options {
	s.Helper()
	var all []fused.Member
	var members []trace.Member
	for i := range n {
		o, opts := s.member(i)
		p, err := o.Prepare(opts)
		s.must(err)
		s.Cleanup(func() { p.Close() })
		all = append(all, fused.Member{Name: name(i), ProceedOn: chain.DefaultProceedOn, Program: p})
		members = append(members, trace.Member{Name: name(i), ProceedOn: chain.DefaultProceedOn})
	}
	p, err := fused.Load(all)
	s.must(err)
	s.Cleanup(func() { p.Close() })
	s.own(p)
	return s.options(kerneltest.ProgramID(s, p), members...)
}

func buildLibxdp(s *site, n int) trace.Options {
	s.Helper()
	chains, err := libxdp.Open(libxdp.Options{BPFFS: kerneltest.BPFFS(s)})
	s.must(err)
	s.Cleanup(func() { chains.Close() })
	var adds []libxdp.Addition
	for i := range n {
		o, opts := s.member(i)
		priority, on := uint32(i), chain.DefaultProceedOn
		adds = append(adds, libxdp.Addition{Object: o, Load: opts, Priority: &priority, ProceedOn: &on})
	}
	c, err := chains.Add(context.Background(), s.hook, adds...)
	if errors.Is(err, object.ErrExtension) {
		s.Skip(err)
	}
	s.must(err)
	s.Cleanup(func() { chains.RemoveAll(context.Background(), s.hook, xdp.Any) })
	var members []trace.Member
	for i, m := range c.Members {
		members = append(members, trace.Member{Name: name(i), ProgramID: m.Program.ID, ProceedOn: m.ProceedOn})
	}
	return s.options(c.Dispatcher.ID, members...)
}

// send sends a packet from the far side to that port.
func (s *site) send(port uint16, payload string) {
	s.Helper()
	var c net.Conn
	s.veth.Far.In(s, func() (err error) {
		c, err = net.Dial("udp4", netip.AddrPortFrom(s.veth.NearAddr, port).String())
		return err
	})
	defer c.Close()
	_, err := c.Write([]byte(payload))
	s.must(err)
}

func (s *site) open(o trace.Options, filter string) *trace.Trace {
	s.Helper()
	f, err := trace.ParseFilter(filter)
	s.must(err)
	o.Filter = f
	t, err := trace.Open(o)
	if err != nil {
		var verifier *ebpf.VerifierError
		if errors.As(err, &verifier) {
			s.Logf("%+v", verifier)
		}
		s.Fatal(err)
	}
	s.Cleanup(func() { t.Close() })
	return t
}
