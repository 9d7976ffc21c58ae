package peertest

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m, commands) }

// site is a hook that several tools share, and the bpffs where they pin.
type site struct {
	*kerneltest.Veth
	bpffs  string
	opened []*libxdp.Chains
}

func newSite(t *testing.T) *site {
	t.Helper()
	return &site{Veth: kerneltest.NewVeth(t), bpffs: kerneltest.BPFFS(t)}
}

// needChains skips the test where the kernel can't run a chain.
func needChains(t *testing.T) {
	t.Helper()
	if !haveFreplace(t) {
		t.Skip("the kernel replaces no functions of programs (BPF_PROG_TYPE_EXT)")
	}
}

func haveFreplace(t *testing.T) bool { return have(t, features.Freplace) }

// kernelFeatures is what the kernel can do.
var kernelFeatures = sync.OnceValues(func() ([]features.Feature, error) { return features.Kernel(context.Background()) })

func have(t *testing.T, feature string) bool {
	t.Helper()
	all, err := kernelFeatures()
	if err != nil {
		t.Fatal(err)
	}
	f := features.Find(all, feature)
	if f.Supported == features.Unknown {
		t.Fatalf("can this kernel do that? %s: %s", f.About, f.Reason)
	}
	return f.Supported == features.Yes
}

// member is a member of a chain.
type member struct {
	name     string
	priority int
	actions  string // on which the chain goes on, such as "XDP_DROP,XDP_PASS"
	id       uint32
}

func (m member) String() string {
	return fmt.Sprintf("%d %s %d %s", m.priority, m.name, m.id, m.actions)
}

// attachedChain is what is at the hook, as the kernel has it. Its zero value is an
// empty hook.
type attachedChain struct {
	version    int
	dispatcher uint32
	members    []member
}

// chain reads the chain at the hook without anybody's library, and checks that
// its pins are what the protocol says, and the only ones.
func (s *site) chain(t *testing.T) attachedChain {
	t.Helper()
	if left := s.leftovers(t); len(left) != 0 {
		t.Fatalf("%v lie in the bpffs, of which nothing is attached", left)
	}
	c := attachedChain{dispatcher: s.attached(t)}
	if c.dispatcher == 0 {
		return c
	}
	conf := s.configuration(t, c.dispatcher)
	if conf[0] != 236 {
		t.Fatalf("the configuration begins with %d, want the mark of version 2 and later", conf[0])
	}
	c.version = int(conf[1])
	if want := map[int]int{2: 124, 3: 128}[c.version]; len(conf) != want {
		t.Fatalf("the configuration of version %d has %d bytes, want %d", c.version, len(conf), want)
	}
	c.members = s.members(t, c.dispatcher)
	var pins []string
	for slot := range c.members {
		pins = append(pins, fmt.Sprintf("prog%d-link", slot), fmt.Sprintf("prog%d-prog", slot))
	}
	slices.Sort(pins)
	if got := s.list(t, s.pinDir(c.dispatcher)); !slices.Equal(got, pins) {
		t.Fatalf("pins of dispatcher %d are %v, want %v", c.dispatcher, got, pins)
	}
	return c
}

// members reads a dispatcher's configuration, of version 2 or 3, and pins.
func (s *site) members(t *testing.T, dispatcher uint32) []member {
	t.Helper()
	conf := s.configuration(t, dispatcher)
	word := func(at, slot int) uint32 { return binary.NativeEndian.Uint32(conf[at+4*slot:]) }
	var members []member
	for slot := range int(conf[2]) {
		m := member{priority: int(int32(word(44, slot))), actions: actionNames(word(4, slot))}
		m.name, m.id = s.pinned(t, filepath.Join(s.pinDir(dispatcher), fmt.Sprintf("prog%d-prog", slot)))
		members = append(members, m)
	}
	return members
}

