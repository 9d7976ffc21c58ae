package fused

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// wantLimit checks that the error tells of the limit and of that member, in one
// sentence.
func wantLimit(t *testing.T, name string, err error, limit Limit, member string) {
	t.Helper()
	var e *LimitError
	if !errors.As(err, &e) || !errors.Is(err, ErrLimit) {
		t.Errorf("%s: %v, want a limit of %s", name, err, limit)
		return
	}
	if e.Limit != limit || e.Member != member {
		t.Errorf("%s: %s of member %q, want %s of %q: %v", name, e.Limit, e.Member, limit, member, err)
	}
	if text := err.Error(); strings.Contains(text, "\n") || e.Detail == "" || !strings.HasSuffix(text, "; "+e.Hint) || e.Hint == "" {
		t.Errorf("%s: %q is not one sentence that ends with what to do", name, text)
	}
}

// oldKernel is one whose interpreter runs programs, and newKernel one that
// compiles them.
var (
	oldKernel = facts{
		mapID:     func(*ebpf.Map) uint32 { return 0 },
		frame:     interpretedFrame,
		calls:     func(depth int, _ btf.FuncLinkage) bool { return depth <= 7 },
		tailCalls: func() bool { return false },
	}
	newKernel = facts{
		mapID: func(*ebpf.Map) uint32 { return 0 },
		frame: compiledFrame,
		calls: func(depth int, first btf.FuncLinkage) bool {
			return depth <= 15 || depth == 16 && first == btf.GlobalFunc
		},
		tailCalls: func() bool { return true },
	}
)

// calling is a member whose functions call each other in a row. Each uses so much
// of the stack.
func calling(name string, stacks ...int16) Member {
	m := of(name)
	m.Program.Spec.Instructions = nil
	for i, stack := range stacks {
		function := fmt.Sprint(name, i)
		if i == 0 {
			function = name
		}
		code := asm.Instructions{asm.StoreImm(asm.RFP, -stack, 0, asm.Word).WithSymbol(function)}
		if stack == 0 {
			code = asm.Instructions{asm.Mov.Imm(asm.R1, 0).WithSymbol(function)}
		}
		if i < len(stacks)-1 {
			code = append(code, asm.Call.Label(fmt.Sprint(name, i+1)))
		}
		m.Program.Spec.Instructions = append(m.Program.Spec.Instructions, append(code, asm.Mov.Imm(asm.R0, 2), asm.Return())...)
	}
	return m
}

// tailCall is a tail call, as the code counts it.
var tailCall = asm.FnTailCall.Call()

func withMaps(name string, n int) Member {
	var code asm.Instructions
	for i := range n {
		code = append(code, asm.LoadMapPtr(asm.R1, 0).WithReference(fmt.Sprint("map", i)))
	}
	return of(name, append(code, asm.Mov.Imm(asm.R1, 0))...)
}

