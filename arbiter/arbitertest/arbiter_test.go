package arbitertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestASecondAttachIsAConflictThatNamesRecordAndRival(t *testing.T) {
	for _, held := range []string{"owned", "shared"} {
		t.Run(held, func(t *testing.T) {
			p := newPlace(t)
			first := p.attach(p.hook, "filter", held == "shared")
			for _, r := range []arbiter.AttachRequest{
				{Name: "other"},
				{Name: "filter"},
				{Name: "other", Shared: true},
				{Name: "other", Shared: true, Expect: xdp.Any},
				{Name: "other", Shared: true, Expect: xdp.Expect(first.Program)},
			} {
				r.Hook, r.Program = p.hook, load(t, "drop")
				_, err := p.arbiter.Attach(context.Background(), r)
				e := refused(t, err, xdp.ErrConflict)
				if e.Rival == nil || e.Rival.Program.ID != id(t, first) {
					t.Errorf("%q does not name program %d", e, id(t, first))
				}
				var known *arbiter.HeldError
				if !errors.As(err, &known) || known.Record.Name != "filter" || known.Record.Owner.PID != os.Getpid() {
					t.Errorf("%q does not say who attached it", err)
				}
				if !strings.Contains(err.Error(), `Holdfast attached it: "filter", by uid 0`) {
					t.Errorf("%q does not say who attached it", err)
				}
			}
			p.wantAttached(p.hook, first)
			p.wantEntries(1)
			p.detach(p.hook)
			p.wantEntries(0)
		})
	}
}

func TestWhatSomebodyElseAttachedIsTouchedOnlyWhenAskedFor(t *testing.T) {
	for _, by := range []string{"link", "netlink"} {
		t.Run(by, func(t *testing.T) {
			p := newPlace(t)
			theirs, ours := load(t, "pass"), load(t, "drop")
			if by == "link" {
				l, err := p.hook.AttachLink(theirs.Program)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
			} else if err := p.hook.Attach(theirs.Program, xdp.Empty); err != nil {
				t.Fatal(err)
			}
			ctx := context.Background()
			_, attach := p.arbiter.Attach(ctx, arbiter.AttachRequest{Hook: p.hook, Program: ours, Name: "x"})
			_, replace := p.arbiter.Replace(ctx, arbiter.ReplaceRequest{Hook: p.hook, Program: ours, Expect: xdp.Any})
			_, detach := p.arbiter.Detach(ctx, arbiter.DetachRequest{Hook: p.hook})
			_, wrong := p.arbiter.Detach(ctx, arbiter.DetachRequest{Hook: p.hook, Foreign: true, Expect: xdp.Expect(ours.Program)})
			for _, err := range []error{attach, replace, detach, wrong} {
				e := refused(t, err, xdp.ErrConflict)
				if e.Rival == nil || e.Rival.Program.ID != id(t, theirs) {
					t.Errorf("%q does not name program %d", err, id(t, theirs))
				}
				if by == "link" && (len(e.Rival.Holders) != 1 || e.Rival.Holders[0].PID != os.Getpid()) {
					t.Errorf("%q does not name the holder", err)
				}
			}
			_, err := p.arbiter.Detach(ctx, arbiter.DetachRequest{Hook: p.hook, Foreign: true})
			refused(t, err, xdp.ErrInvalid)
			p.wantAttached(p.hook, theirs)
			if st := p.status(p.veth.Near); st.Entry != "" || st.Owner != nil || st.Name != "" {
				t.Errorf("status takes it for Holdfast's: %+v", st)
			}
			p.must(p.arbiter.Detach(ctx, arbiter.DetachRequest{Hook: p.hook, Foreign: true, Expect: xdp.Expect(theirs.Program)}))
			p.wantAttached(p.hook, nil)
			p.wantEntries(0)
		})
	}
}

