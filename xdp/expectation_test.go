package xdp_test

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// cast are the programs of an expectation test.
type cast struct {
	there, other, next *ebpf.Program
	thereID, otherID   uint32
	goneID             uint32 // of a program that is no longer loaded
	closed             *ebpf.Program
}

func newCast(t *testing.T) *cast {
	t.Helper()
	c := &cast{
		there:  kerneltest.Pass(t, "there", nil),
		other:  kerneltest.Pass(t, "other", nil),
		next:   kerneltest.Pass(t, "next", nil),
		closed: kerneltest.Pass(t, "closed", nil),
	}
	c.thereID, c.otherID = kerneltest.ProgramID(t, c.there), kerneltest.ProgramID(t, c.other)
	c.goneID = kerneltest.ProgramID(t, c.closed)
	c.closed.Close()
	if !kerneltest.Eventually(func() bool {
		p, err := ebpf.NewProgramFromID(ebpf.ProgramID(c.goneID))
		if err == nil {
			p.Close()
		}
		return err != nil
	}) {
		t.Fatal("a closed program stays loaded")
	}
	return c
}

// expectations are all there are, and what comes of each where the program
// `there` is attached and where nothing is. nil is success.
var expectations = []struct {
	name            string
	expect          func(c *cast) xdp.Expectation
	occupied, empty error
}{
	{"none", func(*cast) xdp.Expectation { return xdp.Expectation{} }, xdp.ErrInvalid, xdp.ErrInvalid},
	{"Empty", func(*cast) xdp.Expectation { return xdp.Empty }, xdp.ErrConflict, nil},
	{"Any", func(*cast) xdp.Expectation { return xdp.Any }, nil, nil},
	{"Expect the program there", func(c *cast) xdp.Expectation { return xdp.Expect(c.there) }, nil, xdp.ErrConflict},
	{"Expect another program", func(c *cast) xdp.Expectation { return xdp.Expect(c.other) }, xdp.ErrConflict, xdp.ErrConflict},
	{"Expect a closed program", func(c *cast) xdp.Expectation { return xdp.Expect(c.closed) }, xdp.ErrInvalid, xdp.ErrInvalid},
	{"Expect nil", func(*cast) xdp.Expectation { return xdp.Expect(nil) }, xdp.ErrInvalid, xdp.ErrInvalid},
	{"ExpectID of the program there", func(c *cast) xdp.Expectation { return xdp.ExpectID(c.thereID) }, nil, xdp.ErrConflict},
	{"ExpectID of another program", func(c *cast) xdp.Expectation { return xdp.ExpectID(c.otherID) }, xdp.ErrConflict, xdp.ErrConflict},
	{"ExpectID of a program that is gone", func(c *cast) xdp.Expectation { return xdp.ExpectID(c.goneID) }, xdp.ErrConflict, xdp.ErrConflict},
	{"ExpectID 0", func(*cast) xdp.Expectation { return xdp.ExpectID(0) }, xdp.ErrInvalid, xdp.ErrInvalid},
}

// outcome checks what came of a change: before stays on an error, and after is
// there on success.
func outcome(t *testing.T, h *xdp.Hook, c *cast, err, want error, before, after *ebpf.Program) {
	t.Helper()
	if want == nil {
		if err != nil {
			t.Fatal(err)
		}
		wantAttached(t, h, after)
		return
	}
	e := refused(t, err, want)
	wantAttached(t, h, before)
	switch {
	case !errors.Is(want, xdp.ErrConflict):
	case before == nil && e.Rival != nil:
		t.Errorf("nothing is attached, and %q names a rival", e)
	case before != nil && (e.Rival == nil || e.Rival.Program.ID != c.thereID):
		t.Errorf("%q does not name the program that is there", e)
	}
}

