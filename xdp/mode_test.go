package xdp_test

import (
	"errors"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// deviceOf makes an interface of a kind without native XDP.
func deviceOf(t *testing.T, kind string) *xdp.Namespace {
	t.Helper()
	n := kerneltest.NewNetNS(t)
	err := n.Conn.Add(kind, "dev")
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("this kernel has no %s", kind)
	}
	if err != nil {
		t.Fatalf("make a %s: %v", kind, err)
	}
	return namespace(t, n.Path())
}

// kindsWithoutNative are interfaces that have no native mode. The machine's own
// kernel may be built without some.
var kindsWithoutNative = []string{"bridge", "ifb", "dummy"}

func TestAutoIsNativeWhereTheDriverHasIt(t *testing.T) {
	kerneltest.NoLeaks(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Auto)
	p := kerneltest.Pass(t, "auto", nil)
	l := attachLink(t, h, p)
	if a := query(t, h); a == nil || a.Mode != xdp.Native {
		t.Errorf("the link attached %v, want it in native mode", a)
	}
	if err := l.Detach(); err != nil {
		t.Fatal(err)
	}
	attach(t, h, p)
	if a := query(t, h); a == nil || a.Mode != xdp.Native {
		t.Errorf("netlink attached %v, want it in native mode", a)
	}
}

func TestAutoIsGenericWhereTheDriverHasNoNativeMode(t *testing.T) {
	for _, kind := range kindsWithoutNative {
		t.Run(kind, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			h := find(t, deviceOf(t, kind), "dev", xdp.Auto)
			p := kerneltest.Pass(t, "auto", nil)
			l := attachLink(t, h, p)
			if a := query(t, h); a == nil || a.Mode != xdp.Generic {
				t.Errorf("the link attached %v, want it in generic mode", a)
			}
			if err := l.Detach(); err != nil {
				t.Fatal(err)
			}
			attach(t, h, p)
			if a := query(t, h); a == nil || a.Mode != xdp.Generic {
				t.Errorf("netlink attached %v, want it in generic mode", a)
			}
		})
	}
}

func TestNativeIsRefusedWhereTheDriverHasNone(t *testing.T) {
	for _, kind := range kindsWithoutNative {
		t.Run(kind, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			h := find(t, deviceOf(t, kind), "dev", xdp.Native)
			p := kerneltest.Pass(t, "native", nil)
			_, err := h.AttachLink(p)
			says(t, refused(t, err, xdp.ErrNotSupported), "native", "mode generic works")
			says(t, refused(t, h.Attach(p, xdp.Empty), xdp.ErrNotSupported), "native", "mode generic works")
			wantAttached(t, h, nil)
		})
	}
}

func TestOffloadIsRefusedWhereTheCardHasNone(t *testing.T) {
	kerneltest.NoLeaks(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Offload)
	p := kerneltest.Pass(t, "offload", nil)
	_, err := h.AttachLink(p)
	says(t, refused(t, err, xdp.ErrNotSupported), "does not offload", "use mode native")
	says(t, refused(t, h.Attach(p, xdp.Empty), xdp.ErrNotSupported), "does not offload")
}

func TestAProgramInOneModeIsInTheWayOfTheOther(t *testing.T) {
	for _, modes := range [][2]xdp.Mode{{xdp.Native, xdp.Generic}, {xdp.Generic, xdp.Native}} {
		there, other := modes[0], modes[1]
		t.Run(there.String(), func(t *testing.T) {
			kerneltest.NoLeaks(t)
			v := kerneltest.NewVeth(t)
			mine, late := kerneltest.Pass(t, "mine", nil), kerneltest.Pass(t, "late", nil)
			attachLink(t, open(t, v, there), mine)
			h := open(t, v, other)
			_, err := h.AttachLink(late)
			for _, err := range []error{err, h.Attach(late, xdp.Empty), h.Attach(late, xdp.Any)} {
				e := refused(t, err, xdp.ErrConflict)
				if e.Rival == nil || e.Rival.Program.ID != kerneltest.ProgramID(t, mine) || e.Rival.Mode != there {
					t.Errorf("%q does not name the program in %s mode", e, there)
				}
			}
			wantAttached(t, open(t, v, there), mine)
		})
	}
}

func TestAutoReplacesAndDetachesInTheModeInUse(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	generic, auto := open(t, v, xdp.Generic), open(t, v, xdp.Auto)
	one, two := kerneltest.Pass(t, "one", nil), kerneltest.Pass(t, "two", nil)
	attach(t, generic, one)
	if err := auto.Attach(two, xdp.Expect(one)); err != nil {
		t.Fatal(err)
	}
	wantAttached(t, generic, two)
	if err := auto.Detach(xdp.Expect(two)); err != nil {
		t.Fatal(err)
	}
	wantAttached(t, generic, nil)
}

func TestADetachInAnotherModeIsNotCalledADetach(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	generic, native := open(t, v, xdp.Generic), open(t, v, xdp.Native)
	p := kerneltest.Pass(t, "generic", nil)
	attach(t, generic, p)
	for _, expect := range []xdp.Expectation{xdp.Any, xdp.Expect(p)} {
		says(t, refused(t, native.Detach(expect), xdp.ErrNotAttached), "generic mode", "name that mode")
	}
	wantAttached(t, generic, p)
}

func TestADetachOfAnEmptyHookIsNotCalledADetach(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	for _, mode := range []xdp.Mode{xdp.Auto, xdp.Native, xdp.Generic} {
		refused(t, open(t, v, mode).Detach(xdp.Any), xdp.ErrNotAttached)
	}
}