func TestWhatNetlinkAttachedIsTakenOverAsExpected(t *testing.T) {
	p := newPlace(t)
	theirs, ours := load(t, "pass"), load(t, "drop")
	if err := p.hook.Attach(theirs.Program, xdp.Empty); err != nil {
		t.Fatal(err)
	}
	r := arbiter.AttachRequest{Hook: p.hook, Program: ours, Name: "x", Shared: true, Expect: xdp.Expect(ours.Program)}
	_, err := p.arbiter.Attach(context.Background(), r)
	refused(t, err, xdp.ErrConflict)
	p.wantEntries(0)
	r.Expect = xdp.Expect(theirs.Program)
	p.must(p.arbiter.Attach(context.Background(), r))
	p.wantAttached(p.hook, ours)
	p.detach(p.hook)
	p.wantEntries(0)
}

func TestWhereNothingIsThereIsNothingToReplaceOrDetach(t *testing.T) {
	p := newPlace(t)
	_, err := p.arbiter.Replace(context.Background(), arbiter.ReplaceRequest{Hook: p.hook, Program: load(t, "pass"), Expect: xdp.Any})
	refused(t, err, xdp.ErrNotAttached)
	_, err = p.arbiter.Detach(context.Background(), arbiter.DetachRequest{Hook: p.hook})
	refused(t, err, xdp.ErrNotAttached)
}

func TestAWrongExpectationChangesNothing(t *testing.T) {
	p := newPlace(t)
	there, next := p.attach(p.hook, "filter", false), load(t, "drop")
	_, err := p.arbiter.Replace(context.Background(), arbiter.ReplaceRequest{Hook: p.hook, Program: next, Expect: xdp.Expect(next.Program)})
	refused(t, err, xdp.ErrConflict)
	_, err = p.arbiter.Detach(context.Background(), arbiter.DetachRequest{Hook: p.hook, Expect: xdp.Expect(next.Program)})
	refused(t, err, xdp.ErrConflict)
	p.wantAttached(p.hook, there)
	p.detach(p.hook)
}

func TestAnAttachmentIsFoundWhenItsInterfaceWasRenamed(t *testing.T) {
	p := newPlace(t)
	p.attach(p.hook, "filter", false)
	p.veth.Near.Conn.SetUp(p.veth.NearIndex, false) // a name changes only while it is down, before 6.1 or so
	if err := p.veth.Near.Conn.Rename(p.veth.NearIndex, "renamed"); err != nil {
		t.Fatal(err)
	}
	if st := p.status(p.veth.Near); st.Interface != "renamed" || st.Name != "filter" {
		t.Errorf("status shows %+v", st)
	}
	h := p.at(p.veth.Near, "renamed")
	p.wantAttached(h, p.replace(h))
	p.detach(h)
	p.wantEntries(0)
}

func TestAnAttachmentIsFoundWhereItsInterfaceWent(t *testing.T) {
	for _, held := range []string{"owned", "shared"} {
		t.Run(held, func(t *testing.T) {
			p := newPlace(t)
			p.veth.Near.Name(t, "went"+held)
			there := p.attach(p.hook, "filter", held == "shared")
			elsewhere := kerneltest.NewNetNS(t)
			if err := p.veth.Near.Conn.Move(p.veth.NearIndex, elsewhere.FD()); err != nil {
				t.Fatal(err)
			}
			h := p.at(elsewhere, p.veth.NearName)
			p.Cleanup(func() { elsewhere.Conn.Delete(h.Index()) })
			p.wantAttached(h, there)
			if st := p.status(elsewhere); st.Name != "filter" || st.Entry == "" || st.Program.ID != id(t, there) {
				t.Errorf("status shows %+v", st)
			}
			p.wantAttached(h, p.replace(h))
			p.detach(h)
			p.wantAttached(h, nil)
			p.wantEntries(0)
		})
	}
}

