package xdp_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func isConflict(err error) bool { return errors.Is(err, xdp.ErrConflict) }

func TestAQueryTellsWhatIsAttachedAndHow(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	h := open(t, v, xdp.Native)
	before := time.Now().Add(-2 * time.Second)
	p := kerneltest.Pass(t, "queried", nil)
	s, err := h.Query()
	if err != nil || len(s.Attachments) != 0 || s.At(xdp.Auto) != nil {
		t.Errorf("an empty hook has %+v (%v)", s.Attachments, err)
	}
	if i := s.Interface; i.Name != v.NearName || i.Index != v.NearIndex || i.Kind != "veth" || i.MTU != 1500 || i.Master != 0 {
		t.Errorf("the interface is %+v", i)
	}
	attach(t, h, p)
	a := query(t, h)
	if a == nil || a.Held != xdp.HeldByNetlink || a.LinkID != 0 || a.Mode != xdp.Native {
		t.Fatalf("the hook has %+v, want it attached by netlink in native mode", a)
	}
	if a.Program.Name != "queried" || a.Program.ID != kerneltest.ProgramID(t, p) || len(a.Program.Tag) != 16 || a.Program.UID != 0 {
		t.Errorf("the program is %+v", a.Program)
	}
	if at := a.Program.LoadedAt; at.Before(before) || at.After(time.Now().Add(2*time.Second)) {
		t.Errorf("the program was loaded at %s, want about %s", at, time.Now())
	}
	if err := h.Detach(xdp.Expect(p)); err != nil {
		t.Fatal(err)
	}
	l := attachLink(t, h, p)
	a = query(t, h)
	if a == nil || a.Held != xdp.HeldByLink || a.LinkID != info(t, l).ID {
		t.Errorf("the hook has %+v, want link %d", a, info(t, l).ID)
	}
}

func TestAQueryReadsThreeInterfacesAtOnce(t *testing.T) {
	kerneltest.NoLeaks(t)
	n := kerneltest.NewNetNS(t)
	for i := range 2 {
		if err := n.Conn.AddVeth(fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i), -1); err != nil {
			t.Fatal(err)
		}
	}
	ns := namespace(t, n.Path())
	p := kerneltest.Pass(t, "three", nil)
	owned := attachLink(t, find(t, ns, "a0", xdp.Native), p)
	generic := attachLink(t, find(t, ns, "a1", xdp.Generic), p)
	attach(t, find(t, ns, "b0", xdp.Native), p)
	states, err := ns.States()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range states {
		for _, a := range s.Attachments {
			got[s.Interface.Name] += fmt.Sprintf("%d %s %s %d", a.Program.ID, a.Mode, a.Held, a.LinkID)
		}
	}
	id := kerneltest.ProgramID(t, p)
	want := map[string]string{
		"a0": fmt.Sprintf("%d native link %d", id, info(t, owned).ID),
		"a1": fmt.Sprintf("%d generic link %d", id, info(t, generic).ID),
		"b0": fmt.Sprintf("%d native netlink 0", id),
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("states are %v, want %v", got, want)
	}
	all, err := ns.Interfaces()
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	slices.Sort(names)
	if want := []string{"a0", "a1", "b0", "b1", "lo"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("the interfaces are %v (%v), want %v", names, err, want)
	}
}

// twins are two interfaces of the same index, in two namespaces: links don't
// say which one is theirs.
func twins(t *testing.T) [2]*xdp.Hook {
	t.Helper()
	var hooks [2]*xdp.Hook
	for i := range hooks {
		n := kerneltest.NewNetNS(t)
		if err := n.Conn.AddVethAt(40, "twin", 41, "peer"); err != nil {
			t.Fatal(err)
		}
		hooks[i] = find(t, namespace(t, n.Path()), "twin", xdp.Native)
	}
	return hooks
}

func TestAQueryNeverNamesTheLinkOfATwin(t *testing.T) {
	one, two := "one", "two"
	for name, c := range map[string]struct {
		first, second string // the programs
		byLink        [2]bool
		named         [2]bool
	}{
		"two links, two programs":         {one, two, [2]bool{true, true}, [2]bool{true, true}},
		"two links, one program":          {one, one, [2]bool{true, true}, [2]bool{false, false}},
		"a link and netlink, one program": {one, one, [2]bool{true, false}, [2]bool{true, false}},
		"netlink and a link, one program": {one, one, [2]bool{false, true}, [2]bool{false, true}},
		"netlink twice, one program":      {one, one, [2]bool{false, false}, [2]bool{false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			hooks := twins(t)
			programs := map[string]*ebpf.Program{one: kerneltest.Pass(t, one, nil), two: kerneltest.Pass(t, two, nil)}
			var links [2]*xdp.Link
			for i, p := range []string{c.first, c.second} {
				if c.byLink[i] {
					links[i] = attachLink(t, hooks[i], programs[p])
				} else {
					attach(t, hooks[i], programs[p])
				}
			}
			for i, h := range hooks {
				held, id := xdp.HeldByNetlink, uint32(0)
				if c.byLink[i] {
					held = xdp.HeldByLink
				}
				if c.named[i] {
					id = info(t, links[i]).ID
				}
				if a := query(t, h); a == nil || a.Held != held || a.LinkID != id {
					t.Errorf("twin %d has %+v, want it held by %s, link %d", i, a, held, id)
				}
			}
		})
	}
}

func TestAQueryDuringReplacesNamesTheLinkThatHoldsTheHook(t *testing.T) {
	kerneltest.NoLeaks(t)
	kerneltest.FillDispatcher(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	programs := [2]*ebpf.Program{kerneltest.Pass(t, "odd", nil), kerneltest.Pass(t, "even", nil)}
	l := attachLink(t, h, programs[0])
	id := info(t, l).ID
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := l.Replace(xdp.ReplaceOptions{Program: programs[(n+1)%2], Expect: xdp.Expect(programs[n%2])}); err != nil {
				done <- err
				return
			}
		}
	}()
	unnamed := 0
	const queries = 500
	for range queries {
		a := query(t, h)
		if a == nil || a.Held != xdp.HeldByLink || a.LinkID != 0 && a.LinkID != id {
			t.Errorf("the hook has %+v, want link %d", a, id)
			break
		}
		if a.LinkID == 0 {
			unnamed++
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if unnamed > queries/2 {
		t.Errorf("%d of %d queries did not name the link", unnamed, queries)
	}
}
