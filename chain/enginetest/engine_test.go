package enginetest

import (
	"context"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// engine is a way to run a chain.
type engine struct {
	name string
	// build makes a chain of the members, in this order, and attaches it to the
	// site's hook, until the test ends. It returns what is attached.
	build func(s *site, members []member) (*ebpf.Program, error)
	// extends tells that members are extensions (freplace).
	extends bool
	// goesOn tells whether the chain goes on to the next member after a number
	// that is no action, where the member proceeds on these.
	goesOn func(on chain.Actions, value uint32) bool
	// aloneIsFinal tells that what the only member returns is what the chain
	// returns, whatever it proceeds on.
	aloneIsFinal bool
}

var engines = []engine{
	{name: "live", build: buildLive, extends: true, goesOn: func(_ chain.Actions, value uint32) bool { return value == live.Empty }},
	{name: "fused", build: buildFused, goesOn: func(chain.Actions, uint32) bool { return false }},
	// The protocol looks at the last five bits of what a member returns, and
	// goes on after 31, which a slot without a member returns.
	{name: "libxdp", build: buildLibxdp, extends: true, aloneIsFinal: true, goesOn: func(on chain.Actions, value uint32) bool {
		return value%32 == 31 || on.Has(chain.Action(value%32))
	}},
}

// own attaches a program to the site's hook by a link.
func (s *site) own(p *ebpf.Program) error {
	s.Helper()
	link, err := s.hook.AttachLink(p)
	if err != nil {
		return err
	}
	s.Cleanup(func() { link.Close() })
	return nil
}

func buildLive(s *site, members []member) (*ebpf.Program, error) {
	s.Helper()
	slots, err := live.Fresh(len(members))
	if err != nil {
		return nil, err
	}
	frags := true
	for _, m := range members {
		frags = frags && m.info.Frags
	}
	d, err := live.Load(live.Options{Frags: frags})
	if err != nil {
		return nil, err
	}
	s.Cleanup(func() { d.Close() })
	for i, m := range members {
		opts := m.options()
		extension := d.Extension(slots[i])
		opts.Extend = &extension
		loaded, err := m.object.Load(opts)
		if err != nil {
			return nil, err
		}
		link, err := d.Attach(slots[i], kernel.FD(loaded.Program.FD()))
		loaded.Close()
		if err != nil {
			return nil, err
		}
		s.Cleanup(func() { link.Close() })
		s.must(d.SetProceedOn(slots[i], m.on))
	}
	s.must(d.Commit(live.SetOf(slots...)))
	return d.Program(), s.own(d.Program())
}

func buildFused(s *site, members []member) (*ebpf.Program, error) {
	s.Helper()
	var all []fused.Member
	for _, m := range members {
		p, err := m.object.Resume(object.LoadOptions{Program: object.Choice{Name: m.info.Name}}, m.maps)
		s.must(err)
		s.Cleanup(func() { p.Close() })
		all = append(all, fused.Member{Name: m.info.Name, ProceedOn: m.on, Program: p})
	}
	p, err := fused.Load(all)
	if err != nil {
		return nil, err
	}
	s.Cleanup(func() { p.Close() })
	return p, s.own(p)
}

func buildLibxdp(s *site, members []member) (*ebpf.Program, error) {
	s.Helper()
	chains, err := libxdp.Open(libxdp.Options{BPFFS: kerneltest.BPFFS(s)})
	s.must(err)
	s.Cleanup(func() { chains.Close() })
	var adds []libxdp.Addition
	for i, m := range members {
		priority := uint32(i)
		// The test holds program arrays as long as the chain runs.
		adds = append(adds, libxdp.Addition{Object: m.object, Load: m.options(), Priority: &priority, ProceedOn: &m.on})
	}
	c, err := chains.Add(context.Background(), s.hook, adds...)
	if err != nil {
		return nil, err
	}
	s.Cleanup(func() { chains.RemoveAll(context.Background(), s.hook, xdp.Any) })
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(c.Dispatcher.ID))
	s.must(err)
	s.Cleanup(func() { p.Close() })
	return p, nil
}