func TestAnInterfaceWithTheIndexOfOneThatMovedAwayIsAnother(t *testing.T) {
	p := newPlace(t)
	moved := p.attach(p.hook, "moved", false)
	elsewhere := kerneltest.NewNetNS(t)
	if err := p.veth.Near.Conn.Move(p.veth.NearIndex, elsewhere.FD()); err != nil {
		t.Fatal(err)
	}
	there := p.at(elsewhere, p.veth.NearName)
	p.Cleanup(func() { elsewhere.Conn.Delete(there.Index()) })
	p.recreate()
	here := p.at(p.veth.Near, p.veth.NearName)
	p.wantAttached(here, nil)
	fresh := p.attach(here, "fresh", false)
	p.wantAttached(there, moved)
	p.wantAttached(here, fresh)
	p.wantEntries(2)
	if stale := p.gc(false); len(stale) > 0 {
		t.Errorf("gc removed %+v", stale)
	}
	if st := p.status(elsewhere); st.Name != "moved" {
		t.Errorf("status of the one that moved is %+v", st)
	}
	if st := p.status(p.veth.Near); st.Name != "fresh" {
		t.Errorf("status of the new one is %+v", st)
	}
	p.detach(there)
	p.wantAttached(here, fresh)
	p.detach(here)
	p.wantEntries(0)
}

// recreate makes an interface with the name and the index of Near.
func (p *place) recreate() {
	p.Helper()
	if err := p.veth.Near.Conn.AddVethAt(p.veth.NearIndex, p.veth.NearName, p.veth.NearIndex+1, "peer"); err != nil {
		p.Fatal(err)
	}
}

func TestTheEntryOfAnInterfaceThatIsGoneIsStale(t *testing.T) {
	for _, held := range []string{"owned", "shared"} {
		t.Run(held, func(t *testing.T) {
			p := newPlace(t)
			p.attach(p.hook, "filter", held == "shared")
			if err := p.veth.Near.Conn.Delete(p.veth.NearIndex); err != nil {
				t.Fatal(err)
			}
			if held == "owned" {
				if st := p.status(p.veth.Near); st.Lifetime != arbiter.Defunct || st.Interface != p.veth.NearName || st.Name != "filter" {
					t.Errorf("status shows %+v", st)
				}
			}
			p.recreate()
			h := p.at(p.veth.Near, p.veth.NearName)
			if h.Index() != p.veth.NearIndex {
				t.Fatalf("the new interface has index %d, want %d", h.Index(), p.veth.NearIndex)
			}
			p.wantAttached(h, nil)
			// Its namespace has no name: gc finds those of processes only.
			if held == "owned" {
				stale := p.gc(true)
				if len(stale) != 1 || stale[0].Name != "filter" || !strings.Contains(stale[0].Why, "gone") {
					t.Errorf("gc would remove %+v", stale)
				}
			}
			p.wantEntries(1)
			fresh := p.attach(h, "fresh", held == "shared")
			p.wantAttached(h, fresh)
			p.wantEntries(1)
			if st := p.status(p.veth.Near); st.Name != "fresh" {
				t.Errorf("status shows %+v", st)
			}
			p.detach(h)
			p.wantEntries(0)
		})
	}
}

func TestGCRemovesWhatAttachesNothingAndNothingElse(t *testing.T) {
	p := newPlace(t)
	p.veth.Near.Name(t, "gctest")
	p.attach(p.hook, "lives", false)
	far := p.at(p.veth.Far, p.veth.FarName)
	p.attach(far, "shared", true)
	if stale := p.gc(false); len(stale) > 0 {
		t.Errorf("gc removed %+v", stale)
	}
	p.wantEntries(2)
	s, err := p.hook.Query()
	if err != nil {
		t.Fatal(err)
	}
	l, err := xdp.OpenID(s.At(xdp.Auto).LinkID)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Detach(), l.Close()); err != nil {
		t.Fatal(err)
	}
	for _, dryRun := range []bool{true, true, false} {
		stale := p.gc(dryRun)
		if len(stale) != 1 || stale[0].Name != "lives" || !strings.Contains(stale[0].Why, "by force") {
			t.Errorf("gc found %+v", stale)
		}
	}
	p.wantEntries(1)
	p.detach(far)
	p.wantEntries(0)
}

