package xdp_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

func TestAProgramStaysAttachedWithoutItsDescriptor(t *testing.T) {
	for name, attach := range map[string]func(t *testing.T, h *xdp.Hook, p *ebpf.Program){
		"by a link":  func(t *testing.T, h *xdp.Hook, p *ebpf.Program) { attachLink(t, h, p) },
		"by netlink": func(t *testing.T, h *xdp.Hook, p *ebpf.Program) { attach(t, h, p) },
	} {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			h := open(t, kerneltest.NewVeth(t), xdp.Native)
			p := kerneltest.Pass(t, "closed", nil)
			id := kerneltest.ProgramID(t, p)
			attach(t, h, p)
			p.Close()
			if got := attached(t, h); got != id {
				t.Errorf("program %d is attached, want %d", got, id)
			}
		})
	}
}

func TestADetachedLinkIsGoneForAllWhoHaveIt(t *testing.T) {
	kerneltest.NoLeaks(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	p := kerneltest.Pass(t, "detached", nil)
	l := attachLink(t, h, p)
	other, err := xdp.OpenID(info(t, l).ID)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Detach(); err != nil {
		t.Fatal(err)
	}
	// A detach does not wait for anything.
	wantAttached(t, h, nil)
	wantDefunct(t, l, p)
	wantDefunct(t, other, p)
	says(t, refused(t, l.Detach(), xdp.ErrGone), "nothing left to detach")
	// The hook is free for others.
	attachLink(t, h, p)
}

// wantDefunct checks that the link attaches nothing any more, and can be read,
// pinned and opened all the same.
func wantDefunct(t *testing.T, l *xdp.Link, p *ebpf.Program) {
	t.Helper()
	if i := info(t, l); !i.Defunct() {
		t.Errorf("the link is %+v, want a defunct one", i)
	}
	for _, expect := range []xdp.Expectation{xdp.Any, xdp.Expect(p)} {
		err := l.Replace(xdp.ReplaceOptions{Program: p, Expect: expect})
		says(t, refused(t, err, xdp.ErrGone), "defunct", "attach anew")
	}
	pin := filepath.Join(kerneltest.BPFFS(t), "defunct")
	if err := l.Persist(pin); err != nil {
		t.Fatal(err)
	}
	same, err := xdp.OpenPinned(pin)
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	if got, want := info(t, same), info(t, l); got != want {
		t.Errorf("the pin opens as %+v, want %+v", got, want)
	}
}

func TestAClosedLinkRefusesAndTouchesNoOtherDescriptor(t *testing.T) {
	kerneltest.NoLeaks(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	p := kerneltest.Pass(t, "closed", nil)
	l, err := h.AttachLink(p)
	if err != nil {
		t.Fatal(err)
	}
	number := l.FD()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// What has the link's number now is another's.
	other := attachLink(t, open(t, kerneltest.NewVeth(t), xdp.Native), p)
	if err := unix.Dup3(other.FD(), number, unix.O_CLOEXEC); err != nil && other.FD() != number {
		t.Fatal(err)
	}
	if other.FD() != number {
		defer unix.Close(number)
	}
	if err := l.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
	_, err = l.Info()
	for _, err := range []error{
		err,
		l.Detach(),
		l.Persist(filepath.Join(kerneltest.BPFFS(t), "link")),
		l.Replace(xdp.ReplaceOptions{Program: p, Expect: xdp.Any}),
		l.Replace(xdp.ReplaceOptions{Program: p, Expect: xdp.Expect(p)}),
	} {
		says(t, refused(t, err, xdp.ErrInvalid), "the link is closed")
	}
	if l.FD() != -1 {
		t.Errorf("its descriptor is %d, want -1", l.FD())
	}
	if _, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); err != nil {
		t.Errorf("the other's descriptor: %v", err)
	}
	if i := info(t, other); i.Defunct() {
		t.Errorf("the other's link is %+v", i)
	}
}

func TestARenamedInterfaceStaysTheSameHook(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	h := open(t, v, xdp.Native)
	one, two := kerneltest.Pass(t, "one", nil), kerneltest.Pass(t, "two", nil)
	l := attachLink(t, h, one)
	if err := v.Near.Conn.SetUp(v.NearIndex, false); err != nil {
		t.Fatal(err) // an interface that is up can't be renamed on Linux 5.10
	}
	if err := v.Near.Conn.Rename(v.NearIndex, "renamed"); err != nil {
		t.Fatal(err)
	}
	replace(t, l, one, two)
	wantAttached(t, h, two)
	if s, err := h.Query(); err != nil || s.Interface.Name != "renamed" {
		t.Errorf("the hook's interface is %q (%v), want renamed", s.Interface.Name, err)
	}
	again := find(t, h.Namespace(), "renamed", xdp.Native)
	if a := query(t, again); a == nil || a.LinkID != info(t, l).ID {
		t.Errorf("by its new name the hook has %v, want link %d", a, info(t, l).ID)
	}
	_, err := h.Namespace().Hook(v.NearName, xdp.Native)
	refused(t, err, xdp.ErrNotFound)
}

func TestADeletedInterfaceLeavesADefunctLinkWhateverIsMadeInItsPlace(t *testing.T) {
	kerneltest.NoLeaks(t)
	n := kerneltest.NewNetNS(t)
	remake := func() {
		t.Helper()
		if err := n.Conn.AddVethAt(50, "same", 51, "peer"); err != nil {
			t.Fatal(err)
		}
	}
	remake()
	h := find(t, namespace(t, n.Path()), "same", xdp.Native)
	p := kerneltest.Pass(t, "deleted", nil)
	l := attachLink(t, h, p)
	if err := n.Conn.Delete(50); err != nil {
		t.Fatal(err)
	}
	wantDefunct(t, l, p)
	_, err := h.Query()
	says(t, refused(t, err, xdp.ErrNotFound), "the interface is gone")
	_, err = h.AttachLink(p)
	refused(t, err, xdp.ErrNotFound)
	refused(t, h.Attach(p, xdp.Empty), xdp.ErrNotFound)
	refused(t, h.Detach(xdp.Any), xdp.ErrNotFound)

	remake()
	wantAttached(t, h, nil)
	wantDefunct(t, l, p)
	// The new one is nobody's.
	late := attachLink(t, h, p)
	if a := query(t, h); a == nil || a.LinkID != info(t, late).ID {
		t.Errorf("the hook has %v, want link %d", a, info(t, late).ID)
	}
}

func TestAMovedInterfaceStaysHeld(t *testing.T) {
	for name, taken := range map[string]bool{"to its index": false, "where its index is taken": true} {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			v, there := kerneltest.NewVeth(t), kerneltest.NewNetNS(t)
			if taken {
				if err := there.Conn.AddVethAt(v.NearIndex, "squatter", v.NearIndex+1, "peer"); err != nil {
					t.Fatal(err)
				}
			}
			h := open(t, v, xdp.Native)
			one, two := kerneltest.Pass(t, "one", nil), kerneltest.Pass(t, "two", nil)
			l := attachLink(t, h, one)
			if err := v.Near.Conn.Move(v.NearIndex, there.FD()); err != nil {
				t.Fatal(err)
			}
			_, err := h.Query()
			says(t, refused(t, err, xdp.ErrNotFound), "namespace where it is now")

			moved := find(t, namespace(t, there.Path()), v.NearName, xdp.Native)
			if i := info(t, l); i.Index != moved.Index() || taken == (i.Index == v.NearIndex) {
				t.Errorf("the link is at interface %d, which is now %d and was %d", i.Index, moved.Index(), v.NearIndex)
			}
			if a := query(t, moved); a == nil || a.LinkID != info(t, l).ID || a.Program.ID != kerneltest.ProgramID(t, one) {
				t.Errorf("where it is now, it has %v, want link %d", a, info(t, l).ID)
			}
			refused(t, moved.Attach(two, xdp.Expect(one)), xdp.ErrConflict)
			refused(t, moved.Detach(xdp.Expect(one)), xdp.ErrConflict)
			replace(t, l, one, two)
			wantAttached(t, moved, two)
			if err := l.Detach(); err != nil {
				t.Fatal(err)
			}
			wantAttached(t, moved, nil)
		})
	}
}

