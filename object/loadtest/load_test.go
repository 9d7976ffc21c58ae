package loadtest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{
		"load as nobody": func([]string) int {
			return loadFilter(syscall.Setuid(65534))
		},
		"load without locked memory": func([]string) int {
			return loadFilter(unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}))
		},
	})
}

// loadFilter is a process that loads in straitened circumstances. It prints the
// error's text, for [object.ErrPermission] after the word "permission".
func loadFilter(err error) int {
	var o *object.Object
	var l *object.Loaded
	if err == nil {
		o, err = object.Read("filter.o", bytes.NewReader(bpfprog.ELF("filter")))
	}
	if err == nil {
		l, err = o.Load(object.LoadOptions{})
	}
	switch {
	case err == nil:
		fmt.Print("loaded")
		l.Close()
	case errors.Is(err, object.ErrPermission):
		fmt.Print("permission ", err)
	default:
		fmt.Print(err)
	}
	return 0
}

func TestWithoutPrivilegeTheErrorSaysWhatIsMissing(t *testing.T) {
	kerneltest.NoLeaks(t)
	out, err := kerneltest.Command("load as nobody").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"permission load filter.o", "root", "CAP_BPF and CAP_NET_ADMIN"} {
		if !strings.Contains(string(out), w) {
			t.Errorf("%q does not say %q", out, w)
		}
	}
}

func TestWithoutLockedMemoryOldKernelsRefuseAndTheErrorSaysSo(t *testing.T) {
	kerneltest.NoLeaks(t)
	out, err := kerneltest.Command("load without locked memory").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := "loaded"
	if major, minor := release(t); major < 5 || major == 5 && minor < 11 {
		want = "limit of locked memory, which is 0 KiB"
	}
	if !strings.Contains(string(out), want) {
		t.Errorf("%q does not say %q", out, want)
	}
}

