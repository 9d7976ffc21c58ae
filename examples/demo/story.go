package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/object"
)

// story is the demo. A step returns an error where the story can't go on; a
// proof that does not hold is counted, and it does.
var story = []struct {
	title string
	play  func(*scene) error
}{
	{"Traffic flows from a client to a server. No program is attached.", before},
	{"A program for as long as a command runs. Then holdfast gets SIGKILL.", runAndKill},
	{"A filter for good: it drops UDP to port 7777, and has the hook to itself.", attach},
	{"The process that attached it is gone. The filter is not.", survive},
	{"Somebody tries to take it off, with ip.", rivalIP},
	{"Somebody attaches a second program, with holdfast: refused, and the rival is named.", rivalHoldfast},
	{"Somebody replaces it by netlink, and knows the program that is attached.", rivalNetlink},
	{"The filter is replaced under a flood, 20 times.", replaceUnderFlood},
	{"To compare: detach and attach, under the same flood.", compare},
	{"Somebody replaces the program that he saw a while ago.", stale},
	{"The hook is shared: a counter runs before the filter, and goes again.", share},
	{"The interface moves to another namespace.", move},
	{"Its owner detaches it. Nothing is left behind.", detach},
}

const (
	exitDone     = 0
	exitConflict = 4
)

func before(s *scene) error {
	all, err := s.status()
	if err != nil {
		return err
	}
	s.proof(len(all) == 0, "holdfast status: %d programs attached", len(all))
	return s.trafficIs(allArrives)
}

func (s *scene) trafficIs(want traffic) error {
	t, err := s.measure()
	if err != nil {
		return err
	}
	s.proof(t == want, "%s", t)
	return nil
}

// end kills the process, if it still runs, and waits for it.
func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func runAndKill(s *scene) error {
	const line = "holdfast run eth0 count.o -- sleep 60"
	s.command(line)
	var said strings.Builder
	cmd := s.prepare(strings.Fields(line)...)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	defer end(cmd)
	var at attachment
	var sleep int
	if !s.eventually(func() bool {
		sleep = childOf(cmd.Process.Pid)
		if sleep == 0 {
			return false
		}
		var err error
		at, err = s.here()
		return err == nil
	}) {
		end(cmd)
		return fmt.Errorf("holdfast run attached nothing: %s", said.String())
	}
	var holders []string
	for _, h := range at.Holders {
		holders = append(holders, fmt.Sprintf("%s (process %d)", h.Comm, h.PID))
	}
	s.proof(at.Lifetime == "held" && len(at.Holders) == 1 && at.Holders[0].PID == cmd.Process.Pid,
		"program %d %q, owned by link %d, which only %s holds", at.Program.ID, at.Program.Name, at.LinkID, strings.Join(holders, ", "))

	packets, err := openCounters(at.Program.ID, "packets")
	if err != nil {
		return err
	}
	defer packets.Close()
	first, err := sum(packets, keySeen)
	if err != nil {
		return err
	}
	t, err := s.measure()
	if err != nil {
		return err
	}
	now, err := sum(packets, keySeen)
	if err != nil {
		return err
	}
	sent := uint64(2*burst + pings)
	s.proof(t == allArrives && now-first >= sent, "it counted %d packets while %d were sent", now-first, sent)

	s.command(fmt.Sprintf("kill -KILL %d", cmd.Process.Pid))
	if err := cmd.Process.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	empty := s.eventually(func() bool {
		d, err := s.near.Conn.Device(ifName)
		return err == nil && d.XDP == rtnl.XDP{}
	})
	took := time.Since(killed)
	s.proof(empty, "the hook was empty %.0f ms later", float64(took.Microseconds())/1000)
	s.proof(s.eventually(func() bool { return gone(sleep) }), "the command, process %d, has ended too", sleep)
	return nil
}