func TestALinkSurvivesItsInterfaceGoingDownAndUp(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	h := open(t, v, xdp.Native)
	p := kerneltest.Pass(t, "updown", nil)
	l := attachLink(t, h, p)
	for _, up := range []bool{false, true} {
		if err := v.Near.Conn.SetUp(v.NearIndex, up); err != nil {
			t.Fatal(err)
		}
		if a := query(t, h); a == nil || a.LinkID != info(t, l).ID {
			t.Errorf("up %t, the hook has %v, want link %d", up, a, info(t, l).ID)
		}
	}
}

func TestALinkCanBeUsedByManyGoroutinesAtOnce(t *testing.T) {
	kerneltest.NoLeaks(t)
	kerneltest.FillDispatcher(t)
	const goroutines, each = 8, 50
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	l := attachLink(t, h, kerneltest.Pass(t, serialName+"0", nil))
	errs := make(chan error, goroutines)
	for range goroutines {
		go func() { errs <- countUp(h, l, each) }()
	}
	for range goroutines {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	want := fmt.Sprintf("%s%d", serialName, goroutines*each)
	if a := query(t, h); a == nil || a.Program.Name != want {
		t.Errorf("the hook has %v after %d replaces, want %s", a, goroutines*each, want)
	}
}

// countUp replaces so many times by the next serial.
func countUp(h *xdp.Hook, l *xdp.Link, times int) error {
	for done := 0; done < times; {
		i, err := l.Info()
		if err != nil {
			return err
		}
		s, err := h.Query()
		if err != nil {
			return err
		}
		now := s.At(xdp.Native)
		switch {
		case now == nil || now.Held != xdp.HeldByLink || now.LinkID != 0 && now.LinkID != i.ID:
			return fmt.Errorf("query says %v, and link %d holds the hook", now, i.ID)
		case now.Program.Name == "":
			continue
		}
		_, err = replaceNext(now.Program, func(p *ebpf.Program, expect xdp.Expectation) error {
			return l.Replace(xdp.ReplaceOptions{Program: p, Expect: expect})
		})
		if err == nil {
			done++
		} else if !isConflict(err) {
			return err
		}
	}
	return nil
}