func read(t testing.TB, name string, assignments ...string) *object.Object {
	t.Helper()
	o, err := object.Read(name+".o", bytes.NewReader(bpfprog.ELF(name)))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range assignments {
		if err := o.Set(a); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// load loads and closes the program when the test ends.
func load(t testing.TB, o *object.Object, opts object.LoadOptions) *object.Loaded {
	t.Helper()
	l, err := o.Load(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// run gives the program one packet and returns its action.
func run(t testing.TB, p *ebpf.Program, packet []byte) uint32 {
	t.Helper()
	action, err := p.Run(&ebpf.RunOptions{Data: packet})
	if err != nil {
		t.Fatal(err)
	}
	return action
}

// udp4 is an Ethernet frame with an empty UDP datagram over IPv4.
func udp4(port uint16) []byte {
	b := make([]byte, 14+20+8)
	b[12], b[13] = 0x08, 0x00
	b[14] = 0x45
	b[14+9] = unix.IPPROTO_UDP
	b[14+20+2], b[14+20+3] = byte(port>>8), byte(port)
	return b
}

// udp6 is the same over IPv6.
func udp6(port uint16) []byte {
	b := make([]byte, 14+40+8)
	b[12], b[13] = 0x86, 0xdd
	b[14] = 0x60
	b[14+6] = unix.IPPROTO_UDP
	b[14+40+2], b[14+40+3] = byte(port>>8), byte(port)
	return b
}

const (
	pass = uint32(chain.Pass)
	drop = uint32(chain.Drop)
)

func TestEveryGoodProgramOfOursLoadsAndRuns(t *testing.T) {
	kerneltest.NoLeaks(t)
	for name, want := range map[string]map[string]uint32{
		"count":     {"count": pass},
		"drop":      {"xdp_drop": drop},
		"filter":    {"filter": drop},
		"gate":      {"gate": drop},
		"legacy":    {"legacy": pass},
		"mixed":     {"sound": pass},
		"pass":      {"xdp_pass": pass},
		"pinned":    {"pinned": pass},
		"runconfig": {"runconfig": pass},
		"serial":    {"serial_pass": pass},
		"tailcall":  {"enter": drop, "drop_udp": drop},
		"two":       {"first": pass, "second": drop},
		"variables": {"variables": pass},
	} {
		for program, action := range want {
			t.Run(name+" "+program, func(t *testing.T) {
				l := load(t, read(t, name), object.LoadOptions{Program: object.Choice{Name: program}})
				if got := run(t, l.Program, udp4(7777)); got != action {
					t.Errorf("returned %d, want %d", got, action)
				}
			})
		}
	}
}

func TestTheFilterDropsOnePortAndCounts(t *testing.T) {
	kerneltest.NoLeaks(t)
	l := load(t, read(t, "filter", "drop_port=53"), object.LoadOptions{})

	fragment := udp4(53)
	fragment[14+7] = 1 // an offset: no UDP header in this one
	tcp := udp4(53)
	tcp[14+9] = unix.IPPROTO_TCP
	options := append(udp4(0), 0, 0, 0, 0)
	options[14] = 0x46
	options[14+24+3] = 53
	for name, c := range map[string]struct {
		packet []byte
		want   uint32
	}{
		"IPv4":                   {udp4(53), drop},
		"IPv6":                   {udp6(53), drop},
		"IPv4 with options":      {options, drop},
		"another port":           {udp4(54), pass},
		"another port over IPv6": {udp6(54), pass},
		"TCP":                    {tcp, pass},
		"a later fragment":       {fragment, pass},
		"not IP":                 {make([]byte, 60), pass},
		"cut off":                {udp4(53)[:40], pass},
	} {
		if got := run(t, l.Program, c.packet); got != c.want {
			t.Errorf("%s: returned %d, want %d", name, got, c.want)
		}
	}
	for i, want := range []uint64{9, 3} {
		var counters []uint64
		if err := l.Maps["counters"].Lookup(uint32(i), &counters); err != nil {
			t.Fatal(err)
		}
		var sum uint64
		for _, n := range counters {
			sum += n
		}
		if sum != want {
			t.Errorf("counter %d is %d, want %d", i, sum, want)
		}
	}
}

func TestValuesThatWereSetAreWhatTheProgramReads(t *testing.T) {
	kerneltest.NoLeaks(t)
	l := load(t, read(t, "variables",
		"u8=1", "u16=2", "u32=3", "u64=4", "flag=true", "name=A",
		"s8=-1", "s16=-2", "s32=-3", "s64=-4",
		"limit.rate=100", "limit.burst.low=20", "limit.burst.high=-3", "limit.mac=05:00:00:00:00:00", "ports[3]=1000",
		"writable=7", "zeroed=8", "verdict=VERDICT_DROP",
	), object.LoadOptions{})
	if got := run(t, l.Program, make([]byte, 60)); got != drop {
		t.Errorf("returned %d, want the verdict that was set", got)
	}
	var seen [4]int64
	if err := l.Maps["seen"].Lookup(uint32(0), &seen); err != nil {
		t.Fatal(err)
	}
	if want := [4]int64{1 + 2 + 3 + 4 + 1 + 'A', -10, 100 + 20 - 3 + 5 + 1000, 15}; seen != want {
		t.Errorf("the program saw %v, want %v", seen, want)
	}
}

func TestLoadsOfOneObjectDoNotShareValues(t *testing.T) {
	kerneltest.NoLeaks(t)
	o := read(t, "filter", "drop_port=1")
	first := load(t, o, object.LoadOptions{})
	if err := o.Set("drop_port=2"); err != nil {
		t.Fatal(err)
	}
	second := load(t, o, object.LoadOptions{})
	if first.Digest == second.Digest {
		t.Error("both have the same digest")
	}
	if got := run(t, first.Program, udp4(1)); got != drop {
		t.Errorf("the first lost its value: returned %d", got)
	}
	if got := run(t, second.Program, udp4(1)); got != pass {
		t.Errorf("the second has the value of the first: returned %d", got)
	}
}

func TestOnlyWhatTheProgramNeedsIsLoaded(t *testing.T) {
	kerneltest.NoLeaks(t)
	before := programs(t)
	l := load(t, read(t, "two"), object.LoadOptions{Program: object.Choice{Name: "first"}})
	if n := programs(t) - before; n != 1 {
		t.Errorf("%d programs were loaded, want 1", n)
	}
	if len(l.Maps) != 1 || l.Maps[".rodata"] == nil {
		t.Errorf("maps %v, want .rodata alone", l.Maps)
	}
	before = programs(t)
	load(t, read(t, "tailcall"), object.LoadOptions{Program: object.Choice{Name: "enter"}})
	if n := programs(t) - before; n != 2 {
		t.Errorf("%d programs were loaded, want the one chosen and its tail call's target", n)
	}
}

func programs(t *testing.T) (n int) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; n++ {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, fs.ErrNotExist) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
	}
}

func TestAProgramArrayIsNamedBecauseItIsEmptiedWithItsLastDescriptor(t *testing.T) {
	kerneltest.NoLeaks(t)
	l, err := read(t, "tailcall").Load(object.LoadOptions{Program: object.Choice{Name: "enter"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.ProgramArrays(); len(got) != 1 || got[0] != "jumps" {
		t.Errorf("program arrays %v, want jumps", got)
	}
	keep, err := l.Program.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	if got := run(t, keep, udp4(7777)); got != drop {
		t.Errorf("before: returned %d, want the tail call's drop", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if !kerneltest.Eventually(func() bool { return run(t, keep, udp4(7777)) == pass }) {
		t.Error("the program array kept its contents after its last descriptor was closed")
	}
}

func TestGarbageCollectionClosesNothingThatIsHeld(t *testing.T) {
	kerneltest.NoLeaks(t)
	l := load(t, read(t, "tailcall"), object.LoadOptions{Program: object.Choice{Name: "enter"}})
	for range 5 {
		runtime.GC()
	}
	if got := run(t, l.Program, udp4(7777)); got != drop {
		t.Errorf("returned %d, want the tail call's drop", got)
	}
}

func TestWhatTheKernelRefusesIsExplained(t *testing.T) {
	kerneltest.NoLeaks(t)
	for name, c := range map[string]struct {
		object, program string
		kind            error
		words           []string
	}{
		"out of bounds":                       {"bad", "bad", object.ErrVerifier, []string{"invalid access to packet", ": R1 ", "`return data[13] ? XDP_PASS : XDP_DROP;"}},
		"a broken program beside a sound one": {"mixed", "unsound", object.ErrVerifier, []string{"program unsound"}},
		"license":                             {"proprietary", "proprietary", object.ErrLicense, []string{"GPL-restricted", `SEC("license")`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := read(t, c.object).Load(object.LoadOptions{Program: object.Choice{Name: c.program}})
			if !errors.Is(err, c.kind) {
				t.Fatalf("error %v, want %v", err, c.kind)
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "processed ") {
				t.Errorf("error %q has the verifier's log in it", err)
			}
			var e *object.Error
			if !errors.As(err, &e) || !strings.Contains(e.VerifierLog, "processed ") {
				t.Errorf("the verifier's log is not complete: %q", e.VerifierLog)
			}
		})
	}
}

func TestTheVerifierLogOfAGoodProgramComesOnRequest(t *testing.T) {
	kerneltest.NoLeaks(t)
	if l := load(t, read(t, "pass"), object.LoadOptions{}); l.VerifierLog != "" {
		t.Errorf("log %q though nobody asked", l.VerifierLog)
	}
	l := load(t, read(t, "pass"), object.LoadOptions{LogLevel: ebpf.LogLevelInstruction})
	if !strings.Contains(l.VerifierLog, "exit") {
		t.Errorf("log %q does not show the program", l.VerifierLog)
	}
}

func TestAFragsProgramLoadsOrSaysWhichKernelDoes(t *testing.T) {
	kerneltest.NoLeaks(t)
	l, err := read(t, "frags").Load(object.LoadOptions{})
	if err == nil {
		l.Close()
		return
	}
	if major, minor := release(t); major > 5 || major == 5 && minor >= 18 {
		t.Fatalf("Linux %d.%d knows such programs, but: %v", major, minor, err)
	}
	if !errors.Is(err, object.ErrNotSupported) || !strings.Contains(err.Error(), "needs Linux 5.18") {
		t.Errorf("error %v does not say what is needed", err)
	}
}

// release is the kernel's version.
func release(t *testing.T) (major, minor int) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	number := func(s string) (n int) {
		for _, r := range s {
			n = n*10 + int(r-'0')
		}
		return n
	}
	parts := strings.FieldsFunc(unix.ByteSliceToString(u.Release[:]), func(r rune) bool { return r < '0' || r > '9' })
	return number(parts[0]), number(parts[1])
}

func TestTheExpectedAttachTypeIsOfTheHookUnlessAskedOtherwise(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	// The kernel lets a link go from one program to another only within one
	// attach type, so that tells which type a program has.
	reference := kerneltest.Pass(t, "type_xdp", nil)
	typed := load(t, read(t, "tailcall"), object.LoadOptions{Program: object.Choice{Name: "enter"}})
	untyped := load(t, read(t, "tailcall"), object.LoadOptions{Program: object.Choice{Name: "enter"}, NoAttachType: true})

	link := attach(t, v, reference)
	if err := kernel.LinkUpdateAny(link, typed.Program.FD()); err != nil {
		t.Errorf("the program does not fit where one of type BPF_XDP was: %v", err)
	}
	if err := kernel.LinkUpdateAny(link, untyped.Program.FD()); !errors.Is(err, unix.EINVAL) {
		t.Errorf("the program without attach type got in: %v", err)
	}
	if got := run(t, untyped.Program, udp4(7777)); got != drop {
		t.Errorf("the tail call of a program without attach type was not taken: returned %d", got)
	}
}

func attach(t *testing.T, v *kerneltest.Veth, p *ebpf.Program) kernel.FD {
	t.Helper()
	var link kernel.FD
	v.Near.In(t, func() (err error) {
		link, err = kernel.LinkCreateXDP(p.FD(), v.NearIndex, 0)
		return err
	})
	t.Cleanup(func() { link.Close() })
	return link
}

func TestADeviceBoundProgramIsLoadedForItsDevice(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	var l *object.Loaded
	var err error
	v.Near.In(t, func() error {
		l, err = read(t, "pass").Load(object.LoadOptions{Ifindex: v.NearIndex})
		return nil
	})
	if major, minor := release(t); major < 6 || major == 6 && minor < 3 {
		if err == nil {
			l.Close()
			t.Fatalf("Linux %d.%d bound a program to a device", major, minor)
		}
		if !errors.Is(err, object.ErrNotSupported) || !strings.Contains(err.Error(), "needs Linux 6.3") {
			t.Errorf("error %v does not say what is needed", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	attach(t, v, l.Program)
}

func TestMapsArePinnedByNameAndShared(t *testing.T) {
	kerneltest.NoLeaks(t)
	dir := kerneltest.BPFFS(t)
	first := load(t, read(t, "pinned", "step=1"), object.LoadOptions{PinMaps: dir})
	second := load(t, read(t, "pinned", "step=10"), object.LoadOptions{PinMaps: dir})
	run(t, first.Program, udp4(1))
	run(t, second.Program, udp4(1))
	if got := sum(t, first); got != 11 {
		t.Errorf("the map counts %d, want 11 from both programs", got)
	}

	alone := load(t, read(t, "pinned", "step=100"), object.LoadOptions{})
	run(t, alone.Program, udp4(1))
	if got := sum(t, alone); got != 100 {
		t.Errorf("a program without pin directory counts %d, want its own 100", got)
	}
}

func sum(t *testing.T, l *object.Loaded) (n uint64) {
	t.Helper()
	if err := l.Maps["shared"].Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLoadsAtTheSameTimeShareOnePin(t *testing.T) {
	kerneltest.NoLeaks(t)
	for range 20 {
		dir := kerneltest.BPFFS(t)
		loaded := make([]*object.Loaded, 4)
		var wg sync.WaitGroup
		for i := range loaded {
			wg.Go(func() {
				o, err := object.Read("pinned.o", bytes.NewReader(bpfprog.ELF("pinned")))
				if err == nil {
					loaded[i], err = o.Load(object.LoadOptions{PinMaps: dir})
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for _, l := range loaded {
			run(t, l.Program, udp4(1))
		}
		if got := sum(t, loaded[0]); got != 4 {
			t.Errorf("the first sees %d packets of 4", got)
		}
		for _, l := range loaded {
			l.Close()
		}
	}
}

func TestAFailedLoadLeavesNoPin(t *testing.T) {
	kerneltest.NoLeaks(t)
	dir := kerneltest.BPFFS(t)
	const noDevice = 1 << 30
	if _, err := read(t, "pinned").Load(object.LoadOptions{PinMaps: dir, Ifindex: noDevice}); err == nil {
		t.Fatal("a program was bound to a device that does not exist")
	}
	if _, err := os.Lstat(filepath.Join(dir, "shared")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pin is there: %v", err)
	}
}

func TestAPinThatCannotBeUsedIsNamed(t *testing.T) {
	kerneltest.NoLeaks(t)
	dir := kerneltest.BPFFS(t)
	pin := filepath.Join(dir, "shared")
	if err := os.Mkdir(pin, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := read(t, "pinned").Load(object.LoadOptions{PinMaps: dir})
	if !errors.Is(err, object.ErrMap) || !strings.Contains(err.Error(), pin) {
		t.Errorf("error %v does not name what is in the way", err)
	}
	_, err = read(t, "pinned").Load(object.LoadOptions{PinMaps: t.TempDir()})
	if !errors.Is(err, object.ErrMap) || !strings.Contains(err.Error(), "not a directory in a bpffs") {
		t.Errorf("error %v does not say that this is no bpffs", err)
	}
}

func TestAMapThatDoesNotFitIsRefused(t *testing.T) {
	kerneltest.NoLeaks(t)
	other, err := ebpf.NewMap(&ebpf.MapSpec{Name: "shared", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	_, err = read(t, "pinned").Load(object.LoadOptions{MapReplacements: map[string]*ebpf.Map{"shared": other}})
	if !errors.Is(err, object.ErrMap) || !strings.Contains(err.Error(), "ValueSize") {
		t.Errorf("as a replacement: error %v does not say what differs", err)
	}

	dir := kerneltest.BPFFS(t)
	if err := other.Pin(filepath.Join(dir, "shared")); err != nil {
		t.Fatal(err)
	}
	_, err = read(t, "pinned").Load(object.LoadOptions{PinMaps: dir})
	if !errors.Is(err, object.ErrMap) || !strings.Contains(err.Error(), "ValueSize") {
		t.Errorf("as a pin: error %v does not say what differs", err)
	}

	_, err = read(t, "pinned").Load(object.LoadOptions{MapReplacements: map[string]*ebpf.Map{"other": other}})
	if !errors.Is(err, object.ErrMap) || !strings.Contains(err.Error(), `no map "other"`) {
		t.Errorf("a replacement for nothing: error %v does not say so", err)
	}
}

func TestAReplacedMapIsSharedAndStaysTheCallers(t *testing.T) {
	kerneltest.NoLeaks(t)
	first := load(t, read(t, "gate", "generation=1"), object.LoadOptions{})
	hits := first.Maps["hits"]
	second := load(t, read(t, "gate", "generation=2"), object.LoadOptions{
		MapReplacements: map[string]*ebpf.Map{"hits": hits},
	})
	run(t, first.Program, udp4(7777))
	run(t, second.Program, udp4(7777))
	run(t, second.Program, udp6(7777))
	second.Close()
	for generation, want := range map[uint32]uint64{0: 0, 1: 1, 2: 2} {
		var n uint64
		if err := hits.Lookup(generation, &n); err != nil {
			t.Fatal(err)
		}
		if n != want {
			t.Errorf("generation %d dropped %d packets, want %d", generation, n, want)
		}
	}
}

func TestASerialIsReadBackFromTheKernel(t *testing.T) {
	kerneltest.NoLeaks(t)
	l := load(t, read(t, "serial", "serial=4711"), object.LoadOptions{})
	info, err := l.Program.Info()
	if err != nil {
		t.Fatal(err)
	}
	ids, _ := info.MapIDs()
	if len(ids) != 1 {
		t.Fatalf("the program has maps %v, want one", ids)
	}
	m, err := ebpf.NewMapFromID(ids[0])
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var serial uint32
	if err := m.Lookup(uint32(0), &serial); err != nil {
		t.Fatal(err)
	}
	if serial != 4711 {
		t.Errorf("serial %d, want 4711", serial)
	}
}

// The objects of xdp-tools are real programs that know nothing of Holdfast:
// with legacy helpers, maps to be pinned, AF_XDP maps, run configurations.
func TestObjectsWrittenElsewhereLoad(t *testing.T) {
	kerneltest.NoLeaks(t)
	files, err := filepath.Glob("/usr/lib/*/bpf/x*.o")
	if err != nil {
		t.Fatal(err)
	}
	loaded := make(map[string]bool)
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".o")
		t.Run(name, func(t *testing.T) {
			o, err := object.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			switch name {
			case "xdpdump_bpf": // tracing programs only
				if _, err := o.Load(object.LoadOptions{}); !errors.Is(err, object.ErrNoProgram) {
					t.Errorf("error %v, want that there is no XDP program", err)
				}
				return
			case "xdp-dispatcher":
				if _, err := o.Load(object.LoadOptions{}); !errors.Is(err, object.ErrAmbiguous) {
					t.Errorf("error %v, want that there are two", err)
				}
				load(t, o, object.LoadOptions{Program: object.Choice{Name: "xdp_pass"}})
				return
			}
			l := load(t, o, object.LoadOptions{PinMaps: kerneltest.BPFFS(t)})
			if strings.HasPrefix(name, "xdpfilt_") && l.RunConfig.Priority != 10 {
				t.Errorf("priority %d, want 10", l.RunConfig.Priority)
			}
			run(t, l.Program, udp4(7))
			loaded[name] = true
		})
	}
	for _, name := range []string{"xdpfilt_alw_all", "xdpfilt_dny_udp", "xsk_def_xdp_prog", "xdpdump_xdp"} {
		if !loaded[name] {
			t.Errorf("%s was not loaded; the packages xdp-tools and libxdp1 have it", name)
		}
	}
}
