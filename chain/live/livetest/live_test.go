package livetest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestADispatcherWithoutMembersPassesEveryPacket(t *testing.T) {
	kerneltest.NoLeaks(t)
	b := newBench(t, live.Options{})
	b.want(pass)
	// Empty slots change nothing, and are all called: nothing ends the chain.
	var firsts []live.Slot
	for p := range live.Places {
		firsts = append(firsts, live.Slot(2*p))
	}
	b.commit(firsts...)
	b.want(pass)
	for i := range firsts {
		firsts[i] = firsts[i].Twin()
		b.proceedOn(firsts[i])
	}
	b.commit(firsts...)
	b.want(pass)
}

func TestWithoutFreplaceTheAnswerSaysSo(t *testing.T) {
	kerneltest.NoLeaks(t)
	b := newBench(t, live.Options{})
	m, err := b.tryMember("walker", 1, pass)
	if err == nil {
		m.Close()
		return // The kernel takes extensions, and the other tests are about that.
	}
	if !errors.Is(err, object.ErrExtension) || !errors.Is(err, object.ErrNotSupported) {
		t.Error(err)
	}
	_, err = b.Attach(0, kernel.FD(kerneltest.Pass(t, "plain", nil).FD()))
	refused(t, err, xdp.ErrInvalid, "no extension")
}

func TestMembersAreMetInTheOrderOfTheirSlots(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	for slot := range live.Slot(2 * live.Places) {
		b.member(slot)
	}
	for name, slots := range map[string][]live.Slot{
		"one":                                    {0},
		"a twin":                                 {1},
		"neighbours":                             {0, 2},
		"twins":                                  {1, 3},
		"the last":                               {62},
		"the last twin":                          {63},
		"the first and the last":                 {0, 63},
		"the middle":                             {31, 32},
		"the ends of the halves":                 {1, 30, 33, 62},
		"one in each eight":                      {9, 20, 46, 58},
		"a free place in between":                {2, 6, 10, 14, 18, 22, 26, 30, 34, 38},
		"the ends of the eights":                 {0, 15, 16, 31, 32, 47, 48, 63},
		"the starts of the eights, and one more": {0, 16, 32, 48, 50},
	} {
		for _, masked := range []bool{false, true} {
			var numbers []int
			for _, s := range slots {
				numbers = append(numbers, int(s))
			}
			b.commit()
			b.await()
			// A mask that changes nothing here, of one of them, is another way
			// through the dispatcher.
			b.proceedOn(slots[0], chain.Pass)
			if masked {
				b.proceedOn(slots[0], chain.Pass, chain.Tx)
			}
			b.commit(slots...)
			if met, action := b.run(); action != pass || !slices.Equal(met, numbers) {
				t.Errorf("%s, masked %t: a packet met %v and came out as %d, want %v", name, masked, met, action, numbers)
			}
		}
	}
	all := func(twin live.Slot) (slots []live.Slot, numbers []int) {
		for p := range live.Places {
			s := live.Slot(2*p) + twin
			slots, numbers = append(slots, s), append(numbers, int(s))
		}
		return slots, numbers
	}
	for twin := range live.Slot(2) {
		slots, numbers := all(twin)
		b.commit(slots...)
		b.want(pass, numbers...)
	}
}

// What the members return is a number of 32 bits.
var results = []uint32{0, 1, 2, 3, 4, 5, 31, 34, 66, 256, 258, 0x7fffffff, 0x80000000, math.MaxUint32}

func TestTheChainGoesOnAfterTheActionsOfTheMask(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	// Two of four members are under test, one in each half and of each sort of
	// twin, the others have the default mask.
	const first, second, third, fourth = 0, 13, 37, 62
	b.member(second)
	b.member(fourth)
	for _, result := range results {
		b.commit()
		one := b.attach(first, b.load("walker", first, result))
		three := b.attach(third, b.load("walker", third, result))
		for mask := range chain.Actions(32) {
			b.commit()
			// No packet is in a slot now: run waits for its own.
			for _, s := range []live.Slot{first, third} {
				if err := b.SetProceedOn(s, mask); err != nil {
					t.Fatal(err)
				}
			}
			goesOn := result <= 4 && mask.Has(chain.Action(result))
			b.commit(first, second, third, fourth)
			if goesOn {
				b.want(pass, first, second, third, fourth)
			} else {
				b.want(result, first)
			}
			b.commit(second, third, fourth)
			if goesOn {
				b.want(pass, second, third, fourth)
			} else {
				b.want(result, second, third)
			}
		}
		b.commit()
		one.Close()
		three.Close()
	}
}

