package fusedtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

// parts are two members each of these programs of bpf/parts.c, as different
// members are that were made of the same source.
func parts(t *testing.T, form func(fused.Member) fused.Member, programs ...string) []fused.Member {
	t.Helper()
	var members []fused.Member
	for range 2 {
		for _, name := range programs {
			members = append(members, form(member(t, "parts", name, onPass)))
		}
	}
	return members
}

// asItIs leaves the member in its form.
func asItIs(m fused.Member) fused.Member { return m }

// number reads a number of 8 bytes from a map's value.
func number(t *testing.T, m fused.Member, name string, offset int) uint64 {
	t.Helper()
	value, err := m.Program.Maps[name].LookupBytes(uint32(0))
	if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(value[offset:])
}

// What a program is made of works for each member by itself: nothing gets mixed
// up, although all have the same names for it.
func TestMembersOfTheSameNamesKeepApart(t *testing.T) {
	kerneltest.NoLeaks(t)
	inBothForms(t, func(t *testing.T, form func(fused.Member) fused.Member) {
		members := parts(t, form, "functions", "locked", "reported", "nested", "relocated", "kernel_functions")
		p := load(t, members...)
		for range 3 {
			if got := run(t, p); got != pass {
				t.Fatalf("a member failed: the chain returned %d", got)
			}
		}
		for i, m := range members {
			switch m.Name {
			case "functions":
				if five, zero := number(t, m, ".data", 0), number(t, m, ".bss", 0); five != 8 || zero != 3 {
					t.Errorf("the globals of member %d are %d and %d, want 8 and 3", i, five, zero)
				}
			case "locked":
				if a, b := number(t, m, "guarded_values", 8), number(t, m, "guarded_values", 16); a != 3 || b != 3 {
					t.Errorf("member %d counted %d and %d under its lock, want 3", i, a, b)
				}
			case "nested":
				if n := number(t, m, "inner", 0); n != 3 {
					t.Errorf("member %d counted %d in its map within a map, want 3", i, n)
				}
			case "reported":
				if sizes := reports(t, m); !slices.Equal(sizes, []uint32{60, 60, 60}) {
					t.Errorf("member %d reported packets of %d bytes, want three of 60", i, sizes)
				}
			}
		}
	})
}

// reports empties the ring buffer of bpf/parts.c.
func reports(t *testing.T, m fused.Member) (sizes []uint32) {
	t.Helper()
	r, err := ringbuf.NewReader(m.Program.Maps["sizes"])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.SetDeadline(time.Now())
	for {
		record, err := r.Read()
		if err != nil {
			return sizes
		}
		sizes = append(sizes, binary.NativeEndian.Uint32(record.RawSample))
	}
}

