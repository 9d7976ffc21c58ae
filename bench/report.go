package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// target is what the project set out to reach.
type target struct {
	what, limit, measured string
	verdict               verdict
}

func (t target) print(out io.Writer) {
	fmt.Fprintf(out, "bench: %s: %s, limit %s: %s\n", t.what, t.measured, t.limit, strings.Trim(string(t.verdict), "*"))
}

type verdict string

const (
	reached    verdict = "reached"
	notReached verdict = "**not reached**"
	undecided  verdict = "undecided: too noisy"
)

// judge says reached, or not, only if the whole interval is on one side.
func judge(e estimate, limit float64) verdict {
	switch {
	case e.high <= limit:
		return reached
	case e.low > limit:
		return notReached
	default:
		return undecided
	}
}

// gravest is the estimate that the verdict on all of them hangs on: one that is
// surely above the limit, if there is any, or else the one that may be the
// furthest above. It returns its index.
func gravest(estimates []estimate, limit float64) int {
	worst := 0
	for i, e := range estimates {
		w := estimates[worst]
		above, worstAbove := e.low > limit, w.low > limit
		if above && (!worstAbove || e.mid > w.mid) || !above && !worstAbove && e.high > w.high {
			worst = i
		}
	}
	return worst
}

// measured is all that is reported.
type measured struct {
	worlds  []*results // by the number of interfaces
	chains  *chainResults
	control *chainResults
	packets *packetCosts
	native  *results
}

// report writes benchmarks.md and its plots, and prints the targets.
func report(docs string, m *measured) error {
	all := m.worlds
	targets := slices.Concat(targets(all), chainTargets(m.chains.results), controlTargets(m.control.results),
		packetTargets(m.packets), []target{nativeTarget(m.native)})
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Benchmarks\n\n`make bench` wrote this file and its plots; run it again, as root, for the\nnumbers of another machine. It took these on:\n\n%s\n", machine())

	fmt.Fprintf(&b, "## Targets\n\n| target | limit | measured | |\n|---|---|---|---|\n")
	for _, t := range targets {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", t.what, t.limit, t.measured, t.verdict)
		t.print(os.Stdout)
	}
	b.WriteString(`
The ratios are medians of the ratios of each round, with the interval that holds
the true median with 95 % confidence. A target is reached, or not, if that
interval is wholly on one side of the limit.

## Library and bare calls

What package xdp adds to the system calls beneath it. *Warm* programs are
attached elsewhere already. *Cold* ones are not, every interface has its own, and
the kernel waits for an RCU grace period as each enters or leaves XDP, which
hides everything else. Times are per interface, with all interfaces in one loop.

![ratios of the library to the bare calls](benchmarks-library.svg)

### Owned: by link

Bare calls are LINK_CREATE, LINK_UPDATE with BPF_F_REPLACE, and LINK_DETACH.
Status is all that Holdfast shows of an interface but its holders; bare, the
same questions to the kernel without looking at the answers.

`)
	comparison(&b, all, warmLink, "warm", bare, library)
	comparison(&b, all, coldLink, "cold", bare, library)
	b.WriteString(`
### Shared: by netlink

Bare is one RTM_SETLINK, built by hand, and its answer. The library goes through
internal/rtnl, whose own part is in between.

`)
	comparison(&b, all, warmNetlink, "warm", bare, door, library)
	comparison(&b, all, coldNetlink, "cold", bare, door, library)
	b.WriteString(`
### From the names of interfaces to attached programs

All that a program does that has just started: open the namespace, find every
interface by its name, attach by a link; and, bare, LINK_CREATE alone with the
indexes at hand. Times are for all interfaces together, with one warm program.

| interfaces | LINK_CREATE | library | difference |
|---|---|---|---|
`)
	for _, r := range all {
		o := r.Races[fromNames]
		fmt.Fprintf(&b, "| %d | %s | %s | %s |\n", r.Interfaces, duration(o.of(attach, bare).mid), duration(o.of(attach, library).mid),
			duration(differences(o.Samples[attach][library], o.Samples[attach][bare]).mid))
	}
	o := all[0].Races[elsewhere]
	fmt.Fprintf(&b, `
In another network namespace than the caller's the library attaches on a thread
that it sends there, so that the caller's own never moves: %s, and %s for setns,
LINK_CREATE and setns back.

## Commands

Whole processes, from start to exit, at one interface, with the same object file
in native mode. %s runs with LIBXDP_SKIP_DISPATCHER=1: one program, as the
others. The ratios are %s's time to the other's: below 1, Holdfast is faster.

![times of the commands](benchmarks-commands.svg)

As they are used, most of it the kernel's grace period for a program that enters
or leaves XDP:

`, duration(o.of(attach, library).mid), duration(o.of(attach, bare).mid), "`xdp-loader`", "`holdfast`")
	commandTable(&b, all[0].Races[process])
	fmt.Fprintf(&b, "\nWith the %d places in the kernel's XDP dispatcher taken there is no grace period,\nand what is left is the commands' own time:\n\n", dispatcherSize)
	o = all[0].Races[crowded]
	commandTable(&b, o)
	fmt.Fprintf(&b, `
Of that, %s takes %s, and %s, which starts and
prints one line, %s. It is the price of Go, and of the packages that load BPF
objects; xdp-loader is written in C. What comes on top is what only Holdfast does:
lock and read its state, write who attached what, pin the link, read back from the
kernel what is attached now, and mark the change as acknowledged.
`, doNothing, duration(o.of(start, doNothing).mid), "`holdfast version`", duration(o.of(start, ownTool).mid))
	b.WriteString("\nStatus, with a program at every interface, in a network namespace of that many:\n\n| interfaces | holdfast | ip link | xdp-loader |\n|---|---|---|---|\n")
	for _, r := range all {
		fmt.Fprintf(&b, "| %d", r.Interfaces)
		for _, name := range []string{ownTool, ipLink, xdpLoader} {
			fmt.Fprintf(&b, " | %s", duration(r.Races[processList].of(status, name).mid))
		}
		b.WriteString(" |\n")
	}
	b.WriteString("\nOf the three only Holdfast says who holds a program. `xdp-loader` is left out\nwhere its time, which grows with the square of the interfaces, is many seconds.\n")
	memoryTable(&b, all)
	chainSection(&b, m.chains)
	controlSection(&b, m.control)
	packetSection(&b, m.packets)
	nativeSection(&b, m.native)
	b.WriteString(method)
	if err := os.WriteFile(filepath.Join(docs, "benchmarks.md"), b.Bytes(), 0o644); err != nil {
		return err
	}
	return plots(docs, m)
}

