package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/vm"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// The groups of races about shared chains.
const (
	chained        = "chains"
	chainedCrowded = "chains, without grace periods"
)

// chainSizes are where a member is measured that is added, as the last one, or
// removed.
var chainSizes = []int{1, 2, 5, 10}

func adding(size int) string   { return fmt.Sprintf("add member %d", size) }
func removing(size int) string { return fmt.Sprintf("remove one of %d", size) }

// chainKernel is what chains are measured on. Not every machine's own kernel
// takes extensions, which they need.
const chainKernel = "6.12"

// chainPeers are the lines of xdp-loader to compare with.
var chainPeers = []string{"1.3", "1.6"}

func peerName(line string) string { return xdpLoader + " " + line }

// chainGroups are the races, with what the report says of them.
var chainGroups = []struct{ name, heading, suffix string }{
	{chained, "As they are used, most of it the kernel's grace period for a dispatcher that enters or leaves XDP", ""},
	{chainedCrowded, "With the 48 places in the kernel's XDP dispatcher taken, without that grace period", ", without grace periods"},
}

// chainResults are what the virtual machine found out.
type chainResults struct {
	*results
	release string   // of its kernel
	peers   []string // versions of Debian's xdp-tools
}

// inMachine runs this program in a virtual machine, to measure chains. The
// directory has it and the holdfast command, as static binaries.
func inMachine(directory string) (*chainResults, error) {
	const guest = "/holdfast/bin/"
	c := &chainResults{results: &results{}}
	var files []vm.File
	for _, name := range []string{"bench", "holdfast"} {
		files = append(files, vm.File{Guest: guest + name, Host: filepath.Join(directory, name), Mode: 0o755})
	}
	logf := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
	for _, line := range chainPeers {
		peer, err := vm.FetchPeer(context.Background(), line, logf)
		if err != nil {
			return nil, err
		}
		more, err := peer.Files()
		if err != nil {
			return nil, err
		}
		files, c.peers = append(files, more...), append(c.peers, peer.Version)
	}
	var output bytes.Buffer
	ended, err := vm.Run(context.Background(), vm.Config{
		Kernel: chainKernel,
		Files:  files,
		Commands: []vm.Command{{
			Path: guest + "bench",
			Args: []string{"-guest", "chains", "-holdfast", guest + "holdfast", "-scratch", "/tmp"},
			Env:  []string{"HOLDFAST_CACHE=" + vm.GuestCache}, Stdout: &output, Stderr: os.Stderr,
		}},
		Timeout: 20 * time.Minute,
		// A neighbor takes time from the machine, but no instructions.
		ICount: true,
		Logf:   logf,
	})
	if err != nil {
		return nil, fmt.Errorf("chains: %w", err)
	}
	if s := ended.Statuses[0]; s.Code != 0 {
		return nil, fmt.Errorf("chains: exit code %d %s", s.Code, s.Error)
	}
	c.release = ended.Release
	return c, json.Unmarshal(output.Bytes(), c.results)
}