func TestHelpersCallTheMembersFunctions(t *testing.T) {
	kerneltest.NoLeaks(t)
	alone, err := fused.Load(parts(t, asItIs, "looping")[:1])
	if errors.Is(err, object.ErrNotSupported) {
		t.Skip("bpf_loop came with Linux 5.17")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	inBothForms(t, func(t *testing.T, form func(fused.Member) fused.Member) {
		if got := run(t, load(t, parts(t, form, "looping")...)); got != pass {
			t.Errorf("the chain returned %d", got)
		}
	})
}

func TestTimersOfMembersRing(t *testing.T) {
	kerneltest.NoLeaks(t)
	alone, err := fused.Load([]fused.Member{member(t, "parts", "timed", onPass)})
	if errors.Is(err, object.ErrNotSupported) {
		t.Skip("timers came with Linux 5.15")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	if run(t, alone) == uint32(chain.Tx) {
		t.Skip("the kernel has no memory for timers where the processor has no cmpxchg16b")
	}
	inBothForms(t, func(t *testing.T, form func(fused.Member) fused.Member) {
		members := parts(t, form, "timed")
		if got := run(t, load(t, members...)); got != pass {
			t.Fatalf("the chain returned %d", got)
		}
		for i, m := range members {
			const rang = 16 // offset of the counter
			if !kerneltest.Eventually(func() bool { return number(t, m, "alarms", rang) == 1 }) {
				t.Errorf("the timer of member %d rang %d times, want once", i, number(t, m, "alarms", rang))
			}
		}
	})
}

func TestOneMemberAsksForTheKernelsConfiguration(t *testing.T) {
	kerneltest.NoLeaks(t)
	p := load(t, member(t, "pass", "", onPass), member(t, "parts", "configured", onPass))
	if got := run(t, p); got != pass {
		t.Errorf("the chain returned %d", got)
	}
}

func TestAMemberSeesThePacketAsTheOneBeforeLeftIt(t *testing.T) {
	kerneltest.NoLeaks(t)
	inBothForms(t, func(t *testing.T, form func(fused.Member) fused.Member) {
		part := func(name string) fused.Member { return form(member(t, "parts", name, onPass)) }
		before, after := part("measured"), part("measured")
		p := load(t, before, part("grown"), part("cut"), part("marked"), after)
		if got := run(t, p); got != pass {
			t.Fatalf("the chain returned %d", got)
		}
		const front, back, meta = 8, 4, 12
		measured := func(m fused.Member) (size, sizeOfMeta uint32) {
			n := number(t, m, ".bss", 8)
			return uint32(n), uint32(n >> 32)
		}
		if size, m := measured(before); size != 60 || m != 0 {
			t.Errorf("the first saw %d bytes and %d of metadata, want 60 and none", size, m)
		}
		if size, m := measured(after); size != 60+front-back || m != meta {
			t.Errorf("the last saw %d bytes and %d of metadata, want %d and %d", size, m, 60+front-back, meta)
		}
	})
}

// Members that are made one function use the same registers and the same stack.
func TestMembersMayUseWhatAnyFunctionMayUse(t *testing.T) {
	kerneltest.NoLeaks(t)
	inBothForms(t, func(t *testing.T, form func(fused.Member) fused.Member) {
		greedy := func(name string) fused.Member {
			// All registers, all of the stack that a member can have on any
			// kernel, and at its end a look into the context.
			code := []asm.Instruction{asm.Mov.Reg(asm.R0, asm.R1)}
			for r := asm.R1; r <= asm.R9; r++ {
				code = append(code, asm.Mov.Imm(r, 7))
			}
			for offset := int16(8); offset <= 448; offset += 8 {
				code = append(code, asm.StoreMem(asm.RFP, -offset, asm.R9, asm.DWord))
			}
			return form(of(name, append(code, asm.LoadMem(asm.R0, asm.R0, 0, asm.Word))...))
		}
		counting := member(t, "count", "", onPass)
		if got := run(t, load(t, greedy("a"), greedy("b"), form(counting), greedy("c"))); got != pass {
			t.Errorf("the chain returned %d", got)
		}
		stop := greedy("b")
		stop.ProceedOn = 0
		if got := run(t, load(t, greedy("a"), stop, form(counting), greedy("c"))); got != pass {
			t.Errorf("the chain that ends early returned %d", got)
		}
		if n := counted(t, counting); n != 1 {
			t.Errorf("the member behind was met by %d packets, want 1", n)
		}
	})
}

// The kernel of Linux 6.1 forgets of members that are functions of their own
// object what follows a tail call.
func TestAMemberAfterATailCallIsMet(t *testing.T) {
	kerneltest.NoLeaks(t)
	jumping := member(t, "tailcall", "enter", chain.Set(chain.Drop))
	counting := member(t, "count", "", onPass)
	p := load(t, jumping, counting)
	if got, err := p.Run(&ebpf.RunOptions{Data: udp4(7777)}); err != nil || got != pass {
		t.Errorf("where the tail call's target drops, which the chain goes on after, it returned %d, %v", got, err)
	}
	if got := counted(t, counting); got != 1 {
		t.Errorf("the member after was met by %d packets, want 1", got)
	}
	if got, err := p.Run(&ebpf.RunOptions{Data: udp4(1)}); err != nil || got != pass {
		t.Errorf("where the tail call's target passes, which the chain ends with, it returned %d, %v", got, err)
	}
	if got := counted(t, counting); got != 1 {
		t.Errorf("the member after was met by %d packets, want still 1", got)
	}
}

// counted is how many packets have met bpf/count.c.
func counted(t *testing.T, m fused.Member) (sum uint64) {
	t.Helper()
	var n []uint64
	if err := m.Program.Maps["packets"].Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	for _, one := range n {
		sum += one
	}
	return sum
}

// udp4 is an Ethernet frame with an empty UDP datagram over IPv4, padded.
func udp4(port uint16) []byte {
	b := make([]byte, 60)
	b[12], b[13] = 0x08, 0x00
	b[14] = 0x45
	b[14+9] = unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[14+20+2:], port)
	binary.BigEndian.PutUint16(b[14+20+4:], 8)
	return b
}

// Objects from before there was BTF, and those that were stripped of it, can be
// members, too: beside others that have it, and with functions of their own.
func TestProgramsWithoutTypeInformationAreMembers(t *testing.T) {
	kerneltest.NoLeaks(t)
	stripped := func(name string) fused.Member {
		m := member(t, "parts", name, onPass)
		m.Program.Spec = withoutBTF(m.Program.Spec)
		return m
	}
	inBothForms(t, func(t *testing.T, form func(fused.Member) fused.Member) {
		for name, members := range map[string][]fused.Member{
			"beside others":   {member(t, "count", "", onPass), form(stripped("functions")), member(t, "parts", "functions", onPass), form(stripped("functions"))},
			"among their own": {form(stripped("functions")), form(stripped("measured"))},
		} {
			if got := run(t, load(t, members...)); got != pass {
				t.Errorf("%s: the chain returned %d", name, got)
			}
		}
	})
}

// withoutBTF keeps of a program what an object without BTF has.
func withoutBTF(p *ebpf.ProgramSpec) *ebpf.ProgramSpec {
	p = p.Copy()
	for i, ins := range p.Instructions {
		bare := ins.WithMetadata(asm.Metadata{})
		if s := ins.Symbol(); s != "" {
			bare = bare.WithSymbol(s)
		}
		if r := ins.Reference(); r != "" {
			bare = bare.WithReference(r)
		}
		p.Instructions[i] = bare
	}
	return p
}

func TestAChainCopesWithFragmentsWhereAllMembersDo(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	// Packets of that size take several buffers.
	if err := v.Far.Conn.SetMTU(v.FarIndex, 9000); err != nil {
		t.Fatal(err)
	}
	attach := func(members ...fused.Member) error {
		p, err := fused.Load(members)
		if err != nil {
			return err
		}
		defer p.Close()
		return v.Near.Do(func() error {
			link, err := kernel.LinkCreateXDP(p.FD(), v.NearIndex, unix.XDP_FLAGS_DRV_MODE)
			if err == nil {
				link.Close()
			}
			return err
		})
	}
	one, other := member(t, "member", "m_frags", onPass), member(t, "member", "m_frags_too", onPass)
	err := attach(one, other)
	if errors.Is(err, object.ErrNotSupported) {
		t.Skip("programs with fragments came with Linux 5.18")
	}
	if err != nil {
		t.Errorf("a chain of two that cope with fragments: %v", err)
	}
	if err := attach(one, member(t, "member", "m1", onPass), other); !errors.Is(err, unix.ERANGE) {
		t.Errorf("a chain with one that does not cope with fragments: %v, want ERANGE", err)
	}
}

func TestAChainIsLinkedAnewWithWhatItsMapsHold(t *testing.T) {
	kerneltest.NoLeaks(t)
	file := read(t, "parts", "step=7")
	counting := prepare(t, file, object.LoadOptions{Program: object.Choice{Name: "functions"}})
	jumping := member(t, "tailcall", "enter", chain.Set(chain.Drop))
	first := load(t, jumping, fused.Member{Name: "counting", ProceedOn: onPass, Program: counting})
	run := func(p *ebpf.Program) {
		t.Helper()
		if got, err := p.Run(&ebpf.RunOptions{Data: udp4(7777)}); err != nil || got != pass {
			t.Fatalf("the chain returned %d, %v", got, err)
		}
	}
	run(first)

	// As another process does it: from the file and the maps, without the
	// values of its variables.
	again, err := object.Read("again.o", bytes.NewReader(file.ELF()))
	if err != nil {
		t.Fatal(err)
	}
	resumed, err := again.Resume(object.LoadOptions{Program: object.Choice{Name: "functions"}}, counting.Maps)
	if err != nil {
		t.Fatal(err)
	}
	defer resumed.Close()
	jumpingAgain, err := read(t, "tailcall").Resume(object.LoadOptions{Program: object.Choice{Name: "enter"}}, jumping.Program.Maps)
	if err != nil {
		t.Fatal(err)
	}
	defer jumpingAgain.Close()
	m := fused.Member{Name: "counting", ProceedOn: onPass, Program: resumed}
	second := load(t, member(t, "pass", "", onPass), fused.Member{ProceedOn: chain.Set(chain.Drop), Program: jumpingAgain}, m)
	run(second)
	run(first)
	if zero := number(t, m, ".bss", 0); zero != 3*7 {
		t.Errorf("both chains counted to %d, want %d", zero, 3*7)
	}
}
