package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
)

// passing is the job of members that only pass the packet, and lookUps that of
// those that look it up. The races are by these, and by how many members.
const (
	passing = "pass"
	lookUps = "look up"

	// aloneWay is a single program that passes every packet: what it takes is
	// the kernel's own time for a run.
	aloneWay = "alone"
	perRun   = "a packet"
)

// nativeSizes are the members of a chain whose time is measured here.
var nativeSizes = map[string][]int{passing: {2, 5, 10, 20, 32}, lookUps: lookUpSizes}

func nativeRace(job string, n int) string { return fmt.Sprintf("%d members, %s", n, job) }

// native measures on this machine's own kernel what a packet takes in fused
// chains, and in programs into which the same members are inlined by hand. It
// needs root, and attaches nothing.
func native(directory string) (*results, error) {
	files := map[string]source{
		passing: {filepath.Join(directory, "pass.o"), "xdp_pass"},
		lookUps: {filepath.Join(directory, "inlined.o"), "looks_up"},
	}
	for job, file := range map[string]string{passing: "pass", lookUps: "inlined"} {
		if err := os.WriteFile(files[job].path, bpfprog.ELF(file), 0o600); err != nil {
			return nil, err
		}
	}
	pass := inlined("pass")
	byHand := map[string]builder{passing: pass, lookUps: inlined("look_up")}
	r := &results{Races: map[string]*outcome{}}
	for _, job := range []string{passing, lookUps} {
		for _, n := range nativeSizes[job] {
			if err := r.runNatively(nativeRace(job, n), n, fuse(files[job]), byHand[job], pass); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// builder loads a chain of so many members, until it is taken down.
type builder = func(n int) (program *ebpf.Program, takeDown func() error, err error)

// runNatively races the two programs, and a third of no members.
func (r *results) runNatively(name string, n int, fused, inlined, alone builder) (err error) {
	var contenders []contender
	for _, c := range []struct {
		name  string
		n     int
		build builder
	}{{fusedWay, n, fused}, {inlinedWay, n, inlined}, {aloneWay, 0, alone}} {
		program, takeDown, err := c.build(c.n)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", name, c.name, err)
		}
		defer func() { err = errors.Join(err, takeDown()) }()
		contenders = append(contenders, contender{c.name, func(k *clock) error { return runPackets(k, program) }})
	}
	return r.run(name, 400, 5*time.Second, contenders)
}

// runPackets has the kernel run the program again and again, and takes the time
// that this thread had a processor for.
func runPackets(k *clock, program *ebpf.Program) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const repeat = 5000
	var took time.Duration
	for range 2 { // what the first run finds cold is warm for the second
		start, err := threadTime()
		if err != nil {
			return err
		}
		got, err := program.Run(&ebpf.RunOptions{Data: packet, Repeat: repeat})
		if err != nil {
			return err
		}
		end, err := threadTime()
		if err != nil {
			return err
		}
		if got != uint32(chain.Pass) {
			return fmt.Errorf("the packet came out as %d, want %s", got, chain.Pass)
		}
		took = end - start
	}
	k.add(perRun, repeat, took)
	return nil
}

func threadTime() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err
}

// nativeTarget judges ten members that look up.
func nativeTarget(r *results) target {
	const limit = 1.15
	e := r.Races[nativeRace(lookUps, 10)].ratio(perRun, fusedWay, inlinedWay)
	return target{"ten members that look up, fused, to the same inlined by hand, natively", "1.15", ratio(e), judge(e, limit)}
}

func nativeSection(b *bytes.Buffer, r *results) {
	fmt.Fprintf(b, `
### Natively

Time for a packet in fused chains on this machine's own kernel, beside programs
into which a C compiler has inlined what the same members do: that pass it, or
that take its headers apart and look its sender up, each in a hash of its own,
where it is found. Times are those of the processor, without what
the kernel takes to run a program that passes every packet, alone (%s); the
ratio is of the whole times.

| members | job | fused | inlined by hand | fused, a member | fused / inlined | rounds |
|---|---|---|---|---|---|---|
`, duration(r.Races[nativeRace(lookUps, 10)].of(perRun, aloneWay).mid))
	for _, job := range []string{passing, lookUps} {
		for _, n := range nativeSizes[job] {
			o := r.Races[nativeRace(job, n)]
			beyond := func(way string) float64 {
				return differences(o.Samples[perRun][way], o.Samples[perRun][aloneWay]).mid
			}
			fmt.Fprintf(b, "| %d | %s | %s | %s | %.1f ns | %s | %d |\n", n, job, duration(beyond(fusedWay)), duration(beyond(inlinedWay)),
				beyond(fusedWay)/float64(n), ratio(o.ratio(perRun, fusedWay, inlinedWay)), o.Rounds)
		}
	}
}