func TestTheLastMembersGoingOnIsXDPPass(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	b.returning(4, uint32(chain.Drop))
	b.proceedOn(4, chain.Drop)
	b.commit(4)
	b.want(pass, 4)
}

func TestWhatReturnsTheValueOfAnEmptySlotGoesOn(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	b.returning(0, live.Empty)
	b.returning(2, live.Empty)
	b.member(4)
	b.proceedOn(2)
	b.commit(0, 2, 4)
	b.want(pass, 0, 2, 4)
	b.commit(0, 4)
	b.want(pass, 0, 4)
}

func TestManyMembersChangeInOneCommit(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	for _, s := range []live.Slot{0, 2, 4} {
		b.member(s)
	}
	b.commit(0, 2, 4)
	b.want(pass, 0, 2, 4)
	// One is replaced, one gets another mask, one leaves and one joins.
	b.member(1)
	b.returning(3, uint32(chain.Drop))
	b.proceedOn(3, chain.Drop)
	b.member(40)
	b.want(pass, 0, 2, 4)
	b.commit(1, 3, 40)
	b.want(pass, 1, 3, 40)
}

func TestAPacketMeetsWhatWasEnabledWhenItCame(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	// One in each half of the word, and one on either way through the dispatcher.
	old, new := []live.Slot{0, 20, 40, 62}, []live.Slot{1, 21, 40, 63}
	for _, s := range []live.Slot{0, 1, 20, 21, 40, 62, 63} {
		b.member(s)
	}
	b.proceedOn(21, chain.Pass, chain.Tx)
	b.commit(old...)
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for enabled := [][]live.Slot{new, old}; ; slices.Reverse(enabled) {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := b.Commit(live.SetOf(enabled[0]...)); err != nil {
				done <- err
				return
			}
		}
	}()
	// Until both were met, which takes as long as the other thread is kept waiting;
	// the bound is for a chain that never changes.
	seen := map[string]int{}
	for n := 0; n < 2000 || len(seen) < 2 && n < 5_000_000; n++ {
		met, _ := b.run()
		seen[fmt.Sprint(met)]++
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, slots := range [][]live.Slot{old, new} {
		var numbers []int
		for _, s := range slots {
			numbers = append(numbers, int(s))
		}
		if seen[fmt.Sprint(numbers)] == 0 {
			t.Errorf("no packet met %v", numbers)
		}
		delete(seen, fmt.Sprint(numbers))
	}
	if len(seen) > 0 {
		t.Errorf("packets met %v", seen)
	}
}

func TestATakenSlotIsGivenToNobody(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	mine, other := b.load("walker", 1, pass), b.load("walker", 2, pass)
	link := b.attach(6, mine)
	b.attach(8, mine)

	_, err := b.Attach(6, other)
	refused(t, err, live.ErrSlotTaken)
	refused(t, err, xdp.ErrConflict)
	_, err = b.Attach(6, mine)
	refused(t, err, live.ErrSlotTaken)
	if s := b.state(); s.Told {
		refused(t, err, unix.EBUSY, fmt.Sprintf("link %d", s.Members[6].LinkID))
	}
	// Whoever does without this package is not given it either: with the target
	// named, and without, where the other one was loaded for slot 0.
	functions := b.functions()
	if _, err := kernel.LinkCreateExtension(int(other), b.Program().FD(), functions[6]); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a raw attach to slot 6: %v", err)
	}
	b.attach(0, mine)
	if _, err := kernel.LinkCreateExtension(int(other), 0, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a raw attach to the slot that it was loaded for: %v", err)
	}
	b.commit(6, 8)
	b.want(pass, 1, 1)

	link.Close()
	if !kerneltest.Eventually(func() bool { met, _ := b.run(); return slices.Equal(met, []int{1}) }) {
		t.Error("the slot is not empty when its link is closed")
	}
	_, err = b.Attach(6, other)
	refused(t, err, live.ErrEnabled)
	b.commit(8)
	b.await()
	b.attach(6, other)
	b.commit(6, 8)
	b.want(pass, 2, 1)
}