// attached is the program at the hook, in whatever mode, or 0.
func (s *site) attached(t *testing.T) uint32 {
	t.Helper()
	x := s.Near.Device(t, s.NearName).XDP
	return x.Native + x.Generic
}

// pinDir is where a dispatcher's members are pinned, below the bpffs.
func (s *site) pinDir(dispatcher uint32) string {
	return fmt.Sprintf("xdp/dispatch-%d-%d", s.NearIndex, dispatcher)
}

// leftovers are the pins of chains that are not attached, and whatever else
// lies beside, when what the library was asked to do has settled.
func (s *site) leftovers(t *testing.T) []string {
	t.Helper()
	for _, chains := range s.opened {
		chains.Wait()
	}
	own := filepath.Base(s.pinDir(s.attached(t)))
	return slices.DeleteFunc(s.list(t, "xdp"), func(name string) bool { return name == own })
}

// list names what is in a directory of the bpffs, sorted, and checks that it is
// for its owner only. A directory that is not there has nothing in it.
func (s *site) list(t *testing.T, dir string) []string {
	t.Helper()
	path := filepath.Join(s.bpffs, dir)
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("%s has mode %o, want 700", dir, info.Mode().Perm())
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (s *site) configuration(t *testing.T, dispatcher uint32) []byte {
	t.Helper()
	maps := openMaps(t, dispatcher)
	if len(maps) != 1 {
		t.Fatalf("dispatcher %d has %d maps, want one", dispatcher, len(maps))
	}
	conf, err := maps[0].LookupBytes(uint32(0))
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

func (s *site) pinned(t *testing.T, path string) (name string, id uint32) {
	t.Helper()
	p, err := ebpf.LoadPinnedProgram(filepath.Join(s.bpffs, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.Name, kerneltest.ProgramID(t, p)
}

// openMaps opens the maps of a program for the test's time.
func openMaps(t *testing.T, program uint32) []*ebpf.Map {
	t.Helper()
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(program))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	ids, ok := info.MapIDs()
	if !ok {
		t.Fatalf("the kernel does not tell the maps of program %d", program)
	}
	var maps []*ebpf.Map
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		maps = append(maps, m)
	}
	return maps
}

// actionNames writes a chain's actions as xdp-loader does. Bit 31 stands for
// what an empty slot returns.
func actionNames(mask uint32) string {
	var names []string
	for action, name := range []string{"XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"} {
		if mask&(1<<action) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

const packets = 20

// send sends packets that the members drop, and checks how many of them each
// member met and how many got through.
func (s *site) send(t *testing.T, c attachedChain, met []uint64, through uint64) {
	t.Helper()
	var counters []*ebpf.Map
	for _, m := range c.members {
		for _, candidate := range openMaps(t, m.id) {
			if candidate.Type() == ebpf.PerCPUArray {
				counters = append(counters, candidate)
			}
		}
	}
	read := func() []uint64 {
		var all []uint64
		for _, m := range counters {
			var perCPU []uint64
			if err := m.Lookup(uint32(1), &perCPU); err != nil { // COUNTER_DROPPED of bpf/filter.c
				t.Fatal(err)
			}
			sum := uint64(0)
			for _, n := range perCPU {
				sum += n
			}
			all = append(all, sum)
		}
		return all
	}
	before := read()
	f := kerneltest.StartFlood(t, s.Veth, kerneltest.FloodOptions{Port: 7777, Packets: packets, Duration: time.Minute})
	f.AwaitSent(packets)
	sent, got := f.Stop()
	if sent != packets || got != through {
		t.Errorf("of %d packets %d got through, want %d of %d", sent, got, through, packets)
	}
	var deltas []uint64
	if !kerneltest.Eventually(func() bool {
		deltas = read()
		for i := range deltas {
			deltas[i] -= before[i]
		}
		return slices.Equal(deltas, met)
	}) {
		t.Errorf("members met %d packets, want %d", deltas, met)
	}
}
