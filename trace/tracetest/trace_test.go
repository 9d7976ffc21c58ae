package tracetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/trace"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// steps are those of a packet that met the first members.
func steps(returned ...trace.Verdict) []trace.Step {
	all := []trace.Step{}
	for i, v := range returned {
		all = append(all, trace.Step{Member: i, Returned: v})
	}
	return all
}

// next waits for a packet, long enough for any machine.
func (s *site) next(tr *trace.Trace) *trace.Packet {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	p, err := tr.Next(ctx)
	if err != nil {
		lost, _ := tr.Lost()
		s.Fatalf("%v; %d packets are lost", err, lost)
	}
	return p
}

// wants waits for a packet, and compares what is told of it.
func (s *site) wants(tr *trace.Trace, met []trace.Step, verdict trace.Verdict, explained string) {
	s.Helper()
	p := s.next(tr)
	if d := cmp.Diff(met, p.Met); d != "" || p.Verdict != verdict {
		s.Errorf("the chain returned %s, and the packet met (-want +got):\n%s", p.Verdict, d)
	}
	if got := p.Explain(tr.Members()); got != explained {
		s.Errorf("%q, want %q", got, explained)
	}
}

func TestATraceTellsWhichMembersAPacketMetAndWhatEachReturned(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			o := w.build(s, 4)
			o.Count = 3
			tr := s.open(o, "udp dst port 5353")
			s.returns(pass, drop)
			s.send(1, "not asked for")
			s.send(5353, "dropped")
			if w.members {
				s.wants(tr, steps(pass, drop), drop, "dropped by member2, member 2 of 4")
			} else {
				s.wants(tr, steps(), drop, "dropped by member1, member2, member3 or member4")
			}
			s.returns()
			s.send(5353, "passed")
			if w.members {
				s.wants(tr, steps(pass, pass, pass, pass), pass, "passed by all 4 members")
			} else {
				s.wants(tr, steps(), pass, "passed by all 4 members")
			}
			s.returns(77)
			s.send(5353, "an error")
			if w.members {
				s.wants(tr, steps(77), 77, "dropped as an error (0x4d (no action)) by member1, member 1 of 4")
			} else {
				s.wants(tr, steps(), 77, "dropped as an error (0x4d (no action)) by member1, member2, member3 or member4")
			}
		})
	}
}

func TestAProgramAloneIsTracedWhoeverAttachedIt(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	s := newSite(t)
	p := foreign(t)
	s.own(p)
	id := kerneltest.ProgramID(t, p)
	tr := s.open(s.options(id, trace.Member{Name: "pass", ProgramID: id}), "udp")
	s.send(5353, "passed")
	s.wants(tr, steps(pass), pass, "passed by pass, the only member")
}

// A member that is alone takes the place of all that libxdp's dispatcher does.
func TestTheOnlyMemberOfAChainIsTraced(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			tr := s.open(w.build(s, 1), "udp")
			s.returns(drop)
			s.send(5353, "dropped")
			s.wants(tr, steps(drop), drop, "dropped by member1, the only member")
		})
	}
}

// What a tail call leads to answers for who made it, and being traced makes none
// fail: the kernel counts them in a register.
func TestTailCallsGoTheirWayWhileTheyAreTraced(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	s := newSite(t)
	tail := kerneltest.Load(t, "tailcall", nil)
	enter := tail.Programs["enter"]
	id := kerneltest.ProgramID(t, enter)
	s.own(enter)
	tr := s.open(s.options(id, trace.Member{Name: "enter", ProgramID: id}), "udp dst port 7777")
	s.send(7777, "dropped by what the tail call leads to")
	s.wants(tr, steps(drop), drop, "dropped by enter, the only member")
}