func TestGCTellsASharedHookThatWasTakenOver(t *testing.T) {
	p := newPlace(t)
	p.veth.Near.Name(t, "gcshared")
	p.attach(p.hook, "filter", true)
	theirs := load(t, "drop")
	if err := p.hook.Attach(theirs.Program, xdp.Any); err != nil {
		t.Fatal(err)
	}
	if st := p.status(p.veth.Near); st.Name != "" || st.Entry != "" {
		t.Errorf("status takes it for Holdfast's: %+v", st)
	}
	if stale := p.gc(false); len(stale) != 1 || !strings.Contains(stale[0].Why, "another program") {
		t.Errorf("gc found %+v", stale)
	}
	p.wantAttached(p.hook, theirs)
	p.wantEntries(0)
}

func TestTheSameIndexInTwoNamespacesIsTwoHooks(t *testing.T) {
	p := newPlace(t)
	other, h := p.twin()
	if h.Index() != p.hook.Index() {
		t.Fatalf("indexes are %d and %d, want the same", h.Index(), p.hook.Index())
	}
	// The same program too: then the kernel's links can't be told apart.
	same := load(t, "pass")
	for name, hook := range map[string]*xdp.Hook{"here": p.hook, "there": h} {
		p.must(p.arbiter.Attach(context.Background(), arbiter.AttachRequest{Hook: hook, Program: same, Name: name}))
	}
	p.wantEntries(2)
	for name, ns := range map[string]*kerneltest.NetNS{"here": p.veth.Near, "there": other} {
		if st := p.status(ns); st.Name != name {
			t.Errorf("status of %s is %+v", name, st)
		}
	}
	next := p.replace(h)
	p.wantAttached(h, next)
	p.wantAttached(p.hook, same)
	p.detach(p.hook)
	p.wantAttached(p.hook, nil)
	p.wantAttached(h, next)
	p.detach(h)
	p.wantEntries(0)
}

func TestAProgramIsReplacedByItself(t *testing.T) {
	for _, shared := range []bool{false, true} {
		p := newPlace(t)
		l := load(t, "tailcall")
		p.must(p.arbiter.Attach(context.Background(), arbiter.AttachRequest{Hook: p.hook, Program: l, Name: "jumps", Shared: shared}))
		for range 2 {
			p.must(p.arbiter.Replace(context.Background(), arbiter.ReplaceRequest{Hook: p.hook, Program: l, Expect: xdp.Expect(l.Program)}))
			p.wantAttached(p.hook, l)
		}
		// Another program's arrays are never taken for its own.
		array := filepath.Join(p.entry(), fmt.Sprintf("array_%d_0", id(p, l)))
		if err := os.Remove(array); err != nil {
			t.Fatal(err)
		}
		pin(t, array, load(t, "tailcall"), l.ProgramArrays()[0])
		_, err := p.arbiter.Replace(context.Background(), arbiter.ReplaceRequest{Hook: p.hook, Program: l, Expect: xdp.Any})
		if !errors.Is(err, os.ErrExist) {
			t.Errorf("with another array in its place: %v", err)
		}
		p.wantAttached(p.hook, l)
		p.detach(p.hook)
	}
}

