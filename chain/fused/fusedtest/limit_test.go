package fusedtest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

// of is a member of that code, which it ends.
func of(name string, code ...asm.Instruction) fused.Member {
	code = append(code, asm.Mov.Imm(asm.R0, int32(chain.Pass)), asm.Return())
	code[0] = code[0].WithSymbol(name)
	return fused.Member{Name: name, ProceedOn: onPass, Program: &object.Prepared{
		Info: object.ProgramInfo{Name: name},
		Maps: map[string]*ebpf.Map{},
		Spec: &ebpf.ProgramSpec{Name: name, Type: ebpf.XDP, License: "GPL", Instructions: code},
	}}
}

// add adds a function to a member's code.
func add(m fused.Member, name string, code ...asm.Instruction) {
	code = append(code, asm.Mov.Imm(asm.R0, int32(chain.Pass)), asm.Return())
	code[0] = code[0].WithSymbol(name)
	m.Program.Spec.Instructions = append(m.Program.Spec.Instructions, code...)
}

// stack uses so much of it.
func stack(bytes int16) asm.Instruction { return asm.StoreImm(asm.RFP, -bytes, 0, asm.Word) }

// calling is a member whose functions call each other in a row. Each uses so much
// of the stack.
func calling(name string, stacks ...int16) fused.Member {
	function := func(i int) string { return fmt.Sprintf("%s_%d", name, i) }
	code := func(i int) []asm.Instruction {
		c := []asm.Instruction{asm.Mov.Imm(asm.R1, 0)}
		if stacks[i] > 0 {
			c = append(c, stack(stacks[i]))
		}
		if i < len(stacks)-1 {
			c = append(c, asm.Call.Label(function(i+1)))
		}
		return c
	}
	m := of(name, code(0)...)
	for i := 1; i < len(stacks); i++ {
		add(m, function(i), code(i)...)
	}
	return m
}

func manyMaps(t *testing.T, name string, n int) fused.Member {
	t.Helper()
	m := of(name, asm.Mov.Imm(asm.R1, 0))
	var code asm.Instructions
	for i := range n {
		one, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { one.Close() })
		its := fmt.Sprint("map", i)
		m.Program.Maps[its] = one
		code = append(code, asm.LoadMapPtr(asm.R1, 0).WithReference(its))
	}
	m.Program.Spec.Instructions = append(code, m.Program.Spec.Instructions[1:]...)
	return m
}

func manyFunctions(name string, n int) fused.Member {
	var calls []asm.Instruction
	function := func(i int) string { return fmt.Sprintf("%s_%d", name, i) }
	for i := range n - 1 {
		calls = append(calls, asm.Call.Label(function(i)))
	}
	m := of(name, calls...)
	for i := range n - 1 {
		add(m, function(i), asm.Mov.Imm(asm.R1, 0))
	}
	return m
}

// jumping is a member with a tail call in a function that others call, which have
// so much of the stack.
func jumping(t *testing.T, name string, stacks ...int16) fused.Member {
	t.Helper()
	array, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { array.Close() })
	function := func(i int) string { return fmt.Sprintf("%s_%d", name, i) }
	var m fused.Member
	for i, s := range stacks {
		// The context goes through all of them.
		code := []asm.Instruction{stack(s), asm.Call.Label(function(i + 1))}
		if i == 0 {
			m = of(name, code...)
			continue
		}
		add(m, function(i), code...)
	}
	add(m, function(len(stacks)),
		asm.LoadMapPtr(asm.R2, 0).WithReference("jumps"),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
	)
	m.Program.Maps["jumps"] = array
	return m
}

// What Check says of a chain, the kernel says as well: on both sides of each
// limit that it can be brought to.
func TestTheKernelRefusesWhatCheckDoes(t *testing.T) {
	kerneltest.NoLeaks(t)
	small := of("small", asm.Mov.Imm(asm.R1, 0))
	for name, c := range map[string]struct {
		members []fused.Member
		limit   fused.Limit // none where it is empty
	}{
		"64 maps":                      {[]fused.Member{manyMaps(t, "a", 20), manyMaps(t, "b", 44)}, ""},
		"65 maps":                      {[]fused.Member{manyMaps(t, "a", 21), manyMaps(t, "b", 44)}, fused.LimitMaps},
		"256 functions":                {[]fused.Member{small, manyFunctions("many", 256)}, ""},
		"257 functions":                {[]fused.Member{small, manyFunctions("many", 257)}, fused.LimitFunctions},
		"8 functions under way":        {[]fused.Member{small, calling("deep", 0, 0, 0, 0, 0, 0, 0)}, ""},
		"18 functions under way":       {[]fused.Member{small, calling("deep", make([]int16, 17)...)}, fused.LimitCalls},
		"480 bytes of stack":           {[]fused.Member{small, calling("deep", 224, 256)}, ""},
		"more than the stack":          {[]fused.Member{small, calling("deep", 256, 256, 4)}, fused.LimitStack},
		"the stack of two members":     {[]fused.Member{calling("deep", 224, 256), calling("deep", 224, 256)}, ""},
		"members that only fit apart":  {[]fused.Member{calling("wide", 400), detour(t, calling("deep", 300))}, ""},
		"a tail call below some stack": {[]fused.Member{jumping(t, "jumping", 64, 128), small}, ""},
		"a tail call below much of it": {[]fused.Member{jumping(t, "jumping", 128, 128), small}, fused.LimitStack},
	} {
		t.Run(name, func(t *testing.T) {
			check := fused.Check(c.members)
			p, load := fused.Load(c.members)
			if load == nil {
				p.Close()
			}
			if c.limit == "" {
				if check != nil || load != nil {
					t.Errorf("Check says %v, and Load %v", check, load)
				}
				return
			}
			var e *fused.LimitError
			if !errors.As(load, &e) || e.Limit != c.limit || e.Member == "" || check == nil || e.Error() != check.Error() {
				t.Errorf("Check says %v, and Load %v, want a limit of %s with a member", check, load, c.limit)
			}
			var errno unix.Errno
			if !errors.As(load, &errno) {
				t.Errorf("the kernel's answer is lost: %v", load)
			}
		})
	}
}

