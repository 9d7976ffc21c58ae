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
	"slices"
	"time"

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
var controlGroups = []struct{ name, heading, suffix string }{
	{controlled, "As it is used: a program of one's own enters the kernel's XDP dispatcher, which takes a grace period, and a member does not", ""},
	{controlledCrowded, "With the 48 places in the kernel's XDP dispatcher taken, without that grace period", ", without grace periods"},
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
			Path: guest, Args: []string{"-control-here", "-scratch", "/tmp"},
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
	r := &results{Interfaces: 1, Setup: w.took, Races: map[string]*outcome{}}
	if err := r.run(controlled, 7, time.Minute, contenders); err != nil {
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
	if err := r.run(controlledCrowded, 7, time.Minute, contenders); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

// growChain adds members to an empty hook, one after the other, measures some of
// them, and takes all of them out again. Objects are parsed before.
func growChain(c *clock, a *arbiter.Arbiter, hook *xdp.Hook, file string, lifetime owned.Lifetime) error {
	ctx := context.Background()
	var all []arbiter.Change
	var held []*arbiter.HeldMember
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