const method = `
## How it is measured

- One run compares all. In every round each contender has one turn, in an order
  drawn anew, so that a neighbor on the machine disturbs all of them alike; a
  first round is not counted. A turn at one interface repeats each step twenty
  times and counts their mean.
- All that is written as a time is a median over the rounds. Ratios are taken
  round by round; the interval comes from the order of the values alone and
  assumes no distribution.
- Go's garbage collector runs before every turn, and during one as it likes: it
  is part of what a library costs.
- Interfaces are veth pairs, down, in namespaces that end with the run. Commands
  run in a mount namespace with an empty /run and a bpffs of its own. Between
  commands there is a pause, so that none pays for what the kernel does behind
  the last one.
- Memory is VmHWM, read when the process is about to exit.
- The virtual machine is emulated, and its clock counts instructions, one a
  nanosecond: its times are no real machine's, and only what one needs more than
  another is to be read from them.
`

// targets judges what was measured.
func targets(all []*results) []target {
	var t []target
	for _, step := range []string{attach, replace} {
		for _, group := range []string{warmLink, warmNetlink} {
			var estimates []estimate
			for _, r := range all {
				estimates = append(estimates, r.Races[group].ratio(step, library, bare))
			}
			i := gravest(estimates, 1.1)
			t = append(t, target{
				fmt.Sprintf("library, %s %s, to the bare calls", step, group), "1.10",
				fmt.Sprintf("%s at worst, with %d interfaces", ratio(estimates[i]), all[i].Interfaces), judge(estimates[i], 1.1),
			})
		}
	}
	for _, step := range []string{attach, detach} {
		e := all[0].Races[process].ratio(step, ownTool, xdpLoader)
		t = append(t, target{fmt.Sprintf("`holdfast %s` to `xdp-loader`", step), "1.00", ratio(e), judge(e, 1)})
	}
	last := all[len(all)-1]
	o := last.Races[fromNames]
	d := differences(o.Samples[attach][library], o.Samples[attach][bare])
	t = append(t, target{
		fmt.Sprintf("library, one program at %d interfaces, beyond the bare calls", last.Interfaces),
		"200 ms", duration(d.mid), judge(d, 200e6),
	})
	peak, job := 0, ""
	for _, r := range all {
		for name, jobs := range r.Memory {
			for step, kib := range jobs {
				if (name == ownTool || name == shared) && kib > peak {
					peak, job = kib, fmt.Sprintf("%s, %d interfaces", step, r.Interfaces)
				}
			}
		}
	}
	memory := float64(peak) * 1024
	return append(t, target{"memory of `holdfast`", "20 MB",
		fmt.Sprintf("%.1f MB at most (%s)", memory/1e6, job), judge(estimate{memory, memory, memory}, 20e6)})
}