func TestAnAttachByNetlinkHappensOnlyAsExpected(t *testing.T) {
	kerneltest.NoLeaks(t)
	c := newCast(t)
	for _, x := range expectations {
		t.Run(x.name+", occupied", func(t *testing.T) {
			h := open(t, kerneltest.NewVeth(t), xdp.Native)
			attach(t, h, c.there)
			outcome(t, h, c, h.Attach(c.next, x.expect(c)), x.occupied, c.there, c.next)
		})
		t.Run(x.name+", empty", func(t *testing.T) {
			h := open(t, kerneltest.NewVeth(t), xdp.Native)
			outcome(t, h, c, h.Attach(c.next, x.expect(c)), x.empty, nil, c.next)
		})
	}
}

func TestADetachByNetlinkHappensOnlyAsExpected(t *testing.T) {
	kerneltest.NoLeaks(t)
	c := newCast(t)
	for _, x := range expectations {
		occupied, empty := x.occupied, xdp.ErrNotAttached
		if x.expect(c) == xdp.Empty {
			// Nothing is what a detach can't be about.
			occupied, empty = xdp.ErrInvalid, xdp.ErrInvalid
		}
		if x.name == "none" {
			empty = xdp.ErrInvalid
		}
		t.Run(x.name+", occupied", func(t *testing.T) {
			h := open(t, kerneltest.NewVeth(t), xdp.Native)
			attach(t, h, c.there)
			outcome(t, h, c, h.Detach(x.expect(c)), occupied, c.there, nil)
		})
		t.Run(x.name+", empty", func(t *testing.T) {
			h := open(t, kerneltest.NewVeth(t), xdp.Native)
			outcome(t, h, c, h.Detach(x.expect(c)), empty, nil, nil)
		})
	}
}

func TestAReplaceOfALinkHappensOnlyAsExpected(t *testing.T) {
	kerneltest.NoLeaks(t)
	c := newCast(t)
	for _, x := range expectations {
		want := x.occupied
		if x.expect(c) == xdp.Empty {
			want = xdp.ErrInvalid // a link is never empty
		}
		t.Run(x.name, func(t *testing.T) {
			h := open(t, kerneltest.NewVeth(t), xdp.Native)
			l := attachLink(t, h, c.there)
			err := l.Replace(xdp.ReplaceOptions{Program: c.next, Expect: x.expect(c)})
			outcome(t, h, c, err, want, c.there, c.next)
			if i := info(t, l); i.ProgramID != attached(t, h) {
				t.Errorf("the link has program %d and the hook %d", i.ProgramID, attached(t, h))
			}
		})
	}
}

func TestAReplaceThatFindsAnotherProgramSaysWhatTheLinkRuns(t *testing.T) {
	kerneltest.NoLeaks(t)
	c := newCast(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Generic)
	l := attachLink(t, h, c.there)
	e := refused(t, l.Replace(xdp.ReplaceOptions{Program: c.next, Expect: xdp.Expect(c.other)}), xdp.ErrConflict)
	if r := e.Rival; r == nil || r.LinkID != info(t, l).ID || r.Held != xdp.HeldByLink || r.Mode != xdp.Generic {
		t.Errorf("the rival is %+v, want what link %d runs in generic mode", e.Rival, info(t, l).ID)
	}
}

func TestNothingIsAttachedThatIsNoXDPProgram(t *testing.T) {
	kerneltest.NoLeaks(t)
	c := newCast(t)
	socket := kerneltest.Load(t, "socket", nil).Programs["socket_pass"]
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	l := attachLink(t, h, c.there)
	for name, p := range map[string]*ebpf.Program{"no": nil, "a closed": c.closed, "a socket": socket} {
		t.Run(name+" program", func(t *testing.T) {
			_, err := h.AttachLink(p)
			refused(t, err, xdp.ErrInvalid)
			refused(t, h.Attach(p, xdp.Any), xdp.ErrInvalid)
			refused(t, l.Replace(xdp.ReplaceOptions{Program: p, Expect: xdp.Any}), xdp.ErrInvalid)
			wantAttached(t, h, c.there)
		})
	}
}