func (b *bench) state() live.State {
	b.Helper()
	s, err := b.Read()
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// functions are the type ids of the slots' functions, found without package live.
func (b *bench) functions() map[live.Slot]uint32 {
	b.Helper()
	info, err := b.Program().Info()
	if err != nil {
		b.Fatal(err)
	}
	id, _ := info.BTFID()
	handle, err := btf.NewHandleFromID(id)
	if err != nil {
		b.Fatal(err)
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		b.Fatal(err)
	}
	functions := map[live.Slot]uint32{}
	for slot := range live.Slot(2 * live.Places) {
		var f *btf.Func
		if err := types.TypeByName(b.Extension(slot).Function, &f); err != nil {
			b.Fatal(err)
		}
		id, err := types.TypeID(f)
		if err != nil {
			b.Fatal(err)
		}
		functions[slot] = uint32(id)
	}
	return functions
}

// hold is a process that attaches the program on descriptor 3 to a slot of a
// running dispatcher and holds the link until it is killed.
func hold(args []string) int {
	err := func() error {
		id, err := strconv.ParseUint(args[0], 10, 32)
		if err != nil {
			return err
		}
		slot, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		d, err := live.Open(uint32(id))
		if err != nil {
			return err
		}
		if _, err := d.Attach(live.Slot(slot), 3); err != nil {
			return err
		}
		// Nothing is left in this process but the link.
		if err := errors.Join(d.Close(), kernel.FD(3).Close()); err != nil {
			return err
		}
		fmt.Println("attached")
		// Not by a select, which the runtime ends as a deadlock.
		for {
			_ = unix.Pause()
		}
	}()
	fmt.Println(err)
	return 1
}

func TestASlotWhoseHolderIsKilledIsEmptyAndTheOthersGoOn(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	b.member(0)
	b.member(4)
	for name, action := range map[string]chain.Action{"by default": chain.Pass, "with a mask": chain.Drop} {
		b.commit()
		b.await()
		b.proceedOn(2, action)
		program, err := b.tryMember("walker", 2, uint32(action))
		if err != nil {
			t.Fatal(err)
		}
		cmd := kerneltest.Command("hold", fmt.Sprint(b.ID()), "2")
		fd, err := kernel.FD(program.Program.FD()).Dup()
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "program")
		cmd.ExtraFiles = []*os.File{file}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		line, err := bufio.NewReader(out).ReadString('\n')
		if line != "attached\n" {
			t.Fatalf("the holder says %q (%v)", line, err)
		}
		// The link is held by nobody else.
		file.Close()
		program.Close()

		b.commit(0, 2, 4)
		b.want(pass, 0, 2, 4)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // "signal: killed"
		if !kerneltest.Eventually(func() bool { met, _ := b.run(); return slices.Equal(met, []int{0, 4}) }) {
			met, action := b.run()
			t.Fatalf("%s: after the holder was killed a packet met %v and came out as %d", name, met, action)
		}
		b.want(pass, 0, 4)
		if s := b.state(); s.Told && s.Members[2] != (live.Occupant{}) {
			t.Errorf("%s: slot 2 has %+v still", name, s.Members[2])
		}
	}
}

func TestOneExtensionIsInSeveralDispatchers(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	other := &bench{T: t, Dispatcher: load(t, live.Options{}), trail: b.trail}
	program := b.load("walker", 7, pass)
	// It was loaded for slot 0 of the first. That may be gone, too.
	b.attach(5, program)
	other.attach(60, program)
	other.attach(3, program)
	b.commit(5)
	other.commit(3, 60)
	b.want(pass, 7)
	other.want(pass, 7, 7)
	b.Close()
	other.want(pass, 7, 7)
	other.commit()
	other.await()
	other.attach(0, program)
	other.commit(0)
	other.want(pass, 7)
}

