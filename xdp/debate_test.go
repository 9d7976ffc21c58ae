package xdp_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// TestDebate shows what the kernel's developers argued about in March 2020,
// each claim as far as it is this package's.
func TestDebate(t *testing.T) {
	t.Run("an attachment is an object of its own, whatever else runs its program", attachmentsAreObjects)
	t.Run("when an owner crashes its attachment goes, and only that one", onlyTheOwnersGoes)
	t.Run("a permanent attachment goes on until told to stop", permanentGoesOn)
	t.Run("killed at any moment, a permanent attach is there with its pin or not at all", permanentIsAtomic)
	t.Run("nobody who does not own an attachment can replace or detach it", nobodyElseCan)
	t.Run("a link's descriptor can be shared without a bpffs: through a socket", linkThroughASocket)
	t.Run("a link's descriptor can be shared without a bpffs: inherited", linkInherited)
}

// three are the hooks of three interfaces in a namespace.
func three(t *testing.T) (ns *kerneltest.NetNS, hooks [3]*xdp.Hook) {
	t.Helper()
	ns = kerneltest.NewNetNS(t)
	opened := namespace(t, ns.Path())
	for i := range hooks {
		name := fmt.Sprintf("three%d", i)
		if err := ns.Conn.AddVeth(name, fmt.Sprintf("peer%d", i), -1); err != nil {
			t.Fatal(err)
		}
		hooks[i] = find(t, opened, name, xdp.Native)
	}
	return ns, hooks
}