// chainTargets judges the worst of all lengths of the chain, by each xdp-loader.
func chainTargets(r *results) []target {
	var t []target
	for _, group := range chainGroups {
		for _, goal := range []struct {
			what, who string
			step      func(size int) string
			limit     float64
		}{
			{"library, a member added, to `xdp-loader`", library, adding, 0.2},
			{"`holdfast attach --shared` to `xdp-loader`", ownTool, adding, 1},
			{"`holdfast detach` of a member to `xdp-loader`", ownTool, removing, 1},
		} {
			var estimates []estimate
			var where []string
			for _, size := range chainSizes {
				for _, line := range chainPeers {
					estimates = append(estimates, r.Races[group.name].ratio(goal.step(size), goal.who, peerName(line)))
					where = append(where, fmt.Sprintf("%s, to %s", goal.step(size), line))
				}
			}
			i := gravest(estimates, goal.limit)
			t = append(t, target{
				goal.what + group.suffix, fmt.Sprintf("%.2f", goal.limit),
				fmt.Sprintf("%s at worst (%s)", ratio(estimates[i]), where[i]), judge(estimates[i], goal.limit),
			})
		}
	}
	return t
}

func chainSection(b *bytes.Buffer, c *chainResults) {
	fmt.Fprintf(b, `
## Shared chains

A member more at the end of a chain, and one less: with package chain/libxdp in a
running process, from the object file on, and with whole processes of
%[1]s, and of %[2]s,
as it is in Debian's xdp-tools %[3]s. They run in a virtual machine
with Linux %[4]s, because a machine's own kernel may refuse
extensions. Ratios below 1 mean that Holdfast is faster.

What the library replaced it removes a grace period later, when no packet can be
in it any more, and its caller does not wait for that. The command does, except
after a first member; %[2]s removes the old chain at once.

![times to add a member](benchmarks-chains.svg)
`, "`holdfast attach --shared` and `detach`", "`xdp-loader`", strings.Join(c.peers, " and "), c.release)
	for _, group := range chainGroups {
		o := c.Races[group.name]
		fmt.Fprintf(b, "\n%s:\n\n| job | library | holdfast |", group.heading)
		for _, line := range chainPeers {
			fmt.Fprintf(b, " %s |", peerName(line))
		}
		for _, line := range chainPeers {
			fmt.Fprintf(b, " library / %[1]s | holdfast / %[1]s |", line)
		}
		fmt.Fprintf(b, "\n|---|---|---|%s\n", strings.Repeat("---|", 3*len(chainPeers)))
		for _, step := range o.Steps {
			fmt.Fprintf(b, "| %s | %s | %s |", step, duration(o.of(step, library).mid), duration(o.of(step, ownTool).mid))
			for _, line := range chainPeers {
				fmt.Fprintf(b, " %s |", duration(o.of(step, peerName(line)).mid))
			}
			for _, line := range chainPeers {
				for _, who := range []string{library, ownTool} {
					fmt.Fprintf(b, " %s |", ratio(o.ratio(step, who, peerName(line))))
				}
			}
			b.WriteString("\n")
		}
		fmt.Fprintf(b, "\n%d rounds.\n", o.Rounds)
	}
}