func TestProgramArraysLiveAsLongAsTheirProgram(t *testing.T) {
	p := newPlace(t)
	arrays := func() int {
		found, err := filepath.Glob(filepath.Join(p.entry(), "array_*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	l, err := loadObject("tailcall")
	if err != nil {
		t.Fatal(err)
	}
	p.must(p.arbiter.Attach(context.Background(), arbiter.AttachRequest{Hook: p.hook, Program: l, Name: "jumps"}))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := arrays(); n != 1 {
		t.Errorf("%d program arrays are pinned, want 1", n)
	}
	p.replace(p.hook)
	if n := arrays(); n != 0 {
		t.Errorf("%d program arrays are pinned after a replace by a program without, want 0", n)
	}
	p.detach(p.hook)
}

func TestTheLockHasADeadline(t *testing.T) {
	p := newPlace(t)
	impatient := p.open(arbiter.Options{LockTimeout: 20 * time.Millisecond})
	dir, err := os.Open(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	_, attach := impatient.Attach(ctx, arbiter.AttachRequest{Hook: p.hook, Program: load(t, "pass"), Name: "x"})
	_, replace := impatient.Replace(ctx, arbiter.ReplaceRequest{Hook: p.hook, Program: load(t, "pass"), Expect: xdp.Any})
	_, detach := impatient.Detach(ctx, arbiter.DetachRequest{Hook: p.hook})
	_, gc := impatient.GC(ctx, false)
	for _, err := range []error{attach, replace, detach, gc} {
		if !errors.Is(err, arbiter.ErrLockTimeout) || !strings.Contains(err.Error(), "others have been changing") {
			t.Errorf("got %v, want a lock timeout", err)
		}
	}
	if _, err := impatient.Status([]*xdp.Namespace{p.hook.Namespace()}); err != nil {
		t.Errorf("status waits for the lock: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := p.arbiter.GC(canceled, false); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	p.wantEntries(0)
}

func TestANameThatDoesNotFitIsRefusedAndLeavesNothing(t *testing.T) {
	p := newPlace(t)
	_, err := p.arbiter.Attach(context.Background(), arbiter.AttachRequest{
		Hook: p.hook, Program: load(t, "pass"), Name: strings.Repeat("x", 5000),
	})
	if !errors.Is(err, xdp.ErrInvalid) || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
	p.wantAttached(p.hook, nil)
	p.wantEntries(0)
}

func TestASecondPinThatIsTakenIsRefusedAndLeavesNothing(t *testing.T) {
	p := newPlace(t)
	taken := filepath.Join(kerneltest.BPFFS(t), "taken")
	pin(t, taken, load(t, "count"), "packets")
	for path, kind := range map[string]error{taken: xdp.ErrExists, filepath.Join(t.TempDir(), "file"): xdp.ErrInvalid} {
		_, err := p.arbiter.Attach(context.Background(), arbiter.AttachRequest{
			Hook: p.hook, Program: load(t, "pass"), Name: "x", PersistAs: path,
		})
		refused(t, err, kind)
		p.wantAttached(p.hook, nil)
		p.wantEntries(0)
	}
	if _, err := os.Stat(taken); err != nil {
		t.Errorf("what was pinned there is gone: %v", err)
	}
}

// changeRecord changes what Holdfast wrote of its only entry.
func (p *place) changeRecord(change func(map[string]any)) {
	p.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.entry(), "record"), nil)
	if err != nil {
		p.Fatal(err)
	}
	defer m.Close()
	var b []byte
	if err := m.Lookup(uint32(0), &b); err != nil {
		p.Fatal(err)
	}
	record := map[string]any{}
	if err := json.Unmarshal([]byte(strings.TrimRight(string(b), "\x00")), &record); err != nil {
		p.Fatal(err)
	}
	change(record)
	changed, err := json.Marshal(record)
	if err != nil {
		p.Fatal(err)
	}
	if err := m.Put(uint32(0), append(changed, make([]byte, len(b)-len(changed))...)); err != nil {
		p.Fatal(err)
	}
}

func TestWhatHoldfastDidNotMakeIsLeftAloneInItsState(t *testing.T) {
	foreign := func(t *testing.T, path string) { pin(t, path, load(t, "count"), "packets") }
	for _, c := range []struct {
		name string
		// spoil changes the state, which has one attachment.
		spoil func(p *place)
		says  string
	}{
		{"a record of a newer version", func(p *place) {
			p.changeRecord(func(r map[string]any) { r["version"] = 99 })
		}, "the record is of version 99"},
		{"another map as the record", func(p *place) {
			path := filepath.Join(p.entry(), "record")
			if err := os.Remove(path); err != nil {
				p.Fatal(err)
			}
			foreign(p.T, path)
		}, "pinned as the record is another map"},
		{"a record that can't be read", func(p *place) {
			p.changeRecord(func(r map[string]any) { r["since"] = "yesterday" })
		}, "the record can't be read"},
		{"a map as the link", func(p *place) {
			path := filepath.Join(p.entry(), "link")
			if err := os.Rename(path, path+"_before"); err != nil {
				p.Fatal(err)
			}
			foreign(p.T, path)
		}, "pinned as the link is no XDP link"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			there := p.attach(p.hook, "filter", false)
			c.spoil(p)
			ctx := context.Background()
			_, attach := p.arbiter.Attach(ctx, arbiter.AttachRequest{Hook: p.hook, Program: load(t, "drop"), Name: "x"})
			_, replace := p.arbiter.Replace(ctx, arbiter.ReplaceRequest{Hook: p.hook, Program: load(t, "drop"), Expect: xdp.Any})
			_, detach := p.arbiter.Detach(ctx, arbiter.DetachRequest{Hook: p.hook})
			for _, err := range []error{attach, replace, detach} {
				if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), p.entry()) {
					t.Errorf("got %v, want an error that says %q and where", err, c.says)
				}
			}
			if stale := p.gc(false); len(stale) > 0 {
				t.Errorf("gc removed %+v", stale)
			}
			if st := p.status(p.veth.Near); st.Program.ID != id(t, there) || st.Entry != "" {
				t.Errorf("status shows %+v", st)
			}
			p.wantAttached(p.hook, there)
			p.wantEntries(1)
			if !strings.Contains(strings.Join(p.said, "\n"), c.says) {
				t.Errorf("the log says %q", p.said)
			}
			// Others are not in its way.
			far := p.at(p.veth.Far, p.veth.FarName)
			p.attach(far, "other", false)
			p.detach(far)
		})
	}
}

func TestDirectoriesOfOthersAreNoEntries(t *testing.T) {
	p := newPlace(t)
	kept := []string{"ip", "xdp", "globals", "c1", "moved"}
	for _, name := range kept {
		if err := os.Mkdir(filepath.Join(p.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	pin(t, filepath.Join(p.dir, "c1", "record"), load(t, "count"), "packets")
	p.attach(p.hook, "filter", false)
	p.detach(p.hook)
	if stale := p.gc(false); len(stale) > 0 {
		t.Errorf("gc removed %+v", stale)
	}
	p.wantEntries(len(kept))
}

func TestAnEntryWithoutRecordIsStillDetached(t *testing.T) {
	p := newPlace(t)
	p.attach(p.hook, "filter", false)
	if err := os.Remove(filepath.Join(p.entry(), "record")); err != nil {
		t.Fatal(err)
	}
	_, err := p.arbiter.Replace(context.Background(), arbiter.ReplaceRequest{Hook: p.hook, Program: load(t, "drop"), Expect: xdp.Any})
	if err == nil || !strings.Contains(err.Error(), "record of the attachment is missing") {
		t.Errorf("got %v", err)
	}
	p.detach(p.hook)
	p.wantAttached(p.hook, nil)
	p.wantEntries(0)
}

const (
	contenders = 2
	rounds     = 50
)

// contend attaches once for every byte that it reads, and says what came of it.
func contend(args []string) int {
	netns, name, dir, own := args[0], args[1], args[2], args[3]
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "contender:", err)
		return 1
	}
	ns, err := xdp.OpenNamespace(netns)
	if err != nil {
		return fail(err)
	}
	h, err := ns.Hook(name, xdp.Auto)
	if err != nil {
		return fail(err)
	}
	l, err := loadObject("pass")
	if err != nil {
		return fail(err)
	}
	a, err := arbiter.Open(arbiter.Options{Dir: dir})
	if err != nil {
		return fail(err)
	}
	for gate := make([]byte, 1); ; {
		if _, err := os.Stdin.Read(gate); err != nil {
			return 0
		}
		ack, err := a.Attach(context.Background(), arbiter.AttachRequest{Hook: h, Program: l, Name: own})
		var known *arbiter.HeldError
		switch {
		case err == nil:
			if err := ack(); err != nil {
				return fail(err)
			}
			fmt.Println("won")
		case errors.As(err, &known):
			fmt.Println(known.Record.Name)
		default:
			return fail(err)
		}
	}
}

func TestOfTwoProcessesThatAttachAtOnceOneWinsAndTheOtherIsToldWho(t *testing.T) {
	p := newPlace(t)
	names := [contenders]string{"first", "second"}
	// A gate for each: of one that both read, the quicker could take both bytes.
	var both [contenders]*kerneltest.Process
	for i, name := range names {
		both[i] = kerneltest.Start(t, kerneltest.Command("contend", p.veth.Near.Path(), p.veth.NearName, p.dir, name))
	}
	wins := map[string]int{}
	for round := range rounds {
		for _, c := range both {
			if _, err := c.Input.Write([]byte{0}); err != nil {
				t.Fatal(err)
			}
		}
		winner, told := "", []string{}
		for i, c := range both {
			if !c.Lines.Scan() {
				t.Fatalf("round %d: contender %s said nothing", round, names[i])
			}
			if c.Lines.Text() != "won" {
				told = append(told, c.Lines.Text())
				continue
			}
			if winner != "" {
				t.Fatalf("round %d: both won", round)
			}
			winner = names[i]
		}
		if winner == "" || len(told) != 1 || told[0] != winner {
			t.Fatalf("round %d: %q won, and the other was told %q", round, winner, told)
		}
		wins[winner]++
		p.wantEntries(1)
		p.detach(p.hook)
	}
	t.Logf("wins: %v", wins)
	t.Logf("COUNT race rounds %d", rounds)
}

// twin makes an interface with Near's name and index in another namespace.
func (p *place) twin() (*kerneltest.NetNS, *xdp.Hook) {
	p.Helper()
	other := kerneltest.NewNetNS(p)
	if err := other.Conn.AddVethAt(p.veth.NearIndex, p.veth.NearName, p.veth.NearIndex+1, "peer"); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { other.Conn.Delete(p.veth.NearIndex) })
	return other, p.at(other, p.veth.NearName)
}

func TestTheTwinOfAnAttachmentInAnotherNamespaceIsSomebodyElses(t *testing.T) {
	for _, held := range []string{"owned", "shared"} {
		t.Run(held, func(t *testing.T) {
			p := newPlace(t)
			p.veth.Near.Name(t, "twin"+held)
			other, twin := p.twin()
			same := load(t, "pass")
			p.must(p.arbiter.Attach(context.Background(), arbiter.AttachRequest{Hook: p.hook, Program: same, Name: "ours", Shared: held == "shared"}))
			if held == "shared" {
				if err := twin.Attach(same.Program, xdp.Empty); err != nil {
					t.Fatal(err)
				}
			} else {
				link, err := twin.AttachLink(same.Program)
				if err != nil {
					t.Fatal(err)
				}
				defer link.Close()
			}
			if st := p.status(other); st.Name != "" || st.Entry != "" {
				t.Errorf("status takes the twin for Holdfast's: %+v", st)
			}
			_, err := p.arbiter.Detach(context.Background(), arbiter.DetachRequest{Hook: twin})
			refused(t, err, xdp.ErrConflict)
			_, err = p.arbiter.Replace(context.Background(), arbiter.ReplaceRequest{Hook: twin, Program: load(t, "drop"), Expect: xdp.Any})
			refused(t, err, xdp.ErrConflict)
			p.wantAttached(twin, same)
			p.wantAttached(p.hook, same)
			p.wantEntries(1)
			p.detach(p.hook)
			p.wantAttached(twin, same)
		})
	}
}

func TestADetachThatIsAcknowledgedLateLeavesWhatWasAttachedMeanwhile(t *testing.T) {
	for _, held := range []string{"owned", "shared"} {
		t.Run(held, func(t *testing.T) {
			p := newPlace(t)
			p.attach(p.hook, "old", held == "shared")
			late, err := p.arbiter.Detach(context.Background(), arbiter.DetachRequest{Hook: p.hook})
			if err != nil {
				t.Fatal(err)
			}
			fresh := p.attach(p.hook, "new", held == "shared")
			if err := late(); err != nil {
				t.Fatal(err)
			}
			p.wantAttached(p.hook, fresh)
			if st := p.status(p.veth.Near); st.Name != "new" {
				t.Errorf("status shows %+v", st)
			}
			p.detach(p.hook)
			p.wantEntries(0)
		})
	}
}

func TestWhoMayNotAskHowAProgramIsHeldChangesNothing(t *testing.T) {
	p := newPlace(t)
	p.veth.Near.Name(t, "unasked")
	ours := p.attach(p.hook, "ours", true)
	cmd := kerneltest.Command("sweep and detach", p.veth.Near.Path(), p.veth.NearName, p.dir)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_BPF, unix.CAP_SYS_PTRACE, unix.CAP_DAC_OVERRIDE}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if want := "gc 0\ndetach not permitted\n"; string(out) != want {
		t.Errorf("without CAP_NET_ADMIN: %q, want %q", out, want)
	}
	p.wantAttached(p.hook, ours)
	p.wantEntries(1)
	p.detach(p.hook)
}

