package libxdptest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestWithoutFreplaceTheAnswerSaysSo(t *testing.T) {
	kerneltest.NoLeaks(t)
	b := newBench(t)
	_, err := b.chains.Add(context.Background(), b.hook, b.member("m0"))
	if err == nil {
		b.remove("m0")
		return // The kernel takes extensions, and the other tests are about that.
	}
	refused(t, err, libxdp.ErrNoFreplace, "takes no extensions", "attach one program alone")
	refused(t, err, xdp.ErrNotSupported)
	b.want()
}

func TestMembersComeAndGoInOrder(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	b.want()
	b.add(b.member("m5"))
	b.want("m5")
	b.add(at(10, b.member("m9")))
	b.want("m9", "m5")
	b.add(b.member("m1"), b.member("m7"))
	b.want("m9", "m1", "m5", "m7")
	b.remove("m5")
	b.want("m9", "m1", "m7")
	b.remove("m9", "m7")
	b.want("m1")
	b.remove("m1")
	b.want()
}

func TestWhatAChangeReturnsIsWhatIsRead(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	check := func(returned *libxdp.Chain) {
		t.Helper()
		if got, want := fmt.Sprintf("%+v", *b.read()), fmt.Sprintf("%+v", *returned); got != want {
			t.Errorf("read     %s\nreturned %s", got, want)
		}
	}
	check(b.add(b.member("m0"), at(7, b.member("a_member_with_a_long_name"))))
	check(b.add(b.member("m_frags")))
	check(b.remove("m0", "a_member_with_a_long_name"))
	check(b.remove("m_frags"))
}

func TestAChainHasTenMembersAndNoEleventh(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	var adds []libxdp.Addition
	ten := []string{"m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9"}
	for _, name := range ten {
		adds = append(adds, b.member(name))
	}
	b.add(adds...)
	before := b.want(ten...)
	_, err := b.chains.Add(context.Background(), b.hook, b.member("m10"))
	refused(t, err, libxdp.ErrFull, "11 members", "10 slots", "an owned hook's chain has no such limit")
	if after := b.want(ten...); after.Dispatcher.ID != before.Dispatcher.ID {
		t.Error("the refused addition changed the dispatcher")
	}
	b.remove("m3")
	b.add(at(1, b.member("m10")))
	b.want("m10", "m0", "m1", "m2", "m4", "m5", "m6", "m7", "m8", "m9")
	b.remove(slices.DeleteFunc(append(ten, "m10"), func(n string) bool { return n == "m3" })...)
	b.want()
}

func programs(c *libxdp.Chain) map[string]uint32 {
	ids := map[string]uint32{}
	for _, m := range c.Members {
		ids[m.Name] = m.Program.ID
	}
	return ids
}

func TestMembersThatStayAreNotLoadedAnew(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	// Alone it takes the dispatcher's place, and with others that of a slot.
	one := programs(b.add(b.member("m1")))["m1"]
	for range 2 {
		b.add(b.member("m2"), b.member("m3"))
		if c := b.want("m1", "m2", "m3"); programs(c)["m1"] != one {
			t.Error("m1 was loaded anew")
		}
		b.remove("m2", "m3")
		if c := b.want("m1"); programs(c)["m1"] != one {
			t.Error("m1 was loaded anew")
		}
	}
	b.remove("m1")
}

func TestAMemberIsReplacedInItsPlace(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	proceed := chain.Set(chain.Pass, chain.Drop)
	two := at(20, b.member("m2"))
	two.ProceedOn = &proceed
	b.add(at(10, b.member("m1")), two, at(30, b.member("m3")))
	before := programs(b.read())
	_, err := b.chains.Replace(context.Background(), b.hook, libxdp.Target{Name: "m2"}, b.member("m9", "actions[9]=1"))
	if err != nil {
		t.Fatal(err)
	}
	after := b.want("m1", "m9", "m3")
	if m := after.Members[1]; m.Priority != 20 || m.ProceedOn != proceed {
		t.Errorf("the replacement runs at %d and goes on after %s", m.Priority, m.ProceedOn)
	}
	for _, name := range []string{"m1", "m3"} {
		if programs(after)[name] != before[name] {
			t.Errorf("%s was loaded anew", name)
		}
	}
	b.remove("m1", "m9", "m3")
}

