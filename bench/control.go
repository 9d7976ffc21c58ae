package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/vm"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// The groups of races about owned chains, and who races.
const (
	controlled        = "owned chains"
	controlledCrowded = "owned chains, without grace periods"

	permanentMember = "permanent"
	heldMember      = "held"
	bareMember      = "load and link"
)

// controlSizes are where a member is measured that is added, as the last one.
// The first runs alone, as itself, and with the second comes the dispatcher.
var controlSizes = []int{1, 2, 3, 5, 10, 20, 32}

// steadySizes are where a member comes into a dispatcher that is there.
var steadySizes = controlSizes[2:]

// controlGroups are the races, with what the report says of them.
var controlGroups = []struct{ name, heading string }{
	{controlled, "As they are used: a program that is attached to a hook waits for a grace period, to enter the kernel's XDP dispatcher; so do the first member and, with the second, the chain's own program, and no other member"},
	{controlledCrowded, "With the 48 places in the kernel's XDP dispatcher taken, without that grace period"},
}

// control measures in a virtual machine what it takes to add a member to an
// owned chain. The directory has this program, as a static binary.
func control(directory string) (*chainResults, error) {
	const guest = "/holdfast/bin/bench"
	var output bytes.Buffer
	ended, err := vm.Run(context.Background(), vm.Config{
		Kernel: chainKernel,
		Files:  []vm.File{{Guest: guest, Host: filepath.Join(directory, "bench"), Mode: 0o755}},
		Commands: []vm.Command{{
			Path: guest, Args: []string{"-guest", "control", "-scratch", "/tmp"},
			Stdout: &output, Stderr: os.Stderr,
		}},
		Timeout: 20 * time.Minute,
		ICount:  true,
		Logf:    func(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) },
	})
	if err != nil {
		return nil, fmt.Errorf("owned chains: %w", err)
	}
	if s := ended.Statuses[0]; s.Code != 0 {
		return nil, fmt.Errorf("owned chains: exit code %d %s", s.Code, s.Error)
	}
	c := &chainResults{results: &results{}, release: ended.Release}
	return c, json.Unmarshal(output.Bytes(), c.results)
}

