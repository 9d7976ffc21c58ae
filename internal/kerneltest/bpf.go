package kerneltest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"golang.org/x/sys/unix"
)

// BPFFS mounts a bpffs for the test's time.
func BPFFS(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bpf")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount a bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// ObjectFile writes one of this project's objects to a file, for the command.
func ObjectFile(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".o")
	if err := os.WriteFile(path, bpfprog.ELF(name), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Load loads the only program of one of this project's objects, with the
// variables set, and closes it, with its maps, when the test ends.
func Load(t testing.TB, name string, variables map[string]any) *ebpf.Collection {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpfprog.ELF(name)))
	if err != nil {
		t.Fatal(err)
	}
	for variable, value := range variables {
		v, ok := spec.Variables[variable]
		if !ok {
			t.Fatalf("%s has no variable %s", name, variable)
		}
		if err := v.Set(value); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("load %s: %+v", name, err)
	}
	t.Cleanup(c.Close)
	return c
}

// Pass loads a program of that name that passes all packets, and closes it when
// the test ends. change, if it is not nil, changes the spec first.
func Pass(t testing.TB, name string, change func(*ebpf.ProgramSpec)) *ebpf.Program {
	t.Helper()
	spec := &ebpf.ProgramSpec{
		Name: name, Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	}
	if change != nil {
		change(spec)
	}
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		t.Fatalf("load program %s: %v", name, err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// FillDispatcher makes attaching and replacing fast, for a test that does it
// often: the kernel's own XDP dispatcher waits for an RCU grace period, ten
// milliseconds or more, whenever a program enters or leaves it, but has room for
// no more than 48. Those that come after cost nothing.
func FillDispatcher(t testing.TB) {
	t.Helper()
	const room = 48 // BPF_DISPATCHER_MAX
	n := NewNetNS(t)
	for i := range room / 2 {
		near, far := fmt.Sprintf("fill%d", i), fmt.Sprintf("fill%d", room/2+i)
		if err := n.Conn.AddVeth(near, far, -1); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{near, far} {
			if err := n.Conn.SetXDP(n.Device(t, name).Index, Pass(t, name, nil).FD(), unix.XDP_FLAGS_SKB_MODE); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// ProgramID is the id of a loaded program.
func ProgramID(t testing.TB, p *ebpf.Program) uint32 {
	t.Helper()
	info, err := kernel.ReadProgram(kernel.FD(p.FD()))
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}

// objects is what can be left behind.
type objects struct {
	programs []ebpf.ProgramID
	links    []kernel.LinkInfo
	fds      []string
}

func (o objects) String() string {
	return fmt.Sprintf("programs %v, links %+v, descriptors %v", o.programs, o.links, o.fds)
}

func (o objects) equal(p objects) bool {
	return slices.Equal(o.programs, p.programs) && slices.Equal(o.links, p.links) && slices.Equal(o.fds, p.fds)
}

func snapshot(t testing.TB) objects {
	t.Helper()
	var o objects
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		o.programs, id = append(o.programs, next), next
	}
	var err error
	if o.links, err = kernel.XDPLinks(); err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && strings.HasPrefix(target, "anon_inode:bpf") {
			o.fds = append(o.fds, fd.Name()+" "+target)
		}
	}
	return o
}

// NoLeaks fails the test if, once it has cleaned up, a program or a link is on
// the machine that was not there before, or the process has a BPF descriptor
// more. It waits a little, because the kernel releases links later. Call it
// first.
func NoLeaks(t testing.TB) {
	t.Helper()
	before := snapshot(t)
	t.Cleanup(func() {
		var after objects
		if !Eventually(func() bool { after = snapshot(t); return after.equal(before) }) {
			t.Errorf("left behind:\n before: %s\n after:  %s", before, after)
		}
	})
}

// Eventually tells whether f becomes true within some seconds.
func Eventually(f func() bool) bool {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if f() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