func TestSettingsTakeEffectOnPackets(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	b.add(at(10, b.member("m1")), at(20, b.member("m2", "actions[2]=1")), at(30, b.member("m3")))
	sends := func(want ...string) {
		t.Helper()
		if met := b.send(); !slices.Equal(met, want) {
			t.Fatalf("a packet met %v, want %v", met, want)
		}
	}
	set := func(name string, s libxdp.Settings) {
		t.Helper()
		if _, err := b.chains.Set(context.Background(), b.hook, libxdp.Target{Name: name}, s); err != nil {
			t.Fatal(err)
		}
	}
	sends("m1", "m2") // which drops
	drop := chain.Set(chain.Drop)
	set("m2", libxdp.Settings{ProceedOn: &drop})
	sends("m1", "m2", "m3")
	last := uint32(99)
	set("m2", libxdp.Settings{Priority: &last})
	sends("m1", "m3", "m2")
	set("m3", libxdp.Settings{Before: "m1"})
	sends("m3", "m1", "m2")
	set("m3", libxdp.Settings{After: "m1"})
	sends("m1", "m3", "m2")
	never := chain.Actions(0)
	set("m1", libxdp.Settings{ProceedOn: &never})
	sends("m1")
	if c := b.read(); c.Members[0].ProceedOn != 0 || c.Members[2].ProceedOn != drop || c.Members[2].Priority != 99 {
		t.Errorf("the members are %+v", c.Members)
	}
	b.remove("m1", "m2", "m3")
}

func TestTheRunConfigurationAndTheLongNameAreTheObjects(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	b.add(libxdp.Addition{Object: read(t, "runconfig")}, b.member("a_member_with_a_long_name"))
	c := b.read()
	if got := names(c); !slices.Equal(got, []string{"runconfig", "a_member_with_a_long_name"}) {
		t.Fatalf("the chain is %v", got)
	}
	if m := c.Members[0]; m.Priority != 10 || m.ProceedOn != chain.Set(chain.Pass, chain.Drop) {
		t.Errorf("runconfig runs at %d and goes on after %s", m.Priority, m.ProceedOn)
	}
	if m := c.Members[1]; m.Priority != 50 || m.ProceedOn != chain.DefaultProceedOn || m.Program.Name != "a_member_with_a" {
		t.Errorf("a member by default is %+v", m)
	}
	b.remove("runconfig", "a_member_with_a_long_name")
}

// knowsFrags tells whether the kernel loads programs for packets of several
// buffers, which came with Linux 5.18.
func knowsFrags(t *testing.T) bool {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, AttachType: ebpf.AttachXDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "GPL",
		Instructions: passing(),
	})
	if errors.Is(err, unix.EINVAL) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	return true
}

func TestTheChainTakesFragmentsWhereAllItsMembersDo(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	knows := knowsFrags(t)
	check := func(members ...string) {
		t.Helper()
		c := b.want(members...)
		want := knows && !slices.Contains(members, "m1")
		if c.Frags != want {
			t.Errorf("%v: the chain takes fragments: %v, want %v", members, c.Frags, want)
		}
		for _, m := range c.Members {
			if m.Frags != (m.Name != "m1") {
				t.Errorf("%v: %s takes fragments: %v", members, m.Name, m.Frags)
			}
		}
	}
	b.add(b.member("m_frags"))
	check("m_frags")
	// The dispatcher's flag is what the kernel goes by: the peer may send
	// packets of several buffers.
	err := b.veth.Far.Conn.SetMTU(b.veth.FarIndex, 9000)
	if (err == nil) != knows {
		t.Errorf("raising the peer's MTU: %v", err)
	}
	if err := b.veth.Far.Conn.SetMTU(b.veth.FarIndex, 1500); err != nil {
		t.Fatal(err)
	}
	b.add(b.member("m_frags_too"))
	check("m_frags", "m_frags_too")
	b.add(b.member("m1"))
	check("m1", "m_frags", "m_frags_too")
	b.remove("m1")
	check("m_frags", "m_frags_too")
	b.remove("m_frags", "m_frags_too")
}