// controlHere is the program that control runs.
func controlHere(directory string, out io.Writer) error {
	if err := mounts(); err != nil {
		return err
	}
	w, err := newWorld(2)
	if err != nil {
		return err
	}
	file, err := objectFile(directory)
	if err != nil {
		return err
	}
	a, err := arbiter.Open(arbiter.Options{})
	if err != nil {
		return err
	}
	defer a.Close()
	contenders := []contender{
		{permanentMember, func(c *clock) error { return growChain(c, a, w.hooks[0], file, owned.Permanent) }},
		{heldMember, func(c *clock) error { return growChain(c, a, w.hooks[0], file, owned.Held) }},
		{bareMember, func(c *clock) error { return loadAndLink(c, w.hooks[1], file) }},
	}
	r := &results{Interfaces: len(w.hooks), Setup: w.took, Races: map[string]*outcome{}}
	if err := r.run(controlled, 6, time.Minute, contenders); err != nil {
		return err
	}
	crowd, err := load(dispatcherSize)
	if err != nil {
		return err
	}
	defer closeAll(crowd)
	if err := w.warm(crowd...); err != nil {
		return err
	}
	if err := r.run(controlledCrowded, 6, time.Minute, contenders); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

// growChain adds members to an empty hook, one after the other, measures some of
// them, and takes all of them out again. Objects are parsed before.
func growChain(c *clock, a *arbiter.Arbiter, hook *xdp.Hook, file string, lifetime owned.Lifetime) error {
	ctx := context.Background()
	var all []arbiter.Change
	var held []arbiter.Handle
	defer func() {
		for _, h := range held {
			h.Close()
		}
	}()
	for size := 1; size <= slices.Max(controlSizes); size++ {
		o, err := object.Open(file)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("m%d", size)
		all = append(all, arbiter.Change{Change: owned.Change{Op: owned.Remove, Name: name}})
		add := func() error {
			applied, err := a.Apply(ctx, arbiter.Transaction{Hook: hook, Changes: []arbiter.Change{
				{Change: owned.Change{Op: owned.Add, Name: name, Lifetime: lifetime}, Object: o},
			}})
			if err != nil {
				return err
			}
			held = append(held, applied.Held...)
			return applied.Acknowledge()
		}
		if slices.Contains(controlSizes, size) {
			rest()
			runtime.GC()
			err = c.time(adding(size), 1, add)
		} else {
			err = add()
		}
		if err != nil {
			return err
		}
	}
	applied, err := a.Apply(ctx, arbiter.Transaction{Hook: hook, Changes: all})
	if err != nil {
		return err
	}
	return applied.Acknowledge()
}

// loadAndLink does what it takes to run the same program alone, as often as
// growChain is measured.
func loadAndLink(c *clock, hook *xdp.Hook, file string) error {
	for _, size := range controlSizes {
		o, err := object.Open(file)
		if err != nil {
			return err
		}
		var program *object.Loaded
		var link *xdp.Link
		rest()
		runtime.GC()
		err = c.time(adding(size), 1, func() (err error) {
			if program, err = o.Load(object.LoadOptions{}); err != nil {
				return err
			}
			link, err = hook.AttachLink(program.Program)
			return err
		})
		if err != nil {
			return err
		}
		if err := errors.Join(link.Detach(), link.Close(), program.Close()); err != nil {
			return err
		}
	}
	return nil
}

// controlTargets judges permanent members that come into a chain which is live
// already.
func controlTargets(r *results) []target {
	const limit = 1.5
	o := r.Races[controlled]
	var estimates []estimate
	for _, size := range steadySizes {
		estimates = append(estimates, o.ratio(adding(size), permanentMember, bareMember))
	}
	i := gravest(estimates, limit)
	most := steadySizes[len(steadySizes)-1]
	growth := o.growth(permanentMember)
	return []target{
		{"a member added to a live chain, to one load and link", "1.50", fmt.Sprintf("%s at worst (%s)", ratio(estimates[i]), adding(steadySizes[i])), judge(estimates[i], limit)},
		{
			fmt.Sprintf("what member %d takes more than member %d, to one load and link", most, steadySizes[0]), "0.10",
			ratio(growth), judge(growth, 0.1),
		},
	}
}

// growth is how much more the last member takes than the first that comes into a
// live chain, as a part of a load and link.
func (o *outcome) growth(who string) estimate {
	first, last := adding(steadySizes[0]), adding(steadySizes[len(steadySizes)-1])
	more := make([]float64, o.Rounds)
	for i := range more {
		more[i] = o.Samples[last][who][i] - o.Samples[first][who][i]
	}
	return ratios(more, o.Samples[last][bareMember])
}

func controlSection(b *bytes.Buffer, c *chainResults) {
	fmt.Fprintf(b, `
## Owned chains

A member more at the end of an owned hook's chain, by package arbiter in a running
process: the whole of a change, with its locks, its record and what is read back,
until it is acknowledged. Beside it, what it takes to load the same program
and to attach it by a link to an interface that has none. Objects are parsed before
in both. The first member runs alone, as itself; the second makes it a live chain,
and loads the dispatcher. They run in an emulated machine with Linux %s.
Go's garbage collector runs before each of them.

![times to add a member](benchmarks-control.svg)
`, c.release)
	columns := []string{permanentMember, heldMember, bareMember}
	for _, group := range controlGroups {
		o := c.Races[group.name]
		fmt.Fprintf(b, "\n%s:\n\n| member | %s | permanent / load and link | held / load and link |\n|%s\n",
			group.heading, strings.Join(columns, " | "), strings.Repeat("---|", 3+len(columns)))
		for _, size := range controlSizes {
			fmt.Fprintf(b, "| %d |", size)
			for _, who := range columns {
				fmt.Fprintf(b, " %s |", duration(o.of(adding(size), who).mid))
			}
			for _, who := range columns[:2] {
				fmt.Fprintf(b, " %s |", ratio(o.ratio(adding(size), who, bareMember)))
			}
			b.WriteString("\n")
		}
		fmt.Fprintf(b, "\n%d rounds.\n", o.Rounds)
	}
}

// plotControl shows how long it takes to add a member to a live chain, as it is
// used.
func plotControl(path string, r *results) error {
	p := newPlot("A member added to an owned chain")
	p.X.Label.Text, p.Y.Label.Text = "members afterwards", "ms"
	var ticks []plot.Tick
	for i, who := range []string{permanentMember, heldMember, bareMember} {
		var points plotter.XYs
		for _, size := range steadySizes {
			points = append(points, plotter.XY{X: float64(size), Y: r.Races[controlled].of(adding(size), who).mid / 1e6})
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color, dots.Shape = palette[i], palette[i], draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(who, line, dots)
	}
	for _, size := range steadySizes {
		ticks = append(ticks, plot.Tick{Value: float64(size), Label: fmt.Sprint(size)})
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	p.Y.Min = 0
	p.Y.Max *= 1.3 // the legend's place
	return p.Save(6*vg.Inch, 3.5*vg.Inch, path)
}
