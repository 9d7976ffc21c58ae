package xdp_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"weak"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

func TestAnOwnedHookNamesItsHolderToARival(t *testing.T) {
	kerneltest.NoLeaks(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	mine := kerneltest.Pass(t, "mine", nil)
	link := attachLink(t, h, mine)
	pin := filepath.Join(kerneltest.BPFFS(t), "link")
	if err := link.Persist(pin); err != nil {
		t.Fatal(err)
	}
	_, err := h.AttachLink(kerneltest.Pass(t, "other", nil))
	e := refused(t, err, xdp.ErrConflict)
	if e.Rival == nil {
		t.Fatalf("%q has no rival", e)
	}
	id := info(t, link).ID
	r := e.Rival
	if r.Program.ID != kerneltest.ProgramID(t, mine) || r.Program.Name != "mine" || r.Program.Tag == "" {
		t.Errorf("rival's program is %+v", r.Program)
	}
	if r.Held != xdp.HeldByLink || r.LinkID != id || r.Mode != xdp.Native {
		t.Errorf("rival is %+v, want link %d in native mode", r, id)
	}
	if len(r.Holders) != 1 || r.Holders[0].PID != unix.Getpid() {
		t.Errorf("holders are %+v, want this process, %d", r.Holders, unix.Getpid())
	}
	if len(r.Pins) != 1 || r.Pins[0] != pin {
		t.Errorf("pins are %v, want %s", r.Pins, pin)
	}
	t.Log(err)
}

func TestTheGarbageCollectorNeverDetaches(t *testing.T) {
	// Each opens a link in the way of a user who keeps nothing of it.
	ways := map[string]func(t *testing.T, h *xdp.Hook) (*xdp.Link, error){
		"a link that was attached": func(t *testing.T, h *xdp.Hook) (*xdp.Link, error) {
			return h.AttachLink(kerneltest.Pass(t, "kept", nil))
		},
		"a link whose pin was opened and is gone": func(t *testing.T, h *xdp.Hook) (*xdp.Link, error) {
			pin := filepath.Join(kerneltest.BPFFS(t), "link")
			made := attachLink(t, h, kerneltest.Pass(t, "kept", nil))
			if err := made.Persist(pin); err != nil {
				return nil, err
			}
			l, err := xdp.OpenPinned(pin)
			if err != nil {
				return nil, err
			}
			if err := os.Remove(pin); err != nil {
				return nil, err
			}
			return l, made.Close()
		},
		"a link that was opened by its id": func(t *testing.T, h *xdp.Hook) (*xdp.Link, error) {
			made := attachLink(t, h, kerneltest.Pass(t, "kept", nil))
			l, err := xdp.OpenID(info(t, made).ID)
			if err != nil {
				return nil, err
			}
			return l, made.Close()
		},
		"a link that was adopted": func(t *testing.T, h *xdp.Hook) (*xdp.Link, error) {
			made := attachLink(t, h, kerneltest.Pass(t, "kept", nil))
			fd, err := unix.FcntlInt(uintptr(made.FD()), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return nil, err
			}
			l, err := xdp.Adopt(fd)
			if err != nil {
				return nil, err
			}
			return l, made.Close()
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			h := open(t, kerneltest.NewVeth(t), xdp.Native)
			var dropped weak.Pointer[xdp.Link]
			func() {
				l, err := way(t, h)
				if err != nil {
					t.Fatal(err)
				}
				fd := l.FD()
				t.Cleanup(func() { unix.Close(fd) })
				dropped = weak.Make(l)
			}()
			if !kerneltest.Eventually(func() bool { runtime.GC(); return dropped.Value() == nil }) {
				t.Fatal("the link was not collected, so this proves nothing")
			}
			// Had that closed the last descriptor, the program would be
			// detached by the time that another is.
			releaseAnother(t)
			if attached(t, h) == 0 {
				t.Error("the program was detached")
			}
		})
	}
}