func TestMembersThatChangePacketsLoad(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	// Alone, as a second one, attached again, and after being replaced.
	b.add(b.member("m_mover"))
	b.want("m_mover")
	b.add(b.member("m1"))
	b.want("m1", "m_mover")
	b.remove("m_mover")
	b.add(b.member("m_mover"))
	b.want("m1", "m_mover")
	b.remove("m1")
	b.want("m_mover")
	b.remove("m_mover")
}

func TestChainsRunInEachMode(t *testing.T) {
	needFreplace(t)
	for _, mode := range []xdp.Mode{xdp.Native, xdp.Generic, xdp.Auto} {
		t.Run(mode.String(), func(t *testing.T) {
			kerneltest.NoLeaks(t)
			b := newBench(t)
			b.hook = open(t, b.veth.Near, b.veth.NearName, mode)
			c := b.add(b.member("m1"))
			want := mode
			if mode == xdp.Auto {
				want = xdp.Native
			}
			if c.Mode != want {
				t.Errorf("the chain runs in mode %s, want %s", c.Mode, want)
			}
			b.want("m1")
			// Who does not care takes the mode that is there.
			auto := open(t, b.veth.Near, b.veth.NearName, xdp.Auto)
			if _, err := b.chains.Add(context.Background(), auto, b.member("m2")); err != nil {
				t.Fatal(err)
			}
			if c := b.want("m1", "m2"); c.Mode != want {
				t.Errorf("the chain runs in mode %s, want %s", c.Mode, want)
			}
			other := xdp.Generic
			if want == xdp.Generic {
				other = xdp.Native
			}
			elsewhere := open(t, b.veth.Near, b.veth.NearName, other)
			_, err := b.chains.Add(context.Background(), elsewhere, b.member("m3"))
			e := refused(t, err, xdp.ErrConflict, "in another mode", "name that mode")
			if e.Rival == nil || e.Rival.Mode != want {
				t.Errorf("%q does not name what is there", err)
			}
			if c, err := b.chains.Read(elsewhere); err != nil || c.Kind != libxdp.Empty {
				t.Errorf("in mode %s there is %+v, %v", other, c, err)
			}
			b.remove("m1", "m2")
			b.want()
		})
	}
}

