package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/vm"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// The ways to run a chain whose cost for a packet is measured: all members pass
// it, or the first drops it.
const (
	liveChain  = "live"
	liveTwins  = "live, all replaced"
	liveSpread = "live, spread"
	liveMasked = "live, one mask"
	fusedWay   = "fused"
	inlinedWay = "inlined by hand"
	sharedWay  = "shared"
	liveDrop   = "live, dropped"
	sharedDrop = "shared, dropped"

	liveCounting  = "live, counting"
	fusedCounting = "fused, counting"
)

// lookingUp is a way with other members: each looks the packet up in a map.
func lookingUp(way string) string { return way + ", looking up" }

// packetKernel is what packets are measured on, and packetPeer the line of
// xdp-loader that makes libxdp's dispatcher.
const (
	packetKernel = "6.1"
	packetPeer   = "1.6"
)

// packetSizes are the lengths of chains, as far as a way has room for them.
var packetSizes = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 32}

// lookUpSizes are those that bpf/inlined.c has with members that look up.
var lookUpSizes = []int{1, 2, 5, 10}

// packetCosts are what the virtual machine found out, in instructions.
type packetCosts struct {
	Release string
	// Costs are by way and length of the chain, for one packet, beyond what the
	// kernel takes to run a single program that passes it.
	Costs map[string]map[int]float64
	// Dispatcher is to load a live one, and Joins are by member, from the first
	// to the last.
	Dispatcher float64
	// Counting is to load one that counts.
	Counting float64
	Joins    []join
}

// join is what it took to add a member to a live chain, and to load the same
// program as one for itself.
type join struct {
	Load, Attach, Commit, Alone float64
}

func (j join) all() float64 { return j.Load + j.Attach + j.Commit }

// packets measures in a virtual machine. The directory has this program, as a
// static binary.
func packets(directory string) (*packetCosts, error) {
	peer, err := vm.FetchPeer(context.Background(), packetPeer, logf)
	if err != nil {
		return nil, err
	}
	files, err := peer.Files()
	if err != nil {
		return nil, err
	}
	c := &packetCosts{}
	c.Release, err = counted(directory, "packets", files, c)
	return c, err
}