func attachmentsAreObjects(t *testing.T) {
	kerneltest.NoLeaks(t)
	_, hooks := three(t)
	p, next := kerneltest.Pass(t, "one", nil), kerneltest.Pass(t, "next", nil)
	var links [3]*xdp.Link
	ids := map[uint32]bool{}
	for i, h := range hooks {
		links[i] = attachLink(t, h, p)
		ids[info(t, links[i]).ID] = true
	}
	if len(ids) != 3 {
		t.Errorf("three attachments of one program have link ids %v", ids)
	}
	replace(t, links[1], p, next)
	if err := links[2].Detach(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []*ebpf.Program{p, next, nil} {
		wantAttached(t, hooks[i], want)
	}
	for i, defunct := range []bool{false, false, true} {
		if info(t, links[i]).Defunct() != defunct {
			t.Errorf("link %d: %+v", i, info(t, links[i]))
		}
	}
}

func onlyTheOwnersGoes(t *testing.T) {
	kerneltest.NoLeaks(t)
	ns, hooks := three(t)
	p := kerneltest.Pass(t, "shared", nil)
	id := kerneltest.ProgramID(t, p)
	var owners [3]*kerneltest.Process
	for i, h := range hooks {
		inherited := dup(t, p.FD())
		owners[i] = start(t, []*os.File{inherited}, "own", ns.Path(), h.Name())
		inherited.Close()
	}
	// From here on only the owners have the program.
	p.Close()
	for _, h := range hooks {
		if got := attached(t, h); got != id {
			t.Fatalf("program %d is attached to %s, want %d", got, h, id)
		}
	}
	owners[1].Kill()
	wantEmptied(t, hooks[1])
	for _, i := range []int{0, 2} {
		a := query(t, hooks[i])
		if a == nil || a.Program.ID != id || a.Held != xdp.HeldByLink {
			t.Errorf("hook %d has %v, want program %d held by its owner", i, a, id)
			continue
		}
		if got := holders(t, hooks[i]); len(got) != 1 || got[0] != owners[i].PID() {
			t.Errorf("hook %d is held by %v, want %d", i, got, owners[i].PID())
		}
	}
}

func permanentGoesOn(t *testing.T) {
	kerneltest.NoLeaks(t)
	v, there := kerneltest.NewVeth(t), kerneltest.NewNetNS(t)
	pin := filepath.Join(kerneltest.BPFFS(t), "permanent")
	h := open(t, v, xdp.Native)
	creator := start(t, nil, "persist", v.Near.Path(), v.NearName, pin)
	made := query(t, h)
	if made == nil || made.Program.Name != "permanent" {
		t.Fatalf("the hook has %v", made)
	}
	still := func(after string, h *xdp.Hook) {
		t.Helper()
		if a := query(t, h); a == nil || a.LinkID != made.LinkID || a.Program.ID != made.Program.ID {
			t.Errorf("after %s the hook has %v, want %v", after, a, made)
		}
	}
	creator.Kill()
	releaseAnother(t)
	still("the death of its creator", h)

	if err := v.Near.Conn.SetUp(v.NearIndex, false); err != nil {
		t.Fatal(err)
	}
	if err := v.Near.Conn.Rename(v.NearIndex, "renamed"); err != nil {
		t.Fatal(err)
	}
	still("a rename", find(t, h.Namespace(), "renamed", xdp.Native))

	if err := v.Near.Conn.Move(v.NearIndex, there.FD()); err != nil {
		t.Fatal(err)
	}
	moved := find(t, namespace(t, there.Path()), "renamed", xdp.Native)
	still("a move to another namespace", moved)

	// And then somebody tells it to stop.
	l, err := xdp.OpenPinned(pin)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Detach(); err != nil {
		t.Fatal(err)
	}
	wantAttached(t, moved, nil)
}

func permanentIsAtomic(t *testing.T) {
	kerneltest.NoLeaks(t)
	var h *xdp.Hook
	var pin string
	crash.Sweep{
		Setup: func(t *testing.T) crash.Command {
			v := kerneltest.NewVeth(t)
			h = open(t, v, xdp.Native)
			pin = filepath.Join(kerneltest.BPFFS(t), "link")
			return crash.Command{
				Path: "/proc/self/exe",
				Args: []string{v.Near.Path(), v.NearName, pin},
				Env:  append(os.Environ(), kerneltest.CommandEnv("persist")),
			}
		},
		Check: func(t *testing.T, run crash.Run) {
			_, err := os.Stat(pin)
			pinned := err == nil
			if acknowledged := strings.Contains(run.Stdout, "ready"); acknowledged && !pinned {
				t.Error("the command said that it is done, and there is no pin")
			}
			if !pinned {
				wantEmptied(t, h)
				return
			}
			l, err := xdp.OpenPinned(pin)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			releaseAnother(t)
			if a := query(t, h); a == nil || a.LinkID != info(t, l).ID {
				t.Errorf("the hook has %v, and link %d is pinned", a, info(t, l).ID)
			}
			if err := l.Detach(); err != nil {
				t.Error(err)
			}
		},
	}.Run(t)
}

func nobodyElseCan(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	native, generic := open(t, v, xdp.Native), open(t, v, xdp.Generic)
	p, other := kerneltest.Pass(t, "mine", nil), kerneltest.Pass(t, "other", nil)
	l := attachLink(t, native, p)
	made := info(t, l)
	attach := func(h *xdp.Hook, p *ebpf.Program, expect xdp.Expectation) error { return h.Attach(p, expect) }
	for way, err := range map[string]func() error{
		"attach by netlink, forced":             func() error { return attach(native, other, xdp.Any) },
		"attach by netlink, carefully":          func() error { return attach(native, other, xdp.Empty) },
		"attach by netlink the same program":    func() error { return attach(native, p, xdp.Any) },
		"replace by netlink, rightly expecting": func() error { return attach(native, other, xdp.Expect(p)) },
		"replace by netlink, by the id":         func() error { return attach(native, other, xdp.ExpectID(made.ProgramID)) },
		"replace by netlink, wrongly expecting": func() error { return attach(native, other, xdp.Expect(other)) },
		"attach in the other mode, forced":      func() error { return attach(generic, other, xdp.Any) },
		"attach in the other mode, carefully":   func() error { return attach(generic, other, xdp.Empty) },
		"attach in no particular mode":          func() error { return attach(open(t, v, xdp.Auto), other, xdp.Any) },
		"detach by netlink, forced":             func() error { return native.Detach(xdp.Any) },
		"detach by netlink, rightly expecting":  func() error { return native.Detach(xdp.Expect(p)) },
		"a second link":                         func() error { _, err := native.AttachLink(other); return err },
		"a second link, the same program":       func() error { _, err := native.AttachLink(p); return err },
		"a second link in the other mode":       func() error { _, err := generic.AttachLink(other); return err },
	} {
		e := refused(t, err(), xdp.ErrConflict)
		if e.Rival == nil || e.Rival.LinkID != made.ID {
			t.Errorf("%s: %q does not name link %d", way, e, made.ID)
		}
		if a := query(t, native); a == nil || a.LinkID != made.ID || a.Program.ID != made.ProgramID {
			t.Errorf("%s: the hook has %v, want link %d", way, a, made.ID)
		}
	}
	// What the kernel answers with success does nothing, and is not called a
	// success here.
	refused(t, generic.Detach(xdp.Any), xdp.ErrNotAttached)
	if got := info(t, l); got != made {
		t.Errorf("the link is %+v, want %+v", got, made)
	}
	if a := query(t, native); a == nil || a.LinkID != made.ID {
		t.Errorf("the hook has %v, want link %d", a, made.ID)
	}
}