func TestAHookThatALinkHoldsIsAConflictThatNamesTheHolder(t *testing.T) {
	kerneltest.NoLeaks(t)
	b := newBench(t)
	link, err := b.hook.AttachLink(kerneltest.Pass(t, "owner", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	ctx := context.Background()
	_, add := b.chains.Add(ctx, b.hook, b.member("m1"))
	adopting := b.member("m1")
	adopting.Adopt = true
	_, adopt := b.chains.Add(ctx, b.hook, adopting)
	_, remove := b.chains.Remove(ctx, b.hook, libxdp.Target{Name: "owner"})
	all := b.chains.RemoveAll(ctx, b.hook, xdp.Any)
	for _, err := range []error{add, adopt, remove, all} {
		e := refused(t, err, xdp.ErrConflict)
		if e.Rival == nil || e.Rival.Program.Name != "owner" || e.Rival.LinkID == 0 || len(e.Rival.Holders) == 0 {
			t.Errorf("%q does not name the holder", err)
		}
	}
	if c := b.read(); c.Kind != libxdp.Single || c.Attachment.Held != xdp.HeldByLink {
		t.Errorf("the hook has %+v", c)
	}
	b.wantDirs()
}

func TestASingleProgramIsAConflictUnlessItIsAdopted(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	single := kerneltest.Pass(t, "single", nil)
	if err := b.hook.Attach(single, xdp.Empty); err != nil {
		t.Fatal(err)
	}
	c := b.read()
	if c.Kind != libxdp.Single || c.Attachment.Program.Name != "single" || c.Attachment.Held != xdp.HeldByNetlink || c.Problem != "" {
		t.Errorf("the hook has %+v", c)
	}
	_, err := b.chains.Add(context.Background(), b.hook, b.member("m1"))
	e := refused(t, err, xdp.ErrConflict, `"single"`, "adopted")
	if e.Rival == nil || e.Rival.Program.Name != "single" {
		t.Errorf("%q does not name the program", err)
	}
	_, err = b.chains.Remove(context.Background(), b.hook, libxdp.Target{Name: "single"})
	refused(t, err, xdp.ErrConflict, `"single"`)
	b.wantDirs()

	adopted := at(90, b.member("m2"))
	adopted.Adopt = true
	b.add(b.member("m1"), adopted)
	b.want("m1", "m2")
	b.remove("m1", "m2")
}

func TestRemovingAllTakesWhatIsExpected(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	ctx := context.Background()
	refused(t, b.chains.RemoveAll(ctx, b.hook, xdp.Any), xdp.ErrNotAttached)
	_, err := b.chains.Remove(ctx, b.hook, libxdp.Target{Name: "m1"})
	refused(t, err, xdp.ErrNotAttached)

	c := b.add(b.member("m1"), b.member("m2"))
	refused(t, b.chains.RemoveAll(ctx, b.hook, xdp.Expectation{}), xdp.ErrInvalid)
	refused(t, b.chains.RemoveAll(ctx, b.hook, xdp.Expect(kerneltest.Pass(t, "other", nil))), xdp.ErrConflict)
	b.want("m1", "m2")
	if err := b.chains.RemoveAll(ctx, b.hook, xdp.ExpectID(c.Dispatcher.ID)); err != nil {
		t.Fatal(err)
	}
	b.want()
	b.add(b.member("m1"), b.member("m2"))
	if err := b.chains.RemoveAll(ctx, b.hook, xdp.Any); err != nil {
		t.Fatal(err)
	}
	b.want()
	if err := b.hook.Attach(kerneltest.Pass(t, "single", nil), xdp.Empty); err != nil {
		t.Fatal(err)
	}
	if err := b.chains.RemoveAll(ctx, b.hook, xdp.Any); err != nil {
		t.Fatal(err)
	}
	b.want()
}

func TestOnlyAnExtensionJoinsByItsID(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	ctx := context.Background()
	_, err := b.chains.Add(ctx, b.hook, libxdp.Addition{ProgramID: kerneltest.ProgramID(t, kerneltest.Pass(t, "plain", nil))})
	refused(t, err, libxdp.ErrPlain, `"plain"`, "give the object")
	_, err = b.chains.Add(ctx, b.hook, libxdp.Addition{ProgramID: 1 << 30})
	refused(t, err, xdp.ErrNotFound)
	_, err = b.chains.Add(ctx, b.hook, libxdp.Addition{})
	refused(t, err, xdp.ErrInvalid)
	b.want()

	// A member of one chain becomes one of another as well.
	id := b.add(b.member("m1")).Members[0].Program.ID
	far := open(t, b.veth.Far, b.veth.FarName, xdp.Native)
	priority := uint32(5)
	c, err := b.chains.Add(ctx, far, libxdp.Addition{ProgramID: id, Priority: &priority})
	if err != nil {
		t.Fatal(err)
	}
	if m := c.Members[0]; m.Name != "m1" || m.Program.ID != id || m.Priority != 5 || m.ProceedOn != chain.DefaultProceedOn {
		t.Errorf("the member is %+v", m)
	}
	_, err = b.chains.Add(ctx, far, libxdp.Addition{ProgramID: id})
	refused(t, err, xdp.ErrExists, "a member already")
	b.remove("m1")
	if c, err := b.chains.Read(far); err != nil || !slices.Equal(names(c), []string{"m1"}) {
		t.Errorf("the other chain is %+v, %v", c, err)
	}
	if err := b.chains.RemoveAll(ctx, far, xdp.Any); err != nil {
		t.Fatal(err)
	}
	b.want()
}

func TestProgramArraysMustNotBeEmptied(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	jumping := libxdp.Addition{Object: read(t, "tailcall"), Load: object.LoadOptions{Program: object.Choice{Name: "enter"}}}
	_, err := b.chains.Add(context.Background(), b.hook, jumping)
	b.want()
	if errors.Is(err, object.ErrNotSupported) {
		if !strings.Contains(err.Error(), "it makes tail calls") {
			t.Error(err)
		}
		return // Linux 5.10 can't at all.
	}
	refused(t, err, xdp.ErrInvalid, "program array jumps", "pinned")

	// The caller that keeps the array may have it.
	spec, err := bpfprog.LoadTailcall()
	if err != nil {
		t.Fatal(err)
	}
	jumps := spec.Maps["jumps"]
	jumps.Contents = nil
	array, err := ebpf.NewMap(jumps)
	if err != nil {
		t.Fatal(err)
	}
	defer array.Close()
	jumping.Load.MapReplacements = map[string]*ebpf.Map{"jumps": array}
	// m1 is met only if the program behind the tail call drops the packet.
	dropped := chain.Set(chain.Drop)
	jumping.ProceedOn = &dropped
	b.add(jumping, b.member("m1"))
	if met := b.send(); !slices.Equal(met, []string{"m1"}) {
		t.Fatalf("a packet met %v", met)
	}
	b.remove("enter", "m1")
}

func TestAMemberThatDoesNotLoadChangesNothing(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	b.add(b.member("m1"))
	_, err := b.chains.Add(context.Background(), b.hook, b.member("m2"), libxdp.Addition{Object: read(t, "bad")})
	if !errors.Is(err, object.ErrVerifier) {
		t.Errorf("got %v", err)
	}
	b.want("m1")
	b.remove("m1")
}

func TestWithoutABpffsTheAnswerSaysSo(t *testing.T) {
	kerneltest.NoLeaks(t)
	b := newBench(t)
	chains := openChains(t, t.TempDir())
	if c, err := chains.Read(b.hook); err != nil || c.Kind != libxdp.Empty {
		t.Errorf("the hook has %+v, %v", c, err)
	}
	_, err := chains.Add(context.Background(), b.hook, b.member("m1"))
	refused(t, err, libxdp.ErrNoFreplace, "no bpffs is mounted at", "mount -t bpf")
	cleaned, err := chains.Clean(context.Background(), b.hook.Namespace(), 0)
	if err != nil || len(cleaned) != 0 {
		t.Errorf("cleaned %v, %v", cleaned, err)
	}
}

func TestTheLockIsWaitedForAndNothingIsLeftWhenItIsNotHad(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	if err := os.Mkdir(b.bpffs+"/xdp", 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := unix.Open(b.bpffs+"/xdp", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(lock)
	if err := unix.Flock(lock, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	impatient, err := libxdp.Open(libxdp.Options{BPFFS: b.bpffs, LockTimeout: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer impatient.Close()
	_, err = impatient.Add(context.Background(), b.hook, b.member("m1"))
	refused(t, err, libxdp.ErrLockTimeout, "held the lock on "+b.bpffs+"/xdp", "try again")
	if err := unix.Flock(lock, unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	b.want()
	b.add(b.member("m1"))
	b.want("m1")
	b.remove("m1")
}

func TestACanceledChangeLeavesNothing(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.chains.Add(ctx, b.hook, b.member("m1")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	b.want()
}
