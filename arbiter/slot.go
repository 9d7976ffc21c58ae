package arbiter

import (
	"context"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Slot returns what a process that loads a program itself loads it against, as an
// extension (BPF_PROG_TYPE_EXT): a dispatcher, which is attached nowhere, and the
// function there. The program fits any slot of any dispatcher then, and becomes a member
// by [Change].Extension. Whoever acts for others so never reads their objects. The
// caller closes the target. Errors: [live.ErrNoFreplace].
func (a *Arbiter) Slot(_ context.Context, h *xdp.Hook) (object.Extension, error) {
	if err := a.permit(Intent{Verb: VerbAttach, Hook: h, Interface: h.Name(), Lifetime: owned.Held}); err != nil {
		return object.Extension{}, err
	}
	d, err := live.Load(live.Options{})
	if err != nil {
		return object.Extension{}, err
	}
	defer d.Close()
	const first live.Slot = 0 // all have the same signature
	extension := d.Extension(first)
	extension.Target, err = extension.Target.Clone()
	return extension, err
}

// ownLoaded is a source whose program somebody has loaded already.
func (c *Change) ownLoaded(s *source) error {
	refuse := func(detail string) error {
		return &owned.Error{Op: c.Op, Member: c.Name, Err: owned.ErrInvalid, Detail: detail, Hint: "load it by its object"}
	}
	switch {
	case c.Object != nil:
		return refuse("it has an object, and a program that was loaded already")
	case c.Name == "":
		return refuse("a program that was loaded already needs a name")
	case c.Op == owned.Add && c.Lifetime != owned.Held:
		return refuse("a program that was loaded already has no object to load it by again, so it can only be held")
	}
	info, err := kernel.ReadProgram(kernel.FD(c.Extension.FD()))
	if err != nil || !info.IsExtension() {
		return refuse("the program is no extension of a dispatcher")
	}
	own, err := c.Extension.Clone()
	if err != nil {
		return err
	}
	s.extension = own
	s.record.Program = info.Name
	s.record.Digest = fmt.Sprintf("tag:%x", info.Tag)
	s.record.Cost, err = loadedCost(c.Extension)
	return err
}

// loadedCost is what a program that is loaded takes. Its instructions are those that the
// kernel has made of it: what the verifier has gone through counts some of them often,
// and is not told before Linux 5.16.
func loadedCost(p *ebpf.Program) (Cost, error) {
	info, err := p.Info()
	if err != nil {
		return Cost{}, err
	}
	size, err := info.TranslatedSize()
	if err != nil {
		return Cost{}, err
	}
	c := Cost{Instructions: size / asm.InstructionSize}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		bytes, err := mapMemory(id)
		if err != nil {
			return c, fmt.Errorf("look at the maps of a program: %w", err)
		}
		if c.MapMemory+bytes < bytes {
			c.MapMemory = math.MaxUint64
			break
		}
		c.MapMemory += bytes
	}
	return c, nil
}

func mapMemory(id ebpf.MapID) (uint64, error) {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	return object.MapMemory(m.Type(), m.KeySize(), m.ValueSize(), m.MaxEntries())
}