func TestEachLimitIsToldWithTheMemberThatIsTheCause(t *testing.T) {
	small := of("small")
	big := of("big", make(asm.Instructions, maxInstructions/2)...)
	for i := range maxInstructions / 2 {
		big.Program.Spec.Instructions[i] = asm.Mov.Imm(asm.R1, 0)
	}
	changed := func(m Member, change func(*ebpf.ProgramSpec)) Member { change(m.Program.Spec); return m }
	jumping := of("jumping", tailCall)
	// Of functions that call one with a tail call.
	deepJump := calling("deep", 96, 160, 8)
	deepJump.Program.Spec.Instructions = slices.Insert(deepJump.Program.Spec.Instructions, len(deepJump.Program.Spec.Instructions)-2, tailCall)
	throwing := of("throwing", asm.Mov.Imm(asm.R1, 0))
	throwing.Program.Spec.Instructions[0] = btf.WithFuncMetadata(throwing.Program.Spec.Instructions[0], &btf.Func{
		Name: "throwing", Tags: []string{"exception_callback:caught"},
	})
	kconfig := func(name string) Member {
		return of(name, asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R1, Src: asm.PseudoMapValue})
	}
	functions := func(name string, n int) Member {
		m := of(name)
		for i := range n - 1 {
			f := fmt.Sprint(name, i)
			m.Program.Spec.Instructions = append(m.Program.Spec.Instructions, asm.Mov.Imm(asm.R0, 2).WithSymbol(f), asm.Return())
			m.Program.Spec.Instructions = slices.Insert(m.Program.Spec.Instructions, 1, asm.Call.Label(f))
		}
		return m
	}

	for name, c := range map[string]struct {
		kernel  facts
		members []Member
		limit   Limit // none if it is empty
		member  string
	}{
		"64 maps":                             {newKernel, []Member{withMaps("a", 20), withMaps("b", 44)}, "", ""},
		"65 maps":                             {newKernel, []Member{withMaps("a", 20), withMaps("b", 40), withMaps("c", 5)}, LimitMaps, "b"},
		"many instructions":                   {newKernel, []Member{small, big}, "", ""},
		"too many instructions":               {newKernel, []Member{small, big, big}, LimitInstructions, "big"},
		"256 functions":                       {newKernel, []Member{small, functions("many", 256)}, "", ""},
		"257 functions":                       {newKernel, []Member{small, functions("many", 257)}, LimitFunctions, "many"},
		"all of the stack":                    {newKernel, []Member{small, calling("deep", 256, 256)}, "", ""},
		"more than the stack":                 {newKernel, []Member{small, calling("deep", 256, 256, 8)}, LimitStack, "deep"},
		"all of the stack, interpreted":       {oldKernel, []Member{small, calling("deep", 256, 256)}, "", ""},
		"more than that, interpreted":         {oldKernel, []Member{calling("deep", 256, 264), small}, LimitStack, "deep"},
		"members do not share the stack":      {oldKernel, []Member{calling("deep", 480), calling("deep", 480)}, "", ""},
		"8 functions under way":               {oldKernel, []Member{small, calling("deep", 0, 0, 0, 0, 0, 0, 0, 0)}, "", ""},
		"9 functions under way":               {oldKernel, []Member{small, calling("deep", 0, 0, 0, 0, 0, 0, 0, 0, 0)}, LimitCalls, "deep"},
		"16 where that many can be":           {newKernel, []Member{small, calling("deep", make([]int16, 16)...)}, "", ""},
		"17 where that many can't":            {newKernel, []Member{small, calling("deep", make([]int16, 17)...)}, LimitCalls, "deep"},
		"functions that call themselves":      {newKernel, []Member{small, of("deep", asm.Call.Label("deep"))}, LimitCalls, "deep"},
		"tail calls":                          {newKernel, []Member{small, jumping}, "", ""},
		"tail calls, interpreted":             {oldKernel, []Member{small, jumping}, LimitTailCalls, "jumping"},
		"tail calls below much stack":         {newKernel, []Member{small, deepJump}, LimitStack, "deep"},
		"a timer's function is not below":     {newKernel, []Member{small, timed(calling("deep", 500, 500))}, "", ""},
		"a loop's function is":                {newKernel, []Member{small, looping(calling("deep", 500, 500))}, LimitStack, "deep"},
		"exceptions":                          {newKernel, []Member{small, throwing}, LimitExceptions, "throwing"},
		"one .kconfig":                        {newKernel, []Member{small, kconfig("a")}, "", ""},
		"two of .kconfig":                     {newKernel, []Member{kconfig("a"), small, kconfig("b")}, LimitKconfig, "b"},
		"bound and not":                       {newKernel, []Member{small, changed(of("bound"), bindTo(3))}, LimitDevice, "bound"},
		"bound to another":                    {newKernel, []Member{changed(of("a"), bindTo(3)), changed(of("b"), bindTo(4))}, LimitDevice, "b"},
		"bound to the same":                   {newKernel, []Member{changed(of("a"), bindTo(3)), changed(of("b"), bindTo(3))}, "", ""},
		"offloaded and not":                   {newKernel, []Member{changed(of("a"), bindTo(3)), changed(of("b"), func(p *ebpf.ProgramSpec) { p.Ifindex = 3 })}, LimitDevice, "b"},
		"another license":                     {newKernel, []Member{small, changed(of("a"), func(p *ebpf.ProgramSpec) { p.License = "Proprietary" })}, LimitLicense, "a"},
		"what is alone has no limits of ours": {newKernel, []Member{calling("deep", 512, 512)}, "", ""},
	} {
		err := check(c.members, nil, c.kernel)
		if c.limit == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		wantLimit(t, name, err, c.limit, c.member)
	}
}

func bindTo(index uint32) func(*ebpf.ProgramSpec) {
	return func(p *ebpf.ProgramSpec) { p.Ifindex, p.Flags = index, unix.BPF_F_XDP_DEV_BOUND_ONLY }
}