func logf(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

// counted runs a part in a virtual machine whose clock counts instructions, with
// more files, and reads its result. It returns the kernel's release.
func counted(directory, part string, files []vm.File, result any) (string, error) {
	const guest = "/holdfast/bin/bench"
	var output bytes.Buffer
	ended, err := vm.Run(context.Background(), vm.Config{
		Kernel: packetKernel,
		Files:  append(files, vm.File{Guest: guest, Host: filepath.Join(directory, "bench"), Mode: 0o755}),
		Commands: []vm.Command{{
			Path: guest, Args: []string{"-guest", part, "-scratch", "/tmp"},
			Env: []string{"HOLDFAST_CACHE=" + vm.GuestCache}, Stdout: &output, Stderr: os.Stderr,
		}},
		Timeout: 10 * time.Minute,
		ICount:  true,
		// With its clock counting instructions this kernel does not get a second
		// one to start.
		CPUs: 1,
		Logf: logf,
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", part, err)
	}
	if s := ended.Statuses[0]; s.Code != 0 {
		return "", fmt.Errorf("%s: exit code %d %s", part, s.Code, s.Error)
	}
	return ended.Release, json.Unmarshal(output.Bytes(), result)
}

// packetsHere is the program that packets runs.
func packetsHere(directory string, out io.Writer) error {
	g, err := newGauge(directory)
	if err != nil {
		return err
	}
	costs := &packetCosts{Costs: map[string]map[int]float64{}}
	for _, w := range g.ways() {
		costs.Costs[w.name] = map[int]float64{}
		for _, n := range packetSizes {
			if n < w.least || n > w.most || w.sizes != nil && !slices.Contains(w.sizes, n) {
				continue
			}
			if costs.Costs[w.name][n], err = g.measure(w, n); err != nil {
				return fmt.Errorf("%s, %d members: %w", w.name, n, err)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: packets in chains: %s\n", w.name)
	}
	if err := g.joins(costs); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(costs)
}

// gauge measures programs.
type gauge struct {
	hook                *xdp.Hook
	iface               string
	pass, drop, looksUp source
	alone               float64 // what the kernel takes to run the smallest program
}

// newGauge makes one, with an interface and the objects of members.
func newGauge(directory string) (*gauge, error) {
	if err := mounts(); err != nil {
		return nil, err
	}
	w, err := newWorld(1)
	if err != nil {
		return nil, err
	}
	g := &gauge{hook: w.hooks[0], iface: w.names[0]}
	for _, p := range []struct {
		to   *source
		file string
		name string
	}{
		{&g.pass, "pass", "xdp_pass"}, {&g.drop, "drop", "xdp_drop"}, {&g.looksUp, "inlined", "looks_up"},
	} {
		*p.to = source{filepath.Join(directory, p.file+".o"), p.name}
		if err := os.WriteFile(p.to.path, bpfprog.ELF(p.file), 0o600); err != nil {
			return nil, err
		}
	}
	if g.alone, err = g.measureAlone(); err != nil {
		return nil, err
	}
	return g, nil
}

// source is where members come from: a program of an object file.
type source struct{ path, program string }

func (s source) open() (*object.Object, object.LoadOptions, error) {
	o, err := object.Open(s.path)
	return o, object.LoadOptions{Program: object.Choice{Name: s.program}}, err
}

func (s source) load(extend *object.Extension) (*object.Loaded, error) {
	o, opts, err := s.open()
	if err != nil {
		return nil, err
	}
	opts.Extend = extend
	l, err := o.Load(opts)
	if err != nil {
		return nil, err
	}
	return l, list(l.Maps)
}

// list writes the sender of the packet that is measured into the maps of members
// that look it up: it passes.
func list(maps map[string]*ebpf.Map) error {
	for name, m := range maps {
		if !strings.HasPrefix(name, "listed") {
			continue
		}
		if err := m.Put(packet[senderAt:senderAt+4], uint32(chain.Pass)); err != nil {
			return fmt.Errorf("list the sender: %w", err)
		}
	}
	return nil
}

// packet is the one that is measured: UDP over IPv4.
var packet = func() []byte {
	p := make([]byte, 64)
	p[12], p[14], p[23] = 0x08, 0x45, unix.IPPROTO_UDP
	copy(p[senderAt:], []byte{192, 0, 2, 1})
	return p
}()

const senderAt = 26

// way is how a chain of so many members is made. Its program runs until it is
// taken down.
type way struct {
	name        string
	least, most int
	sizes       []int        // the only ones, nil for all
	action      chain.Action // what comes out
	build       builder
}

func (g *gauge) ways() []way {
	return []way{
		{liveChain, 0, live.Places, nil, chain.Pass, g.live(g.pass, g.pass, 0, live.Fresh)},
		{liveCounting, 0, live.Places, nil, chain.Pass, counting(g.liveIn(g.pass))},
		{fusedCounting, 1, live.Places, nil, chain.Pass, counting(fuseIn(g.pass))},
		{liveTwins, 1, live.Places, nil, chain.Pass, g.live(g.pass, g.pass, 0, twins)},
		{liveSpread, 1, live.Places, nil, chain.Pass, g.live(g.pass, g.pass, 0, spread)},
		{liveMasked, 1, live.Places, nil, chain.Pass, g.live(g.pass, g.pass, chain.Set(chain.Pass, chain.Tx), live.Fresh)},
		{liveDrop, 1, live.Places, nil, chain.Drop, g.live(g.drop, g.pass, 0, live.Fresh)},
		{fusedWay, 1, live.Places, nil, chain.Pass, fuse(g.pass)},
		{inlinedWay, 0, live.Places, nil, chain.Pass, inlined("pass")},
		{sharedWay, 1, libxdp.MaxMembers, nil, chain.Pass, g.shared(g.pass)},
		{sharedDrop, 1, libxdp.MaxMembers, nil, chain.Drop, g.shared(g.drop)},
		{peerName(packetPeer), 1, libxdp.MaxMembers, nil, chain.Pass, g.peer(g.pass.path)},
		{lookingUp(liveChain), 1, live.Places, lookUpSizes, chain.Pass, g.live(g.looksUp, g.looksUp, 0, live.Fresh)},
		{lookingUp(fusedWay), 1, live.Places, lookUpSizes, chain.Pass, fuse(g.looksUp)},
		{lookingUp(inlinedWay), 1, live.Places, lookUpSizes, chain.Pass, inlined("look_up")},
	}
}

func twins(n int) ([]live.Slot, error) {
	slots, err := live.Fresh(n)
	for i, s := range slots {
		slots[i] = s.Twin()
	}
	return slots, err
}

// spread has each member come before all that are there, so that others have to
// make way time and again.
func spread(n int) ([]live.Slot, error) {
	var slots []live.Slot
	for range n {
		wanted := []live.Wanted{{Slot: live.NoSlot}}
		for _, s := range slots {
			wanted = append(wanted, live.Wanted{Slot: s})
		}
		a, err := live.Layout(wanted, live.SetOf(slots...))
		if err != nil {
			return nil, err
		}
		slots = a.Slots
	}
	return slots, nil
}

// counting makes a chain that counts in a map.
func counting(in func(*ebpf.Map) builder) builder {
	return func(n int) (*ebpf.Program, func() error, error) {
		m, err := stats.NewMap()
		if err != nil {
			return nil, nil, err
		}
		defer m.Close() // the program keeps it
		return in(m)(n)
	}
}

// liveIn makes a live chain of members that are all the same, and count in the map.
func (g *gauge) liveIn(from source) func(*ebpf.Map) builder {
	return func(m *ebpf.Map) builder { return g.liveWith(live.Options{Stats: m}, from, from, 0, live.Fresh) }
}

// live makes a live chain. proceedOn, if it is not 0, is the first one's.
func (g *gauge) live(first, others source, proceedOn chain.Actions, arrange func(int) ([]live.Slot, error)) builder {
	return g.liveWith(live.Options{}, first, others, proceedOn, arrange)
}

func (g *gauge) liveWith(o live.Options, first, others source, proceedOn chain.Actions, arrange func(int) ([]live.Slot, error)) builder {
	return func(n int) (_ *ebpf.Program, _ func() error, err error) {
		d, err := live.Load(o)
		if err != nil {
			return nil, nil, err
		}
		closers := []func() error{d.Close}
		takeDown := func() error {
			var errs []error
			for _, c := range slices.Backward(closers) {
				errs = append(errs, c())
			}
			return errors.Join(errs...)
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, takeDown())
			}
		}()
		slots, err := arrange(n)
		if err != nil {
			return nil, nil, err
		}
		if n > 0 && proceedOn != 0 {
			if err := d.SetProceedOn(slots[0], proceedOn); err != nil {
				return nil, nil, err
			}
		}
		for i, s := range slots {
			from := others
			if i == 0 {
				from = first
			}
			extend := d.Extension(s)
			member, err := from.load(&extend)
			if err != nil {
				return nil, nil, err
			}
			closers = append(closers, member.Close)
			link, err := d.Attach(s, kernel.FD(member.Program.FD()))
			if err != nil {
				return nil, nil, err
			}
			closers = append(closers, link.Close)
		}
		return d.Program(), takeDown, d.Commit(live.SetOf(slots...))
	}
}

// fuse makes one program of members that are all the same, and have maps of
// their own.
func fuse(from source) builder { return fuseWith(from, fused.Load) }

// fuseIn does the same for a chain that counts in the map.
func fuseIn(from source) func(*ebpf.Map) builder {
	return func(counts *ebpf.Map) builder {
		return fuseWith(from, func(members []fused.Member) (*ebpf.Program, error) {
			for i := range members {
				members[i].Place = i
			}
			return fused.LoadCounting(members, counts)
		})
	}
}

func fuseWith(from source, load func([]fused.Member) (*ebpf.Program, error)) builder {
	return func(n int) (*ebpf.Program, func() error, error) {
		var members []fused.Member
		defer func() {
			for _, m := range members {
				m.Program.Close() // the fused program keeps the maps
			}
		}()
		for i := range n {
			o, opts, err := from.open()
			if err != nil {
				return nil, nil, err
			}
			p, err := o.Prepare(opts)
			if err != nil {
				return nil, nil, err
			}
			members = append(members, fused.Member{Name: fmt.Sprintf("m%d", i), ProceedOn: chain.DefaultProceedOn, Program: p})
			if err := list(p.Maps); err != nil {
				return nil, nil, err
			}
		}
		program, err := load(members)
		if err != nil {
			return nil, nil, err
		}
		return program, program.Close, nil
	}
}

// inlined loads what bpf/inlined.c has made of that many members.
func inlined(member string) builder {
	return func(n int) (*ebpf.Program, func() error, error) {
		o, err := object.Read("inlined.o", bytes.NewReader(bpfprog.ELF("inlined")))
		if err != nil {
			return nil, nil, err
		}
		l, err := o.Load(object.LoadOptions{Program: object.Choice{Name: fmt.Sprintf("%s_%d", member, n)}})
		if err != nil {
			return nil, nil, err
		}
		return l.Program, l.Close, list(l.Maps)
	}
}

// shared makes a chain of a shared hook with package chain/libxdp.
func (g *gauge) shared(first source) builder {
	return func(n int) (*ebpf.Program, func() error, error) {
		chains, err := libxdp.Open(libxdp.Options{})
		if err != nil {
			return nil, nil, err
		}
		var adds []libxdp.Addition
		for i := range n {
			from, priority := g.pass, uint32(i)
			if i == 0 {
				from = first
			}
			o, opts, err := from.open()
			if err != nil {
				return nil, nil, err
			}
			adds = append(adds, libxdp.Addition{Object: o, Load: opts, Priority: &priority})
		}
		if _, err := chains.Add(context.Background(), g.hook, adds...); err != nil {
			return nil, nil, err
		}
		program, err := g.attached()
		return program, func() error {
			return errors.Join(program.Close(), chains.RemoveAll(context.Background(), g.hook, xdp.Any), chains.Close())
		}, err
	}
}

// peer makes it with libxdp's own tool.
func (g *gauge) peer(file string) builder {
	return func(n int) (*ebpf.Program, func() error, error) {
		peer, err := vm.OpenPeer(packetPeer)
		if err != nil {
			return nil, nil, err
		}
		load := append([]string{"load", "-m", "native", g.iface}, slices.Repeat([]string{file}, n)...)
		if err := finish(peer.Command(load...)); err != nil {
			return nil, nil, err
		}
		program, err := g.attached()
		return program, func() error {
			return errors.Join(program.Close(), finish(peer.Command("unload", g.iface, "--all")))
		}, err
	}
}

// attached opens the program at the hook.
func (g *gauge) attached() (*ebpf.Program, error) {
	state, err := g.hook.Query()
	if err != nil {
		return nil, err
	}
	a := state.At(xdp.Native)
	if a == nil {
		return nil, errors.New("nothing is attached")
	}
	return ebpf.NewProgramFromID(ebpf.ProgramID(a.Program.ID))
}

// measure is what a packet costs beyond a program that passes it, alone.
func (g *gauge) measure(w way, n int) (float64, error) {
	program, takeDown, err := w.build(n)
	if err != nil {
		return 0, err
	}
	cost, err := instructions(program, w.action)
	if err := errors.Join(err, takeDown()); err != nil {
		return 0, err
	}
	return cost - g.alone, nil
}

func (g *gauge) measureAlone() (float64, error) {
	programs, err := load(1)
	if err != nil {
		return 0, err
	}
	defer closeAll(programs)
	return instructions(programs[0], chain.Pass)
}

// instructions is what one run of the program takes, with what the kernel does
// around it. An interrupt only ever adds some, so the fewest are right.
func instructions(program *ebpf.Program, action chain.Action) (float64, error) {
	const runs, repeat = 9, 100
	least := time.Duration(1 << 62)
	for range runs {
		got, took, err := program.Benchmark(packet, repeat, nil)
		if err != nil {
			return 0, err
		}
		if got != uint32(action) {
			return 0, fmt.Errorf("the packet came out as %d, want %s", got, action)
		}
		least = min(least, took)
	}
	return float64(least.Nanoseconds()), nil
}

// joins measures what it takes to add members, one after the other.
func (g *gauge) joins(c *packetCosts) error {
	timed := func(to *float64, f func() error) error {
		start := time.Now()
		err := f()
		*to = float64(time.Since(start).Nanoseconds())
		return err
	}
	loading := func(o live.Options) (float64, error) {
		loads := make([]float64, 5)
		for i := range loads {
			var d *live.Dispatcher
			err := timed(&loads[i], func() (err error) {
				d, err = live.Load(o)
				return err
			})
			if err != nil {
				return 0, err
			}
			d.Close()
		}
		return median(loads), nil
	}
	counts, err := stats.NewMap()
	if err != nil {
		return err
	}
	defer counts.Close()
	if c.Dispatcher, err = loading(live.Options{}); err != nil {
		return err
	}
	if c.Counting, err = loading(live.Options{Stats: counts}); err != nil {
		return err
	}
	d, err := live.Load(live.Options{})
	if err != nil {
		return err
	}
	defer d.Close()
	slots, err := live.Fresh(live.Places)
	if err != nil {
		return err
	}
	for _, s := range slots {
		var j join
		var member, alone *object.Loaded
		var link kernel.FD
		for _, step := range []struct {
			took *float64
			do   func() error
		}{
			{&j.Load, func() (err error) {
				extend := d.Extension(s)
				member, err = g.pass.load(&extend)
				return err
			}},
			{&j.Attach, func() (err error) { link, err = d.Attach(s, kernel.FD(member.Program.FD())); return err }},
			{&j.Commit, func() error { return d.Commit(d.Enabled().With(s)) }},
			{&j.Alone, func() (err error) { alone, err = g.pass.load(nil); return err }},
		} {
			if err := timed(step.took, step.do); err != nil {
				return err
			}
		}
		defer member.Close()
		defer link.Close()
		alone.Close()
		c.Joins = append(c.Joins, j)
	}
	return nil
}

// packetColumns are the ways in the table, by what becomes of the packet.
func packetColumns() (passed, dropped []string) {
	return []string{liveChain, liveTwins, liveSpread, liveMasked, fusedWay, inlinedWay, sharedWay, peerName(packetPeer)}, []string{liveDrop, sharedDrop}
}

// packetTargets judges live chains: none that libxdp could have, of two members
// or more, costs more than its dispatcher; how much a member more costs beyond;
// and what one costs that is fused.
func packetTargets(c *packetCosts) []target {
	exact := func(v float64) estimate { return estimate{v, v, v} }
	worst, where := 0.0, ""
	for _, name := range []string{liveChain, liveTwins} {
		for n := 2; n <= libxdp.MaxMembers; n++ {
			if r := c.Costs[name][n] / c.Costs[peerName(packetPeer)][n]; r > worst {
				worst, where = r, fmt.Sprintf("%s, with %d", name, n)
			}
		}
	}
	each, fusedEach := 0.0, 0.0
	for i, n := range packetSizes {
		if n > libxdp.MaxMembers {
			before := packetSizes[i-1]
			each = math.Max(each, (c.Costs[liveChain][n]-c.Costs[liveChain][before])/float64(n-before))
		}
		if n > 0 {
			fusedEach = math.Max(fusedEach, c.Costs[fusedWay][n]/float64(n))
		}
	}
	return []target{
		{"a packet in a live chain of 2 to 10, to libxdp's", "1.00", fmt.Sprintf("%.2f at worst (%s)", worst, where), judge(exact(worst), 1)},
		{"a packet, each member of a live chain beyond 10", "21", fmt.Sprintf("%.0f instructions", each), judge(exact(each), 21)},
		{"a packet, each member of a fused chain", "12", fmt.Sprintf("%.1f instructions at most", fusedEach), judge(exact(fusedEach), 12)},
	}
}

func packetSection(b *bytes.Buffer, c *packetCosts) {
	fmt.Fprintf(b, `
## Packets in chains

What a packet costs, in instructions of the machine beyond those of a single
program that passes it, by the number of members: each of them one that passes
everything and does nothing else, except that the first drops in the columns that
say so. They are counted by an emulated machine with Linux %s,
and do not depend on anything around it.

*Live* is an owned hook's chain as it grows, one member after the other; with every
member replaced once; with each member before all that were there, so that they had
to make way and were spread over the dispatcher's places; and where one goes on
after other actions than XDP_PASS. *Fused* is the same as one program, and *inlined
by hand* one that C makes of as many members whose action the compiler does not
know. *Shared* is the chain of a shared hook, by package chain/libxdp, and %s
libxdp's own.

![instructions for a packet](benchmarks-packets.svg)

`, c.Release, "`"+peerName(packetPeer)+"`")
	passed, dropped := packetColumns()
	columns := append(passed, dropped...)
	fmt.Fprintf(b, "| members | %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", 1+len(columns)))
	for _, n := range packetSizes {
		fmt.Fprintf(b, "| %d |", n)
		for _, name := range columns {
			if cost, ok := c.Costs[name][n]; ok {
				fmt.Fprintf(b, " %.0f |", cost)
			} else {
				b.WriteString(" – |")
			}
		}
		b.WriteString("\n")
	}
	b.WriteString(`
With members that take the packet's headers apart and look its sender up, each in a
hash of its own:

`)
	lookingUps := []string{liveChain, fusedWay, inlinedWay}
	fmt.Fprintf(b, "| members | %s | fused / inlined by hand |\n|%s\n", strings.Join(lookingUps, " | "), strings.Repeat("---|", 2+len(lookingUps)))
	for _, n := range lookUpSizes {
		fmt.Fprintf(b, "| %d |", n)
		for _, name := range lookingUps {
			fmt.Fprintf(b, " %.0f |", c.Costs[lookingUp(name)][n])
		}
		fmt.Fprintf(b, " %.2f |\n", c.Costs[lookingUp(fusedWay)][n]/c.Costs[lookingUp(inlinedWay)][n])
	}
	b.WriteString(`
With --stats a chain counts what each of its members returns, and times one packet
of 64, which is in these numbers. A chain without has not an instruction more for it.
*For each* is what that is by member, with what it takes once for each packet.

`)
	fmt.Fprintf(b, "| members | %s | %s | for each | %s | %s | for each |\n|%s\n",
		liveChain, liveCounting, fusedWay, fusedCounting, strings.Repeat("---|", 7))
	for _, n := range packetSizes[1:] {
		fmt.Fprintf(b, "| %d |", n)
		for _, w := range [][2]string{{liveChain, liveCounting}, {fusedWay, fusedCounting}} {
			without, with := c.Costs[w[0]][n], c.Costs[w[1]][n]
			fmt.Fprintf(b, " %.0f | %.0f | %.1f |", without, with, (with-without)/float64(n))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(b, `
To load a live chain's dispatcher takes %.1f million instructions, once, and one that
counts %.1f million. To add a member takes the following thousands, from the object
file on, whatever is in the chain; beside it, what it takes to load the same program
as one for itself.

| member | load | attach | commit | all | load alone | all / load alone |
|---|---|---|---|---|---|---|
`, c.Dispatcher/1e6, c.Counting/1e6)
	for i, j := range c.Joins {
		if n := i + 1; slices.Contains([]int{1, 2, 10, 20, live.Places}, n) {
			fmt.Fprintf(b, "| %d | %.1f | %.1f | %.1f | %.1f | %.1f | %.2f |\n",
				n, j.Load/1e3, j.Attach/1e3, j.Commit/1e3, j.all()/1e3, j.Alone/1e3, j.all()/j.Alone)
		}
	}
}

// plotPackets shows what packets cost that all members pass.
func plotPackets(path string, c *packetCosts) error {
	p := newPlot("Instructions for a packet that all members pass")
	p.X.Label.Text, p.Y.Label.Text = "members", "instructions"
	p.Legend.Left = true
	for i, name := range []string{liveChain, liveSpread, fusedWay, inlinedWay, sharedWay, peerName(packetPeer)} {
		var points plotter.XYs
		for _, n := range packetSizes {
			if cost, ok := c.Costs[name][n]; ok {
				points = append(points, plotter.XY{X: float64(n), Y: cost})
			}
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color, dots.Shape = palette[i], palette[i], draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(name, line, dots)
	}
	p.Y.Min = 0
	return p.Save(6*vg.Inch, 3.5*vg.Inch, path)
}