func TestAMemberWithATailCallIsTraced(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	if kerneltest.Kernel() == "5.10" {
		return // its extensions make no tail calls
	}
	s := newSite(t)
	o := buildLive(s, 1)
	d, err := live.Open(o.Program)
	s.must(err)
	defer d.Close()
	second := live.Slot(10)
	file, err := object.Read("tailcall.o", bytes.NewReader(bpfprog.ELF("tailcall")))
	s.must(err)
	extension := d.Extension(second)
	loaded, err := file.Load(object.LoadOptions{Program: object.Choice{Name: "enter"}, Extend: &extension})
	s.must(err)
	defer loaded.Close()
	link, err := d.Attach(second, kernel.FD(loaded.Program.FD()))
	s.must(err)
	defer link.Close()
	s.must(d.SetProceedOn(second, chain.DefaultProceedOn))
	s.must(d.Commit(d.Enabled().With(second)))
	o.Members = append(o.Members, trace.Member{Name: "enter", ProgramID: kerneltest.ProgramID(t, loaded.Program), ProceedOn: chain.DefaultProceedOn})
	o.Count = 2
	tr := s.open(o, "udp")
	s.send(7777, "dropped by what the tail call leads to")
	s.wants(tr, steps(pass, drop), drop, "dropped by enter, member 2 of 2")
	s.send(7778, "passed")
	s.wants(tr, steps(pass, pass), pass, "passed by all 2 members")
}

func TestAProgramWithoutTypesIsToldToBeUntraceable(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	p := kerneltest.Pass(t, "plain", nil)
	_, err := trace.Open(trace.Options{Program: kerneltest.ProgramID(t, p), Count: 1})
	if !errors.Is(err, trace.ErrUntraceable) || !errors.Is(err, xdp.ErrNotSupported) || !strings.Contains(err.Error(), "(BTF)") {
		t.Error(err)
	}
	p.Close()
	_, err = trace.Open(trace.Options{Program: 4000000000, Count: 1})
	if !errors.Is(err, xdp.ErrNotFound) {
		t.Error(err)
	}
}

// A trace must not be in the way of who changes the chain.
func TestAChainCanBeChangedWhileItIsTraced(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	s := newSite(t)
	o := buildLive(s, 2)
	o.Count = 3
	tr := s.open(o, "udp dst port 5353")
	d, err := live.Open(o.Program)
	s.must(err)
	defer d.Close()
	before := d.Enabled()
	// A third comes, drops all, and goes.
	third := live.Slot(10)
	file, opts := s.member(2)
	extension := d.Extension(third)
	opts.Extend = &extension
	loaded, err := file.Load(opts)
	s.must(err)
	defer loaded.Close()
	link, err := d.Attach(third, kernel.FD(loaded.Program.FD()))
	s.must(err)
	defer link.Close()
	s.must(d.SetProceedOn(third, chain.DefaultProceedOn))
	s.must(d.Commit(before.With(third)))
	s.returns(pass, pass, drop)
	s.send(5353, "dropped by who came")
	p := s.next(tr)
	if d := cmp.Diff(steps(pass, pass), p.Met); d != "" || p.Verdict != drop {
		t.Errorf("%s: %s", p.Verdict, d)
	}
	s.must(d.Commit(before))
	s.send(5353, "passed")
	s.wants(tr, steps(pass, pass), pass, "passed by all 2 members")
	// One that is traced goes.
	s.must(d.Commit(before.Without(before.List()[0])))
	s.send(5353, "passed by the other")
	p = s.next(tr)
	if d := cmp.Diff([]trace.Step{{Member: 1, Returned: pass}}, p.Met); d != "" {
		t.Error(d)
	}
}