// chains is the program that inMachine runs.
func chains(holdfast, directory string, out io.Writer) error {
	if err := mounts(); err != nil {
		return err
	}
	w, err := newWorld(1)
	if err != nil {
		return err
	}
	contenders, err := w.chainContenders(holdfast, directory)
	if err != nil {
		return err
	}
	r := &results{Interfaces: 1, Setup: w.took, Races: map[string]*outcome{}}
	if err := r.run(chained, 15, 3*time.Minute, contenders); err != nil {
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
	if err := r.run(chainedCrowded, 15, 3*time.Minute, contenders); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

// chainTool adds a program to the chain of a hook, and takes the one of that id
// out of it.
type chainTool struct {
	name   string
	add    func() error
	remove func(id uint32) error
}

func (w *world) chainContenders(holdfast, directory string) ([]contender, error) {
	file, err := objectFile(directory)
	if err != nil {
		return nil, err
	}
	chains, err := libxdp.Open(libxdp.Options{})
	if err != nil {
		return nil, err
	}
	iface, hook := w.names[0], w.hooks[0]
	byCommand := func(name string, make func(args ...string) *exec.Cmd, add []string, remove func(id string) []string) chainTool {
		return chainTool{
			name,
			func() error { return finish(make(add...)) },
			func(id uint32) error { return finish(make(remove(fmt.Sprint(id))...)) },
		}
	}
	tools := []chainTool{
		{library, func() error { return addMembers(chains, hook, file, 1) }, func(id uint32) error {
			_, err := chains.Remove(context.Background(), hook, libxdp.Target{ID: id})
			return err
		}},
		byCommand(ownTool, func(args ...string) *exec.Cmd { return exec.Command(holdfast, args...) },
			[]string{"attach", iface, file, "--mode", "native", "--shared"},
			func(id string) []string { return []string{"detach", iface, id} }),
	}
	for _, line := range chainPeers {
		peer, err := vm.OpenPeer(line)
		if err != nil {
			return nil, err
		}
		tools = append(tools, byCommand(peerName(line), peer.Command,
			[]string{"load", "-m", "native", iface, file},
			func(id string) []string { return []string{"unload", iface, "--id", id} }))
	}
	var contenders []contender
	for _, t := range tools {
		contenders = append(contenders, contender{t.name, func(c *clock) error { return t.turn(c, chains, hook, file) }})
	}
	return contenders, nil
}

// turn makes the chain longer and shorter again, and measures the tool at some
// of its lengths. In between the library changes it, which goes on with
// whatever version the tool began it in.
func (t chainTool) turn(c *clock, chains *libxdp.Chains, hook *xdp.Hook, file string) error {
	length := 0
	for _, size := range chainSizes {
		if more := size - 1 - length; more > 0 {
			if err := addMembers(chains, hook, file, more); err != nil {
				return err
			}
		}
		rest()
		if err := c.time(adding(size), 1, t.add); err != nil {
			return err
		}
		if _, err := memberIDs(chains, hook, size); err != nil {
			return fmt.Errorf("%s: %w", adding(size), err)
		}
		length = size
	}
	for _, size := range slices.Backward(chainSizes) {
		ids, err := memberIDs(chains, hook, length)
		if err != nil {
			return err
		}
		if length > size {
			var targets []libxdp.Target
			for _, id := range ids[size:] {
				targets = append(targets, libxdp.Target{ID: id})
			}
			if _, err := chains.Remove(context.Background(), hook, targets...); err != nil {
				return err
			}
		}
		rest()
		if err := c.time(removing(size), 1, func() error { return t.remove(ids[size-1]) }); err != nil {
			return err
		}
		length = size - 1
		if _, err := memberIDs(chains, hook, length); err != nil {
			return fmt.Errorf("%s: %w", removing(size), err)
		}
	}
	return nil
}

// addMembers adds the object's program so many times, from the file on.
func addMembers(chains *libxdp.Chains, hook *xdp.Hook, file string, n int) error {
	var adds []libxdp.Addition
	for range n {
		o, err := object.Open(file)
		if err != nil {
			return err
		}
		adds = append(adds, libxdp.Addition{Object: o})
	}
	_, err := chains.Add(context.Background(), hook, adds...)
	return err
}

// memberIDs are the programs of the chain, which must have that many, when
// nothing is left of the one before.
func memberIDs(chains *libxdp.Chains, hook *xdp.Hook, want int) ([]uint32, error) {
	chains.Wait()
	found, err := chains.Read(hook)
	if err != nil {
		return nil, err
	}
	if len(found.Members) != want || found.Problem != "" {
		return nil, fmt.Errorf("the chain has %d members instead of %d %s", len(found.Members), want, found.Problem)
	}
	var ids []uint32
	for _, m := range found.Members {
		ids = append(ids, m.Program.ID)
	}
	return ids, nil
}
