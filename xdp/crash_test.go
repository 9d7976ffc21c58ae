package xdp_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// operate makes one change and says so. It inherits the programs: what is there
// and what is to come.
func operate(args []string) int {
	operation, netns, name, pin := args[0], args[1], args[2], args[3]
	there, err := ebpf.NewProgramFromFD(3)
	if err != nil {
		return fail(err)
	}
	next, err := ebpf.NewProgramFromFD(4)
	if err != nil {
		return fail(err)
	}
	if err := changes[operation].make(netns, name, pin, there, next); err != nil {
		return fail(err)
	}
	return ready()
}

// crashing is a change that is killed at every point.
type crashing struct {
	// link tells whether the hook is held by a link, pinned, and otherwise by
	// netlink; empty whether nothing is there at first.
	link, empty bool
	// to tells what is there once it is done: the next program or nothing.
	toNothing bool
	make      func(netns, name, pin string, there, next *ebpf.Program) error
}

// atHook is a change by netlink.
func atHook(change func(h *xdp.Hook, there, next *ebpf.Program) error) func(string, string, string, *ebpf.Program, *ebpf.Program) error {
	return func(netns, name, _ string, there, next *ebpf.Program) error {
		h, err := openHook(netns, name)
		if err != nil {
			return err
		}
		defer h.Namespace().Close()
		return change(h, there, next)
	}
}

// atPin is a change of a pinned link.
func atPin(change func(l *xdp.Link, there, next *ebpf.Program) error) func(string, string, string, *ebpf.Program, *ebpf.Program) error {
	return func(_, _, pin string, there, next *ebpf.Program) error {
		l, err := xdp.OpenPinned(pin)
		if err != nil {
			return err
		}
		defer l.Close()
		return change(l, there, next)
	}
}

var changes = map[string]crashing{
	"an attach by netlink": {empty: true, make: atHook(func(h *xdp.Hook, _, next *ebpf.Program) error {
		return h.Attach(next, xdp.Empty)
	})},
	"a replace by netlink": {make: atHook(func(h *xdp.Hook, there, next *ebpf.Program) error {
		return h.Attach(next, xdp.Expect(there))
	})},
	"a detach by netlink": {toNothing: true, make: atHook(func(h *xdp.Hook, there, _ *ebpf.Program) error {
		return h.Detach(xdp.Expect(there))
	})},
	"a replace of a link": {link: true, make: atPin(func(l *xdp.Link, there, next *ebpf.Program) error {
		return l.Replace(xdp.ReplaceOptions{Program: next, Expect: xdp.Expect(there)})
	})},
	"a detach of a link": {link: true, toNothing: true, make: atPin(func(l *xdp.Link, _, _ *ebpf.Program) error {
		return l.Detach()
	})},
}

func TestAChangeThatIsKilledHappenedWhollyOrNotAtAll(t *testing.T) {
	for operation, c := range changes {
		t.Run(operation, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			there, next := kerneltest.Pass(t, "there", nil), kerneltest.Pass(t, "next", nil)
			before, after := there, next
			if c.empty {
				before = nil
			}
			if c.toNothing {
				after = nil
			}
			var h *xdp.Hook
			var pin string
			crash.Sweep{
				Setup: func(t *testing.T) crash.Command {
					v := kerneltest.NewVeth(t)
					h = open(t, v, xdp.Native)
					pin = filepath.Join(kerneltest.BPFFS(t), "link")
					switch {
					case c.link:
						l := attachLink(t, h, there)
						if err := l.Persist(pin); err != nil {
							t.Fatal(err)
						}
						if err := l.Close(); err != nil {
							t.Fatal(err)
						}
					case !c.empty:
						attach(t, h, there)
					}
					return crash.Command{
						Path:  "/proc/self/exe",
						Args:  []string{operation, v.Near.Path(), v.NearName, pin},
						Env:   append(os.Environ(), kerneltest.CommandEnv("operate")),
						Files: []*os.File{dup(t, there.FD()), dup(t, next.FD())},
					}
				},
				Check: func(t *testing.T, run crash.Run) {
					done := attached(t, h) == id(t, after)
					if strings.Contains(run.Stdout, "ready") && !done {
						t.Error("the command said that it is done, and it is not")
					}
					if !done {
						wantAttached(t, h, before)
					}
					finish(t, c, h, pin, there, next)
					wantAttached(t, h, after)
				},
			}.Run(t)
		})
	}
}

// id is the program's, and 0 stands for none.
func id(t *testing.T, p *ebpf.Program) uint32 {
	t.Helper()
	if p == nil {
		return 0
	}
	return kerneltest.ProgramID(t, p)
}

// finish makes the change again, as whoever comes next would: it succeeds, or is
// told that it has been made.
func finish(t *testing.T, c crashing, h *xdp.Hook, pin string, there, next *ebpf.Program) {
	t.Helper()
	err := c.make(h.Namespace().Spec(), h.Name(), pin, there, next)
	switch {
	case err == nil:
	case c.link && c.toNothing:
		refused(t, err, xdp.ErrGone)
	case c.toNothing:
		refused(t, err, xdp.ErrNotAttached)
	default:
		e := refused(t, err, xdp.ErrConflict)
		if e.Rival == nil || e.Rival.Program.ID != id(t, next) {
			t.Errorf("%q does not name the program that is there", e)
		}
	}
}