// sweepAndDetach collects garbage and detaches, and says what came of it.
func sweepAndDetach(args []string) int {
	netns, name, dir := args[0], args[1], args[2]
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ns, err := xdp.OpenNamespace(netns)
	if err != nil {
		return fail(err)
	}
	h, err := ns.Hook(name, xdp.Auto)
	if err != nil {
		return fail(err)
	}
	a, err := arbiter.Open(arbiter.Options{Dir: dir})
	if err != nil {
		return fail(err)
	}
	stale, err := a.GC(context.Background(), false)
	if err != nil {
		return fail(err)
	}
	fmt.Println("gc", len(stale))
	_, err = a.Detach(context.Background(), arbiter.DetachRequest{Hook: h})
	var refused *xdp.Error
	if !errors.As(err, &refused) {
		return fail(fmt.Errorf("detach: %w", err))
	}
	fmt.Println("detach", refused.Err)
	return 0
}

func TestAnArbiterForLookingChangesNothing(t *testing.T) {
	p := newPlace(t)
	_, err := arbiter.Stateless(arbiter.Options{}).Attach(context.Background(), arbiter.AttachRequest{Hook: p.hook, Program: load(t, "pass")})
	refused(t, err, xdp.ErrInvalid)
	p.wantAttached(p.hook, nil)
}

func TestASecondPinIsRemovedFromWhereverTheDetachIsAsked(t *testing.T) {
	p := newPlace(t)
	t.Chdir(p.dir)
	p.must(p.arbiter.Attach(context.Background(), arbiter.AttachRequest{Hook: p.hook, Program: load(t, "pass"), Name: "two pins", PersistAs: "second"}))
	if _, err := os.Stat(filepath.Join(p.dir, "second")); err != nil {
		t.Fatal(err)
	}
	t.Chdir("/")
	p.detach(p.hook)
	if _, err := os.Stat(filepath.Join(p.dir, "second")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the second pin is left: %v", err)
	}
}