// comparison is a table of contenders, the first of which the others are
// compared to.
func comparison(b *bytes.Buffer, all []*results, group, what string, names ...string) {
	fmt.Fprintf(b, "| %s | interfaces |", what)
	for _, name := range names {
		fmt.Fprintf(b, " %s |", name)
	}
	for _, name := range names[1:] {
		fmt.Fprintf(b, " %s / %s |", name, names[0])
	}
	fmt.Fprintf(b, " rounds |\n|---|---|%s\n", strings.Repeat("---|", 2*len(names)))
	for _, step := range []string{attach, replace, detach, status} {
		for _, r := range all {
			o := r.Races[group]
			if o == nil || o.Samples[step] == nil {
				continue
			}
			fmt.Fprintf(b, "| %s | %d |", step, r.Interfaces)
			for _, name := range names {
				fmt.Fprintf(b, " %s |", duration(o.of(step, name).mid))
			}
			for _, name := range names[1:] {
				fmt.Fprintf(b, " %s |", ratio(o.ratio(step, name, names[0])))
			}
			fmt.Fprintf(b, " %d |\n", o.Rounds)
		}
	}
	b.WriteString("\n")
}

func commandTable(b *bytes.Buffer, o *outcome) {
	fmt.Fprintf(b, "| job | %s | %s | %s | %s | to %s | to %s |\n|---|---|---|---|---|---|---|\n", ownTool, shared, xdpLoader, ipLink, xdpLoader, ipLink)
	for _, step := range []string{attach, replace, detach} {
		fmt.Fprintf(b, "| %s", step)
		for _, name := range []string{ownTool, shared, xdpLoader, ipLink} {
			fmt.Fprintf(b, " | %s", duration(o.of(step, name).mid))
		}
		for _, name := range []string{xdpLoader, ipLink} {
			fmt.Fprintf(b, " | %s", ratio(o.ratio(step, ownTool, name)))
		}
		b.WriteString(" |\n")
	}
	fmt.Fprintf(b, "\n%d rounds.\n", o.Rounds)
}

func memoryTable(b *bytes.Buffer, all []*results) {
	b.WriteString("\n### Memory\n\nThe most that was resident, in MB.\n\n| command | attach | replace | detach |")
	for _, r := range all {
		fmt.Fprintf(b, " status, %d |", r.Interfaces)
	}
	fmt.Fprintf(b, "\n|---|---|---|---|%s\n", strings.Repeat("---|", len(all)))
	cell := func(kib int) {
		if kib == 0 {
			b.WriteString(" | –")
			return
		}
		fmt.Fprintf(b, " | %.1f", float64(kib)*1024/1e6)
	}
	for _, name := range []string{ownTool, shared, xdpLoader, ipLink} {
		fmt.Fprintf(b, "| %s", name)
		for _, step := range []string{attach, replace, detach} {
			cell(all[0].Memory[name][step])
		}
		for _, r := range all {
			cell(r.Memory[name][status])
		}
		b.WriteString(" |\n")
	}
}

// duration writes nanoseconds for people.
func duration(ns float64) string {
	switch {
	case math.IsNaN(ns): // nothing was measured
		return "–"
	case ns < 1e3 && ns > -1e3:
		return fmt.Sprintf("%.0f ns", ns)
	case ns < 1e6 && ns > -1e6:
		return fmt.Sprintf("%.1f µs", ns/1e3)
	case ns < 1e10:
		return fmt.Sprintf("%.1f ms", ns/1e6)
	default:
		return fmt.Sprintf("%.1f s", ns/1e9)
	}
}

func ratio(e estimate) string {
	if math.IsNaN(e.mid) {
		return "–"
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", e.mid, e.low, e.high)
}

// machine describes where the numbers come from.
func machine() string {
	var b strings.Builder
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Fprintf(&b, "- Linux %s, %s\n", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]))
	}
	fmt.Fprintf(&b, "- %d CPUs, %s\n", runtime.NumCPU(), cpu())
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Fprintf(&b, "- load of the last 15 minutes at the end: %s\n", strings.Fields(string(load))[2])
	}
	fmt.Fprintf(&b, "- %s", runtime.Version())
	for _, t := range tools("", "", "") {
		if len(t.version) == 0 {
			continue
		}
		if version := firstLine(t.version); version != "" {
			b.WriteString(", " + version)
		}
	}
	b.WriteString("\n")
	return b.String()
}

func cpu() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