func TestARunningDispatcherIsReadAndChangedByAnotherHandle(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	b.member(0)
	b.returning(33, uint32(chain.Tx))
	b.proceedOn(33, chain.Tx, chain.Redirect)
	b.proceedOn(40)
	b.commit(0, 33)

	again, err := live.Open(b.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.ID() != b.ID() || again.Frags() || again.DeviceBound() {
		t.Errorf("program %d, frags %t, bound %t", again.ID(), again.Frags(), again.DeviceBound())
	}
	s, err := again.Read()
	if err != nil {
		t.Fatal(err)
	}
	if s.Enabled != live.SetOf(0, 33) || again.Enabled() != s.Enabled {
		t.Errorf("%s and %s are enabled", s.Enabled, again.Enabled())
	}
	for slot, got := range s.ProceedOn {
		want := chain.DefaultProceedOn
		switch slot {
		case 33:
			want = chain.Set(chain.Tx, chain.Redirect)
		case 40:
			want = 0
		}
		if got != want {
			t.Errorf("slot %d goes on after %q, want %q", slot, got, want)
		}
	}
	if s.Told {
		if len(s.Members) != 2 || s.Members[0].ProgramID == s.Members[33].ProgramID || s.Taken() != live.SetOf(0, 33) {
			t.Errorf("the members are %+v", s.Members)
		}
		for slot, m := range s.Members {
			l, err := kernel.LinkByID(m.LinkID)
			if err != nil {
				t.Fatal(err)
			}
			info, err := kernel.ReadExtensionLink(l)
			l.Close()
			if err != nil || info.ProgID != m.ProgramID || info.TargetID != b.ID() || info.Function != b.functions()[slot] {
				t.Errorf("link %d is %+v (%v)", m.LinkID, info, err)
			}
		}
	}
	// Where a mask was set by one handle, the other counts with it.
	other := &bench{T: t, Dispatcher: again, trail: b.trail}
	other.returning(32, uint32(chain.Drop))
	other.proceedOn(32, chain.Drop)
	other.commit(0, 32)
	b.want(pass, 0, 32)
	if b.Enabled() != live.SetOf(0, 32) {
		t.Errorf("%s is enabled", b.Enabled())
	}
}

func TestTheKernelTellsWhoIsInASlotFrom513On(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	if !b.state().Told {
		t.Error("without members there is nothing to tell")
	}
	b.member(9)
	s := b.state()
	if !s.Told {
		t.Skip("the kernel does not tell what an extension is attached to")
	}
	if len(s.Members) != 1 || s.Members[9] == (live.Occupant{}) {
		t.Errorf("the members are %+v", s.Members)
	}
}

func TestAnotherProgramIsNoDispatcher(t *testing.T) {
	kerneltest.NoLeaks(t)
	for _, p := range []*ebpf.Program{
		kerneltest.Pass(t, "plain", nil),
		kerneltest.Pass(t, "xdp_dispatcher", nil),
		kerneltest.Pass(t, "holdfast_live", nil), // has no BTF
		kerneltest.Pass(t, "holdfast_live", func(p *ebpf.ProgramSpec) {
			p.Type, p.AttachType = ebpf.SocketFilter, ebpf.AttachNone
			p.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
		}),
	} {
		_, err := live.Open(kerneltest.ProgramID(t, p))
		refused(t, err, live.ErrNotDispatcher)
	}
	_, err := live.Open(math.MaxInt32)
	refused(t, err, xdp.ErrNotFound)
}

func TestADispatcherOfAnotherLayoutIsLeftAlone(t *testing.T) {
	kerneltest.NoLeaks(t)
	// A program with a map that begins as the state of a dispatcher does.
	made := func(magic, layout, size, flags uint32) uint32 {
		state := make([]byte, size)
		binary.NativeEndian.PutUint32(state, magic)
		binary.NativeEndian.PutUint32(state[4:], layout)
		m, err := ebpf.NewMap(&ebpf.MapSpec{
			Type: ebpf.Array, KeySize: 4, ValueSize: size, MaxEntries: 1, Flags: flags,
			Contents: []ebpf.MapKV{{Key: uint32(0), Value: state}},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return kerneltest.ProgramID(t, kerneltest.Pass(t, "holdfast_live", func(p *ebpf.ProgramSpec) {
			p.Instructions = append(asm.Instructions{asm.LoadMapPtr(asm.R1, m.FD())}, p.Instructions...)
		}))
	}
	const magic = 0x48464c56
	_, err := live.Open(made(magic, 9, 1024, unix.BPF_F_MMAPABLE))
	refused(t, err, live.ErrLayout, "layout 9", "knows 2")
	refused(t, err, xdp.ErrNotSupported)
	_, err = live.Open(made(magic+1, 1, 1024, unix.BPF_F_MMAPABLE))
	refused(t, err, live.ErrNotDispatcher, "something else")
	for _, id := range []uint32{made(magic, 1, 16, unix.BPF_F_MMAPABLE), made(magic, 1, 1024, 0)} {
		_, err = live.Open(id)
		refused(t, err, live.ErrNotDispatcher, "another map")
	}
}

func TestASlotThatIsEnabledIsNotChanged(t *testing.T) {
	kerneltest.NoLeaks(t)
	b := newBench(t, live.Options{})
	b.commit(7)
	refused(t, b.SetProceedOn(7, 0), live.ErrEnabled, "twin")
	_, err := b.Attach(7, kernel.FD(b.Program().FD()))
	refused(t, err, live.ErrEnabled, "twin")
	refused(t, b.Commit(live.SetOf(0, 6, 7)), xdp.ErrInvalid, "slot 6", "its twin")
	for _, slot := range []live.Slot{live.NoSlot, 64} {
		refused(t, b.SetProceedOn(slot, 0), xdp.ErrInvalid, "slots 0 to 63")
	}
	refused(t, b.SetProceedOn(6, 1<<5), xdp.ErrInvalid)
	if got := b.Enabled(); got != live.SetOf(7) {
		t.Errorf("%s is enabled", got)
	}
}

func TestMembersThatChangePacketsLoad(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{})
	for i, program := range []string{"grows_head", "cuts_tail", "leaves_meta", "walker_frags"} {
		b.attach(live.Slot(2*i), b.load(program, i, pass))
	}
	b.commit(0, 2, 4, 6)
	b.want(pass, 0, 1, 2, 3)
	// Whether what comes out has the metadata depends on the kernel.
	b.commit(0, 2, 6)
	action, data, err := b.Program().Test(make([]byte, 64))
	if err != nil || action != pass || len(data) != 64+8-1 {
		t.Errorf("the packet came out as %d, of %d bytes: %v", action, len(data), err)
	}
}

func TestADispatcherForFragmentsIsKnownAsOne(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t, live.Options{Frags: true})
	for i, program := range []string{"walker_frags", "walker", "cuts_tail"} {
		b.attach(live.Slot(2*i), b.load(program, i, pass))
	}
	b.commit(0, 2, 4)
	b.want(pass, 0, 1, 2)
	again, err := live.Open(b.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Frags() != b.Frags() {
		t.Errorf("opened anew it is %t, was %t", again.Frags(), b.Frags())
	}
	if !b.Frags() {
		t.Skip("the kernel knows no packets of several buffers")
	}
	// The kernel lets it have an interface whose packets don't fit into a page.
	v := kerneltest.NewVeth(t)
	if err := v.Far.Conn.SetMTU(v.FarIndex, 9000); err != nil {
		t.Fatal(err)
	}
	ns, err := xdp.OpenNamespace(v.Near.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	hook, err := ns.Hook(v.NearName, xdp.Native)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hook.AttachLink(load(t, live.Options{}).Program()); !errors.Is(err, xdp.ErrMTU) {
		t.Errorf("a dispatcher that takes no fragments: %v", err)
	}
	link, err := hook.AttachLink(b.Program())
	if err != nil {
		t.Fatal(err)
	}
	link.Close()
}

func TestADispatcherIsBoundToADevice(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	v := kerneltest.NewVeth(t)
	bind := func() (d *live.Dispatcher, err error) {
		v.Near.In(t, func() error {
			d, err = live.Load(live.Options{Ifindex: v.NearIndex})
			return nil
		})
		return d, err
	}
	d, err := bind()
	if errors.Is(err, xdp.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	bound, err := kernel.DeviceBound(d.Program().FD())
	if err != nil || !bound || !d.DeviceBound() {
		t.Errorf("it is bound: %t, says %t (%v)", bound, d.DeviceBound(), err)
	}
	b := &bench{T: t, Dispatcher: d, trail: newTrail(t)}
	member := b.load("walker", 1, pass)
	b.attach(0, member)
	// What was loaded for it may use what only the device has, so it goes nowhere
	// else. Others may join it.
	plain := &bench{T: t, Dispatcher: load(t, live.Options{}), trail: b.trail}
	_, err = plain.Attach(0, member)
	refused(t, err, xdp.ErrInvalid)
	b.attach(2, plain.load("walker", 2, pass))
}
