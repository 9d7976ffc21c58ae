package daemontest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Whoever replaces a program by netlink leaves no trace but the kernel's notification:
// each is told, with the old and the new. What links hold is not, although their
// interface changes in other ways.
func TestWhatNetlinkDoesBehindEverybodysBackIsTold(t *testing.T) {
	p := newPlace(t)
	p.stop()
	// It watches its own namespace.
	p.veth.Near.In(t, func() error {
		p.startDaemon()
		return nil
	})
	since := time.Now()
	s, err := p.connect().conn.Stream(t.Context(), wire.Interface+".Watch", wire.Watch{Since: &since, Interface: p.veth.NearName})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	events := make(chan wire.Event)
	go func() {
		defer close(events)
		for {
			var r wire.WatchReply
			if _, err := s.Next(t.Context(), &r); err != nil {
				return
			}
			select {
			case events <- r.Event:
			case <-t.Context().Done():
				return
			}
		}
	}()
	set := func(program *ebpf.Program) {
		t.Helper()
		fd := -1
		if program != nil {
			fd = program.FD()
		}
		if err := p.veth.Near.Conn.SetXDP(p.veth.NearIndex, fd, unix.XDP_FLAGS_DRV_MODE); err != nil {
			t.Fatal(err)
		}
	}
	id := func(program *ebpf.Program) uint32 {
		if program == nil {
			return 0
		}
		return kerneltest.ProgramID(t, program)
	}
	programs := map[string]*ebpf.Program{}
	for _, name := range []string{"first", "one", "two", "three", "linked", "last"} {
		programs[name] = kerneltest.Pass(t, name, nil)
	}
	// It may still be about to listen: what is there by then came before.
	for listening := false; !listening; {
		set(programs["first"])
		set(nil)
		select {
		case <-events:
			listening = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	name := func(program uint32) string {
		for name, p := range programs {
			if id(p) == program {
				return name
			}
		}
		return fmt.Sprint(program)
	}
	// told are the events until the program of that name is detached.
	told := func(last string) (got []string) {
		for {
			var e wire.Event
			select {
			case e = <-events:
			case <-time.After(30 * time.Second):
				t.Fatalf("told %q, and no more", got)
			}
			if e.ProgramID == id(programs["first"]) || e.OldProgramID == id(programs["first"]) {
				continue
			}
			if e.Owner != nil || !strings.Contains(e.Message, "by netlink") {
				t.Errorf("told %+v", e)
			}
			got = append(got, fmt.Sprintf("%s %s %s", e.Kind, name(e.OldProgramID), name(e.ProgramID)))
			if e.ProgramID == 0 && e.OldProgramID == id(programs[last]) {
				return got
			}
		}
	}
	for _, name := range []string{"one", "two", "three", ""} {
		set(programs[name])
	}
	got := told("three")
	hook := find(t, p.veth)
	link, err := hook.AttachLink(programs["linked"])
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	p.veth.Near.Up(t, p.veth.NearName)
	if err := link.Detach(); err != nil {
		t.Fatal(err)
	}
	set(programs["last"])
	set(nil)

	got = append(got, told("last")...)
	want := []string{"attached 0 one", "replaced one two", "replaced two three", "detached three 0", "attached 0 last", "detached last 0"}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("told %q, want %q", got, want)
	}
}

func find(t *testing.T, v *kerneltest.Veth) *xdp.Hook {
	t.Helper()
	ns, err := xdp.OpenNamespace(v.Near.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	h, err := ns.Hook(v.NearName, xdp.Native)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestAConflictIsTold(t *testing.T) {
	p := newPlace(t)
	if err := p.veth.Near.Conn.SetXDP(p.veth.NearIndex, kerneltest.Pass(t, "rival", nil).FD(), unix.XDP_FLAGS_DRV_MODE); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	if err := p.connect().attach("a", "pass"); !errors.Is(err, xdp.ErrConflict) {
		t.Fatalf("attach: %v", err)
	}
	e := p.wantEvent(since, wire.Conflict, "rival")
	if e.Owner == nil || e.Owner.PID != os.Getpid() {
		t.Errorf("told %+v", e)
	}
	if err := p.veth.Near.Conn.SetXDP(p.veth.NearIndex, -1, unix.XDP_FLAGS_DRV_MODE); err != nil {
		t.Fatal(err)
	}
	p.empty()
}