// The filter in the kernel and [trace.Filter.Match] are the same.
func TestTheKernelsFilterMeansWhatTheLibrarysDoes(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	p := foreign(t)
	id := kerneltest.ProgramID(t, p)
	run := func(data []byte) {
		t.Helper()
		if _, err := p.Run(&ebpf.RunOptions{Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	sentinel := append(make([]byte, 12), 0x88, 0xb5) // of an experiment, by its type
	sentinel = append(sentinel, make([]byte, 50)...)
	packets := variety()
	for _, filter := range []string{
		"src 10.0.0.0/8 and port 53 or dst 2001:db8::/64", "not port 53 and not vlan 7",
		"host 10.1.2.3 and not tcp or ip6 and dst port 1-100 or proto 44 or arp",
	} {
		f, err := trace.ParseFilter("ether proto 0x88b5 or (" + filter + ")")
		if err != nil {
			t.Fatal(err)
		}
		tr, err := trace.Open(trace.Options{
			Program: id, Members: []trace.Member{{Name: "pass", ProgramID: id}}, Filter: f, Count: 1000, Snap: trace.MaxSnap,
		})
		if err != nil {
			t.Fatal(err)
		}
		var want, got []string
		for _, data := range packets {
			if f.Match(data) {
				want = append(want, fmt.Sprintf("%x", data))
			}
			run(data)
		}
		run(sentinel)
		for {
			p, err := tr.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if cmp.Equal(p.Data, sentinel) {
				break
			}
			got = append(got, fmt.Sprintf("%x", p.Data))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q (-library +kernel):\n%s", filter, d)
		}
		tr.Close()
	}
}

func traceCommand(args []string) int {
	var o trace.Options
	for i, a := range args {
		id, err := strconv.ParseUint(a, 10, 32)
		if err != nil {
			return 1
		}
		if i == 0 {
			o = trace.Options{Program: uint32(id), Count: 1, Snap: 64, Filter: &trace.Filter{}}
			continue
		}
		o.Members = append(o.Members, trace.Member{Name: a, ProgramID: uint32(id)})
	}
	if _, err := trace.Open(o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("on")
	io.Copy(io.Discard, os.Stdin) // until it is killed
	return 0
}

func TestATraceEndsWithItsProcess(t *testing.T) {
	kerneltest.NoLeaks(t) // which waits until what was killed has gone
	needTracing(t)
	s := newSite(t)
	o := buildLive(s, 3)
	args := []string{fmt.Sprint(o.Program)}
	for _, m := range o.Members {
		args = append(args, fmt.Sprint(m.ProgramID))
	}
	before := tracingPrograms(t)
	fresh := func() (n int) {
		for id := range tracingPrograms(t) {
			if !before[id] {
				n++
			}
		}
		return n
	}
	p := kerneltest.Start(t, kerneltest.Command("trace", args...))
	if !p.Lines.Scan() || p.Lines.Text() != "on" {
		t.Fatal("it could not be traced")
	}
	if n := fresh(); n != 5 {
		t.Errorf("%d programs trace, want one for each member and two for the chain", n)
	}
	p.Kill()
	if !kerneltest.Eventually(func() bool { return fresh() == 0 }) {
		t.Error("it is still traced")
	}
	s.returns(drop)
	s.send(5353, "dropped as ever")
	tr := s.open(o, "")
	s.send(5353, "dropped as ever")
	s.wants(tr, steps(drop), drop, "dropped by member1, member 1 of 3")
}

// tracingPrograms are the ids of the programs on this machine that trace and have
// the names of package trace's.
func tracingPrograms(t *testing.T) map[uint32]bool {
	t.Helper()
	all := make(map[uint32]bool)
	for id := uint32(0); ; {
		next, err := kernel.NextProgramID(id)
		if err != nil {
			return all
		}
		id = next
		p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			continue
		}
		info, err := p.Info()
		if err == nil && p.Type() == ebpf.Tracing && slices.Contains([]string{"begin", "member", "end"}, info.Name) {
			all[id] = true
		}
		p.Close()
	}
}

// Nobody takes what the kernel tells, at first.
func TestEachPacketOfAFloodIsToldOrCounted(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	s := newSite(t)
	o := buildLive(s, 4)
	const packets = 3000
	o.Count, o.Snap = packets, trace.MaxSnap
	tr := s.open(o, "udp dst port 5353")
	f := kerneltest.StartFlood(t, s.veth, kerneltest.FloodOptions{Port: 5353, Packets: packets, Duration: time.Minute})
	lost := func() uint64 {
		n, err := tr.Lost()
		s.must(err)
		return n
	}
	if !kerneltest.Eventually(func() bool { return lost() > 0 }) {
		t.Fatal("the kernel has room for all")
	}
	f.AwaitSent(packets)
	// Each is either told, with all of its way, or counted.
	told := uint64(0)
	for told+lost()+s.veth.Lost(t) < packets {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		p, err := tr.Next(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			continue // what was counted meanwhile is looked at
		}
		s.must(err)
		if d := cmp.Diff(steps(pass, pass, pass, pass), p.Met); d != "" {
			t.Fatal(d)
		}
		told++
	}
	if sum := told + lost() + s.veth.Lost(t); told == 0 || sum != packets {
		t.Errorf("%d packets were told, and all are %d", told, sum)
	}
	// And as many as were asked for, no more.
	tr.Close()
	o.Count = 3
	tr = s.open(o, "udp dst port 5353")
	for range 5 {
		s.send(5353, "some more")
	}
	for range 3 {
		s.next(tr)
	}
	if p, err := tr.Next(t.Context()); p != nil || err == nil {
		t.Errorf("one more than was asked for: %v", err)
	}
}

func TestWaitingForAPacketEndsWithItsContext(t *testing.T) {
	kerneltest.NoLeaks(t)
	needTracing(t)
	s := newSite(t)
	p := foreign(t)
	s.own(p)
	id := kerneltest.ProgramID(t, p)
	tr := s.open(s.options(id, trace.Member{Name: "pass", ProgramID: id}), "udp")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tr.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// The next wait is not ended by that.
	s.send(5353, "passed")
	s.wants(tr, steps(pass), pass, "passed by pass, the only member")
}

// variety is packets of all kinds, whole ones and such as are cut off.
func variety() (all [][]byte) {
	ip := func(proto byte, from, to string) []byte {
		b := append(make([]byte, 12), 0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, proto, 0, 0)
		b = append(b, netip.MustParseAddr(from).AsSlice()...)
		return append(b, netip.MustParseAddr(to).AsSlice()...)
	}
	ip6 := func(next byte, from, to string) []byte {
		b := append(make([]byte, 12), 0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, next, 64)
		b = append(b, netip.MustParseAddr(from).AsSlice()...)
		return append(b, netip.MustParseAddr(to).AsSlice()...)
	}
	ports := func(b []byte) []byte { return append(b, 0x10, 0, 0, 53, 0, 8, 0, 0) }
	fragment := ip(17, "10.1.2.3", "192.0.2.1")
	fragment[21] = 1
	options := ip(17, "10.1.2.3", "192.0.2.1")
	options[14] = 0x46
	all = [][]byte{
		ports(ip(17, "10.1.2.3", "192.0.2.1")), ports(ip(6, "10.1.2.3", "192.0.2.1")), ports(ip(1, "192.0.2.1", "10.1.2.3")),
		ports(ip(132, "192.0.2.1", "192.0.2.3")), ports(fragment), ports(append(options, 1, 1, 1, 1)),
		ports(ip6(17, "2001:db8::1", "2001:db8::2")), ports(ip6(58, "2001:db8::1", "2001:db8:0:1::2")),
		ports(append(ip6(0, "2001:db8::1", "2001:db8::2"), 17, 0, 0, 0, 0, 0, 0, 0)),
		ports(append(ip6(44, "2001:db8::1", "2001:db8::2"), 17, 0, 0, 1, 0, 0, 0, 0)),
		ports(append(ip6(44, "2001:db8::1", "2001:db8::2"), 17, 0, 0, 16, 0, 0, 0, 0)),
		ports(append(append(ip6(60, "2001:db8::1", "2001:db8::2"), 6, 1), make([]byte, 14)...)),
		ports(append(append(ip6(43, "2001:db8::1", "2001:db8::2"), 17, 200), make([]byte, 300)...)),
		append(append(make([]byte, 12), 0x08, 0x06), make([]byte, 28)...),
	}
	for _, b := range all[:8] {
		tag := append(append([]byte(nil), b[:12]...), 0x81, 0, 0x20, 7)
		all = append(all, append(tag, b[12:]...), b[:len(b)-6])
	}
	return all
}