// Between 480 bytes and 512 it depends on the kernel, and so it does between 8
// functions under way and 17. Check knows.
func TestCheckKnowsWhatTheKernelLeavesToMembers(t *testing.T) {
	kerneltest.NoLeaks(t)
	agree := func(what string, m fused.Member) {
		t.Helper()
		members := []fused.Member{of("small", asm.Mov.Imm(asm.R1, 0)), m}
		check := fused.Check(members)
		p, load := fused.Load(members)
		if load == nil {
			p.Close()
		}
		if (check == nil) != (load == nil) {
			t.Errorf("of %s Check says %v, and Load %v", what, check, load)
		}
	}
	for bytes := int16(472); bytes <= 512; bytes += 8 {
		agree(fmt.Sprintf("%d bytes", bytes), calling("deep", bytes))
	}
	for functions := 6; functions <= 18; functions++ {
		agree(fmt.Sprintf("%d functions", functions), calling("deep", make([]int16, functions)...))
	}
}

func TestAMemberThatDoesNotLoadIsNamedWithItsOwnReason(t *testing.T) {
	kerneltest.NoLeaks(t)
	for name, members := range map[string][]fused.Member{
		"alone":      {member(t, "bad", "", onPass)},
		"in a chain": {member(t, "pass", "", onPass), member(t, "bad", "", onPass), member(t, "count", "", onPass)},
	} {
		_, err := fused.Load(members)
		var e *object.Error
		if !errors.Is(err, object.ErrVerifier) || !errors.As(err, &e) || !strings.Contains(e.VerifierLog, "processed ") {
			t.Fatalf("%s: %v", name, err)
		}
		for _, w := range []string{`member "bad": load bad.o, program bad: `, "invalid access to packet", "return data[13]"} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q has the verifier's log in it", name, err)
		}
	}
}

func TestLicensesThatDoNotGoTogetherAreRefused(t *testing.T) {
	kerneltest.NoLeaks(t)
	closed := of("closed", asm.Mov.Imm(asm.R1, 0))
	closed.Program.Spec.License = "Proprietary"
	_, err := fused.Load([]fused.Member{member(t, "pass", "", onPass), closed})
	var e *fused.LimitError
	if !errors.As(err, &e) || e.Limit != fused.LimitLicense || e.Member != "closed" {
		t.Errorf("got %v", err)
	}
	other := of("other", asm.Mov.Imm(asm.R1, 0))
	other.Program.Spec.License = "Apache-2.0"
	load(t, closed, other)
}

// A program array belongs to programs that cope with fragments, or to those that
// don't, from the first that uses it on.
func TestAMapOfProgramsThatBelongsToOthersIsNamed(t *testing.T) {
	kerneltest.NoLeaks(t)
	p, err := read(t, "parts").Prepare(object.LoadOptions{Program: object.Choice{Name: "jumping"}})
	if errors.Is(err, object.ErrNotSupported) {
		t.Skip("programs with fragments came with Linux 5.18")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	jumps := fused.Member{Name: "jumping", ProceedOn: onPass, Program: p}
	load(t, jumps, member(t, "member", "m_frags", onPass))

	_, err = fused.Load([]fused.Member{member(t, "tailcall", "enter", onPass), jumps, member(t, "pass", "", onPass)})
	var e *fused.LimitError
	if !errors.As(err, &e) || e.Limit != fused.LimitPrograms || e.Member != "jumping" || !errors.Is(err, unix.EINVAL) {
		t.Fatalf("got %v", err)
	}
	for _, w := range []string{"its map jumps", "the chain does not cope with them", "different chains"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// The verifier follows so many instructions of all members together, and loops
// each time that they go round.
func TestMembersThatAreTooMuchForTheVerifierTogetherAreTold(t *testing.T) {
	kerneltest.NoLeaks(t)
	// Most of it in a row, because the verifier remembers each time that it
	// comes by.
	const row = 10_000
	round := func(name string, times int32) fused.Member {
		code := []asm.Instruction{asm.Mov.Imm(asm.R1, times), asm.Sub.Imm(asm.R1, 1).WithSymbol("again")}
		for range row {
			code = append(code, asm.Mov.Imm(asm.R2, 0))
		}
		return of(name, append(code, asm.JNE.Imm(asm.R1, 0, "again"))...)
	}
	long, longer := round("long", 30), round("longer", 75)
	alone := load(t, long)
	_, err := fused.Load([]fused.Member{long, longer})
	var e *fused.LimitError
	if !errors.As(err, &e) || e.Limit != fused.LimitInstructions || !strings.Contains(err.Error(), "too large") {
		t.Fatalf("got %v", err)
	}
	// Before Linux 5.16 the kernel does not tell how much it was.
	info, err := alone.Info()
	if err != nil {
		t.Fatal(err)
	}
	want := ""
	if _, tells := info.VerifiedInstructions(); tells {
		want = "longer"
	}
	if e.Member != want {
		t.Errorf("the member is %q, want %q", e.Member, want)
	}
}