// timed and looping hand the first function that is called to a helper instead.
func timed(m Member) Member   { return handing(m, asm.FnTimerSetCallback) }
func looping(m Member) Member { return handing(m, asm.FnLoop) }

func handing(m Member, to asm.BuiltinFunc) Member {
	code := m.Program.Spec.Instructions
	i := slices.IndexFunc(code, func(ins asm.Instruction) bool { return ins.IsFunctionCall() })
	pointer := asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R2, Src: asm.PseudoFunc, Constant: -1}.WithReference(code[i].Reference())
	m.Program.Spec.Instructions = slices.Replace(code, i, i+1, pointer, to.Call())
	return m
}

// What several members share counts once, also where each has opened it.
func TestSharedMapsCountOnce(t *testing.T) {
	shared := map[*ebpf.Map]uint32{}
	kernel := newKernel
	kernel.mapID = func(m *ebpf.Map) uint32 { return shared[m] }
	var members []Member
	for i := range 10 {
		m := withMaps(fmt.Sprint("m", i), 8)
		m.Program.Maps = map[string]*ebpf.Map{}
		for j := range 8 {
			// Two are its own.
			opened := new(ebpf.Map)
			shared[opened] = uint32(j + 1)
			if j < 2 {
				shared[opened] = uint32(100 + 10*i + j)
			}
			m.Program.Maps[fmt.Sprint("map", j)] = opened
		}
		members = append(members, m)
	}
	if err := check(members, nil, kernel); err != nil {
		t.Error(err)
	}
	for m := range shared {
		shared[m] = 0
	}
	wantLimit(t, "unknown maps", check(members, nil, kernel), LimitMaps, "m0")
}

func TestTheFrameIsAsDeepAsTheCodeReaches(t *testing.T) {
	for name, c := range map[string]struct {
		code asm.Instructions
		want int
	}{
		"none":                   {asm.Instructions{asm.Mov.Imm(asm.R1, 0)}, 0},
		"a store":                {asm.Instructions{asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord)}, 16},
		"a constant":             {asm.Instructions{asm.StoreImm(asm.RFP, -24, 7, asm.Byte)}, 24},
		"an atomic add":          {asm.Instructions{asm.StoreXAdd(asm.RFP, asm.R1, asm.DWord)}, 0},
		"a load":                 {asm.Instructions{asm.LoadMem(asm.R1, asm.RFP, -8, asm.DWord)}, 8},
		"a buffer for a helper":  {asm.Instructions{asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -40)}, 40},
		"through a copy":         {asm.Instructions{asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -40), asm.Mov.Reg(asm.R6, asm.R2), asm.StoreImm(asm.R6, -8, 0, asm.Byte)}, 48},
		"subtracted":             {asm.Instructions{asm.Mov.Reg(asm.R2, asm.RFP), asm.Sub.Imm(asm.R2, 12)}, 12},
		"not in another's frame": {asm.Instructions{asm.StoreImm(asm.R1, -300, 0, asm.Word), asm.LoadMem(asm.R2, asm.R3, -300, asm.DWord)}, 0},
		"not after a call":       {asm.Instructions{asm.Mov.Reg(asm.R2, asm.RFP), asm.FnLoop.Call(), asm.StoreImm(asm.R2, -300, 0, asm.Word)}, 0},
		"kept over a call":       {asm.Instructions{asm.Mov.Reg(asm.R6, asm.RFP), asm.FnLoop.Call(), asm.StoreImm(asm.R6, -30, 0, asm.Byte)}, 30},
		"not of a number":        {asm.Instructions{asm.Mov.Reg(asm.R2, asm.RFP), asm.LoadImm(asm.R2, 5, asm.DWord), asm.Add.Imm(asm.R2, -300)}, 0},
		"not of half a pointer":  {asm.Instructions{asm.Mov.Reg32(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -300)}, 0},
		"not of any sum":         {asm.Instructions{asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Reg(asm.R2, asm.R3), asm.Add.Imm(asm.R2, -300)}, 0},
	} {
		var tracker frameTracker
		got := 0
		for _, ins := range c.code {
			got = max(got, tracker.step(ins))
		}
		if got != c.want {
			t.Errorf("%s: %d bytes, want %d", name, got, c.want)
		}
	}
}
