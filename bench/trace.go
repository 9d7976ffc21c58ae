package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/trace"
)

// traceCosts are what a packet takes, in instructions, where a trace is off, on for
// other packets, on for this one, and off again.
type traceCosts struct {
	Release string
	Rows    []traceRow
}

type traceRow struct {
	Chain                   string
	Members                 int
	Off, Other, Told, After float64
}

// traced measures in a virtual machine, as packets does.
func traced(directory string) (*traceCosts, error) {
	c := &traceCosts{}
	release, err := counted(directory, "trace", nil, c)
	c.Release = release
	return c, err
}

// traceHere is the program that traced runs.
func traceHere(directory string, out io.Writer) error {
	g, err := newGauge(directory)
	if err != nil {
		return err
	}
	costs := &traceCosts{}
	for _, w := range []struct {
		name  string
		sizes []int
		build builder
	}{
		{liveChain, []int{1, 4, 10, live.Places}, g.live(g.pass, g.pass, 0, live.Fresh)},
		{sharedWay, []int{1, 4, libxdp.MaxMembers}, g.shared(g.pass)},
		{fusedWay, []int{1, 4, 10}, fuse(g.pass)},
	} {
		for _, n := range w.sizes {
			row := traceRow{Chain: w.name, Members: n}
			for _, m := range []struct {
				to     *float64
				filter string
				on     bool
				ended  bool
			}{
				{to: &row.Off}, {&row.Other, "tcp and port 443", true, false}, {&row.Told, "udp", true, false},
				{&row.After, "udp", true, true},
			} {
				build := w.build
				if m.on {
					build = withTrace(build, w.name, m.filter, m.ended)
				}
				if *m.to, err = g.measure(way{name: w.name, action: chain.Pass, build: build}, n); err != nil {
					return fmt.Errorf("%s, %d members, traced for %q: %w", w.name, n, m.filter, err)
				}
			}
			costs.Rows = append(costs.Rows, row)
		}
	}
	return json.NewEncoder(out).Encode(costs)
}

// withTrace has what is built be traced, for more packets than are sent. ended ends
// the trace before they are.
func withTrace(build builder, name, filter string, ended bool) builder {
	return func(n int) (*ebpf.Program, func() error, error) {
		program, takeDown, err := build(n)
		if err != nil {
			return nil, nil, err
		}
		tr, err := traceOf(program, name, n, filter)
		if err != nil {
			return nil, nil, errors.Join(err, takeDown())
		}
		if ended {
			tr.Close()
			return program, takeDown, nil
		}
		return program, func() error {
			tr.Close()
			return takeDown()
		}, nil
	}
}

func traceOf(program *ebpf.Program, name string, n int, filter string) (*trace.Trace, error) {
	f, err := trace.ParseFilter(filter)
	if err != nil {
		return nil, err
	}
	info, err := kernel.ReadProgram(kernel.FD(program.FD()))
	if err != nil {
		return nil, err
	}
	o := trace.Options{Program: info.ID, Filter: f, Count: 1 << 20, Snap: 256}
	if name == fusedWay {
		for range n {
			o.Members = append(o.Members, trace.Member{ProceedOn: chain.DefaultProceedOn})
		}
		return trace.Open(o)
	}
	links, err := kernel.ExtensionLinks()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.TargetID == info.ID {
			o.Members = append(o.Members, trace.Member{ProgramID: l.ProgID, ProceedOn: chain.DefaultProceedOn})
		}
	}
	if len(o.Members) != n {
		return nil, fmt.Errorf("%d members were found, want %d", len(o.Members), n)
	}
	return trace.Open(o)
}

func traceSection(w io.Writer, c *traceCosts) {
	fmt.Fprintf(w, "Linux %s, instructions for a packet of 64 bytes that all members pass:\n\n", c.Release)
	fmt.Fprintln(w, "| Chain | Members | Off | On, for other packets | On, and told | Off again |")
	fmt.Fprintln(w, "|---|---:|---:|---:|---:|---:|")
	for _, r := range c.Rows {
		fmt.Fprintf(w, "| %s | %d | %.0f | %.0f | %.0f | %.0f |\n", r.Chain, r.Members, r.Off, r.Other, r.Told, r.After)
	}
}
