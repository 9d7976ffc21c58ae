package kerneltest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

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
	CloseLater(t, c)
	return c
}

// CloseLater closes the collection when the test ends. The loader has mapped its
// variables into memory, and their map lives until the garbage collector finds
// that nothing refers to that any more, so the collection is emptied, too.
func CloseLater(t testing.TB, c *ebpf.Collection) {
	t.Cleanup(func() {
		c.Close()
		*c = ebpf.Collection{}
	})
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

// ProgramID is the id of a loaded program.
func ProgramID(t testing.TB, p *ebpf.Program) uint32 {
	t.Helper()
	info, err := kernel.ReadProgram(kernel.FD(p.FD()))
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}