// childOf finds the process that another one started, or 0. The demo's process
// namespace has only its own.
func childOf(parent int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		// A name may contain anything, blanks and brackets too.
		_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
		var state string
		var ppid int
		if _, err := fmt.Sscan(rest, &state, &ppid); err == nil && ppid == parent {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

func gone(pid int) bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

func attach(s *scene) error {
	f, err := s.must("holdfast attach eth0 filter.o --name guard --exclusive --set drop_port=7777")
	if err != nil {
		return err
	}
	s.attachPID = f.pid
	if s.attached, err = s.here(); err != nil {
		return err
	}
	at := s.attached
	s.proof(at.Held == "link" && at.LinkID != 0 && at.Lifetime == "permanent", "held by a %s, lifetime %s", at.Held, at.Lifetime)
	if err := s.trafficIs(allDropped); err != nil {
		return err
	}
	dropped, err := s.dropped(at.Program.ID)
	if err != nil {
		return err
	}
	s.proof(dropped == burst, "the filter counted %d packets dropped, of %d sent to port %d", dropped, burst, filteredPort)
	return nil
}

func survive(s *scene) error {
	s.proof(gone(s.attachPID), "process %d is gone", s.attachPID)
	at, err := s.here()
	if err != nil {
		return err
	}
	s.proof(len(at.Holders) == 0 && at.LinkID == s.attached.LinkID, "link %d is held by %d processes, and by Holdfast's own bpffs", at.LinkID, len(at.Holders))
	return s.trafficIs(allDropped)
}

func rivalIP(s *scene) error {
	for _, line := range []string{
		"ip link set dev eth0 xdp off",
		"ip -force link set dev eth0 xdp obj pass.o sec xdp",
	} {
		f, err := s.run(line)
		if err != nil {
			return err
		}
		s.proof(f.code != exitDone, "refused, exit code %d", f.code)
	}
	if err := s.untouched(); err != nil {
		return err
	}
	return s.trafficIs(allDropped)
}

func rivalHoldfast(s *scene) error {
	f, err := s.run("holdfast attach eth0 pass.o")
	if err != nil {
		return err
	}
	named := strings.Contains(f.stderr, `member "guard" at eth0 is uid 0 (holdfast, process `+strconv.Itoa(s.attachPID))
	s.proof(f.code == exitConflict && named, "exit code %d, conflict; the member and its owner are named", f.code)
	return s.untouched()
}

// rivalNetlink does what the most careful program without Holdfast does:
// compare and swap, with the right comparison.
func rivalNetlink(s *scene) error {
	expected, err := ebpf.NewProgramFromID(ebpf.ProgramID(s.attached.Program.ID))
	if err != nil {
		return err
	}
	defer expected.Close()
	o, err := object.Open(filepath.Join(s.dir, "pass.o"))
	if err != nil {
		return err
	}
	pass, err := o.Load(object.LoadOptions{})
	if err != nil {
		return err
	}
	defer pass.Close()
	index, err := s.near.Index()
	if err != nil {
		return err
	}
	s.command(fmt.Sprintf("RTM_SETLINK eth0 with XDP_FLAGS_REPLACE, expecting program %d", s.attached.Program.ID))
	err = s.near.Conn.ReplaceXDP(index, pass.Program.FD(), expected.FD(), 0)
	s.says(fmt.Sprint(err))
	s.proof(errors.Is(err, unix.EBUSY), "refused, EBUSY")
	return s.untouched()
}

// replaceUnderFlood keeps the counters of all versions, so that every packet is
// accounted for: dropped by one of them, or arrived.
func replaceUnderFlood(s *scene) error {
	const replaces, between = 20, 2_000 // packets before, between and after
	var counters []*ebpf.Map
	defer func() {
		for _, m := range counters {
			m.Close()
		}
	}()
	look := func() error {
		at, err := s.here()
		if err != nil {
			return err
		}
		s.replacedID, s.attached = s.attached.Program.ID, at
		m, err := openCounters(at.Program.ID, "counters")
		if err == nil {
			counters = append(counters, m)
		}
		return err
	}
	if err := look(); err != nil {
		return err
	}
	earlier, err := sum(counters[0], keyDropped)
	if err != nil {
		return err
	}
	f, err := s.flood(filteredPort, floodMax)
	if err != nil {
		return err
	}
	defer f.Stop()
	for version := 2; version < 2+replaces; version++ {
		f.AwaitSent(f.Sent() + between)
		line := fmt.Sprintf("holdfast replace eth0 filter.o --set version=%d", version)
		replace := s.run
		if version > 2 {
			replace = func(line string) (finished, error) { return s.quietly(strings.Fields(line)...) }
		}
		done, err := replace(line)
		if err != nil {
			return err
		}
		if done.code != exitDone {
			return fmt.Errorf("%s: exit code %d: %s", line, done.code, done.stderr)
		}
		if err := look(); err != nil {
			return err
		}
	}
	s.says(fmt.Sprintf("... and so on, to version %d", 1+replaces))
	f.AwaitSent(f.Sent() + between)
	ended := !f.Running()
	sent, arrived := f.Stop()
	s.proof(!ended && arrived == 0, "packets that met no program: %d of %d, over %d replaces", arrived, sent, replaces)

	var dropped, idle uint64
	for _, m := range counters {
		n, err := sum(m, keyDropped)
		if err != nil {
			return err
		}
		dropped += n
		if n == 0 {
			idle++
		}
	}
	dropped -= earlier
	s.proof(dropped == sent && idle == 0, "the %d versions dropped %d packets in all, %d of them none", len(counters), dropped, idle)
	return nil
}

// compare shows that the flood would notice a gap.
func compare(s *scene) error {
	const around = 5_000
	f, err := s.flood(filteredPort, floodMax)
	if err != nil {
		return err
	}
	defer f.Stop()
	f.AwaitSent(around)
	for _, line := range []string{
		"holdfast detach eth0",
		"holdfast attach eth0 filter.o --name guard --exclusive --set drop_port=7777",
	} {
		if _, err := s.must(line); err != nil {
			return err
		}
	}
	f.AwaitSent(f.Sent() + around)
	sent, arrived := f.Stop()
	s.proof(arrived > 0, "packets that met no program: %d of %d, which is why there is replace", arrived, sent)
	s.attached, err = s.here()
	return err
}

func stale(s *scene) error {
	f, err := s.run(fmt.Sprintf("holdfast replace eth0 filter.o --expect %d", s.replacedID))
	if err != nil {
		return err
	}
	s.proof(f.code == exitConflict, "exit code %d, conflict", f.code)
	return s.untouched()
}

// share adds a member before the filter, and takes it out.
func share(s *scene) error {
	for _, line := range []string{
		"holdfast set eth0 guard --exclusive=false",
		"holdfast attach eth0 count.o --name counter --before guard",
	} {
		if _, err := s.must(line); err != nil {
			return err
		}
	}
	at, err := s.here()
	if err != nil {
		return err
	}
	members := at.Chain.Members
	if len(members) != 2 {
		return fmt.Errorf("the chain has %d members", len(members))
	}
	s.proof(members[0].Name == "counter" && members[1].Name == "guard" && at.LinkID == s.attached.LinkID,
		"a %s chain, by the same link: %s, then %s", at.Chain.Engine, members[0].Name, members[1].Name)
	program := members[0].Program.ID
	if program == 0 {
		program = at.Program.ID // all members are one program
	}
	packets, err := openCounters(program, "packets")
	if err != nil {
		return err
	}
	defer packets.Close()
	if err := s.trafficIs(allDropped); err != nil {
		return err
	}
	seen, err := sum(packets, keySeen)
	if err != nil {
		return err
	}
	s.proof(seen >= 2*burst+pings, "the counter saw %d packets before the filter did, those among them that it dropped", seen)
	if _, err := s.must("holdfast detach eth0 counter"); err != nil {
		return err
	}
	if s.attached, err = s.here(); err != nil {
		return err
	}
	return s.trafficIs(allDropped)
}

func move(s *scene) error {
	for _, line := range []string{"ip netns add guest", "ip link set dev eth0 netns guest"} {
		if _, err := s.must(line); err != nil {
			return err
		}
	}
	guest, err := netns.Open("guest")
	if err != nil {
		return err
	}
	if s.near, err = s.end(guest, ifName, nearAddr, 1); err != nil {
		return err
	}
	// It lost its address, and is down.
	if err := s.near.Address(s.far); err != nil {
		return err
	}
	f, err := s.run("ip -n guest link set dev eth0 xdp off")
	if err != nil {
		return err
	}
	s.proof(f.code != exitDone, "refused, exit code %d", f.code)
	if err := s.untouched("--netns", "guest"); err != nil {
		return err
	}
	return s.trafficIs(allDropped)
}

func detach(s *scene) error {
	if _, err := s.must("holdfast detach eth0 --netns guest"); err != nil {
		return err
	}
	if err := s.trafficIs(allArrives); err != nil {
		return err
	}
	all, err := s.status("--all-netns")
	if err != nil {
		return err
	}
	entries, err := filepath.Glob("/run/holdfast/bpf/*-[0-9]*")
	if err != nil {
		return err
	}
	s.proof(len(all) == 0 && len(entries) == 0, "holdfast status --all-netns: %d programs attached, %d entries in Holdfast's state", len(all), len(entries))
	return nil
}

// eventually tells whether f becomes true within some seconds.
func (s *scene) eventually(f func() bool) bool {
	for deadline := time.Now().Add(5 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) || s.ctx.Err() != nil {
			return false
		}
	}
	return true
}
