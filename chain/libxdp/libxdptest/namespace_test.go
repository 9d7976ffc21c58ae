package libxdptest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Both ends of the pair have the same index, each in its namespace, so that the
// names of their directories differ only by the dispatcher.
func TestNamespacesThatShareABpffsKeepEachOthersPins(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	ctx := context.Background()
	far := open(t, b.veth.Far, b.veth.FarName, xdp.Native)
	if far.Index() != b.hook.Index() {
		t.Fatalf("the indexes are %d and %d", far.Index(), b.hook.Index())
	}
	theirs, err := b.chains.Add(ctx, far, b.member("m7"))
	b.must(err)
	dir := fmt.Sprintf("%s/xdp/dispatch-%d-%d", b.bpffs, far.Index(), theirs.Dispatcher.ID)
	check := func() {
		t.Helper()
		c, err := b.chains.Read(far)
		b.must(err)
		if c.Problem != "" || !slices.Equal(names(c), []string{"m7"}) {
			t.Fatalf("the other namespace's chain is %+v", c)
		}
	}
	for range 2 {
		b.add(b.member("m1"), b.member("m2"))
		check()
		b.remove("m1")
		check()
		if met := b.send(); !slices.Equal(met, []string{"m2"}) {
			t.Errorf("a packet met %v", met)
		}
		b.must(b.chains.RemoveAll(ctx, b.hook, xdp.Any))
		check()
	}
	// The namespace has no name, and no process is in it: a descriptor of this
	// process keeps it.
	for _, index := range []int{0, b.hook.Index()} {
		cleaned, err := b.chains.Clean(ctx, b.hook.Namespace(), index)
		b.must(err)
		if len(cleaned) != 1 || cleaned[0].Removed || cleaned[0].Path != dir ||
			!strings.Contains(cleaned[0].Reason, "attached to "+b.veth.FarName+" in another network namespace") {
			t.Errorf("cleaned %+v", cleaned)
		}
		check()
	}
	cleaned, err := b.chains.Clean(ctx, b.hook.Namespace(), b.hook.Index()+1)
	b.must(err)
	if len(cleaned) != 0 {
		t.Errorf("cleaned %+v", cleaned)
	}
	b.must(b.chains.RemoveAll(ctx, far, xdp.Any))
	b.wantDirs()
}

func TestWhatAProcessIsAboutToAttachIsNotCleanedUp(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	c := b.add(b.member("m1"))
	// Detached, it is as a dispatcher that is not attached yet.
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(c.Dispatcher.ID))
	b.must(err)
	b.must(b.hook.Detach(xdp.Expect(prog)))
	ctx := context.Background()
	cleaned, err := b.chains.Clean(ctx, b.hook.Namespace(), 0)
	b.must(err)
	if len(cleaned) != 1 || cleaned[0].Removed || !strings.Contains(cleaned[0].Reason, fmt.Sprintf("process %d ", os.Getpid())) {
		t.Errorf("cleaned %+v", cleaned)
	}
	b.must(b.hook.Attach(prog, xdp.Empty))
	b.want("m1")
	b.must(b.hook.Detach(xdp.Expect(prog)))
	b.must(prog.Close())
	cleaned, err = b.chains.Clean(ctx, b.hook.Namespace(), 0)
	b.must(err)
	if len(cleaned) != 1 || !cleaned[0].Removed {
		t.Errorf("cleaned %+v", cleaned)
	}
	b.want()
}

// bind makes the addition one for the device.
func bind(a libxdp.Addition, index int) libxdp.Addition {
	a.Load.Ifindex = index
	return a
}

func TestDeviceBoundMembersAreAllOrNone(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	ctx, index := context.Background(), b.hook.Index()
	_, err := b.chains.Add(ctx, b.hook, bind(b.member("m1"), index+1))
	refused(t, err, xdp.ErrDeviceBound)
	_, err = b.chains.Add(ctx, b.hook, bind(b.member("m1"), index), b.member("m2"))
	refused(t, err, xdp.ErrDeviceBound, "m1 would be, m2 would not")
	_, err = b.chains.Add(ctx, b.hook, libxdp.Addition{Object: read(t, "pass"), Load: object.LoadOptions{Ifindex: index, Offload: true}})
	refused(t, err, xdp.ErrNotSupported)
	b.want()

	c, err := b.chains.Add(ctx, b.hook, bind(b.member("m1"), index))
	if !b.bindsToDevices() {
		refused(t, err, xdp.ErrNotSupported, "load the programs for no device")
		b.want()
		return
	}
	b.must(err)
	if !c.DeviceBound || c.Version != 3 || !c.Members[0].DeviceBound {
		t.Errorf("the chain is %+v", c)
	}
	b.want("m1")
	_, err = b.chains.Add(ctx, b.hook, b.member("m2"))
	refused(t, err, xdp.ErrDeviceBound, "m1 would be, m2 would not")
	b.add(bind(b.member("m2"), index))
	if c := b.want("m1", "m2"); !c.DeviceBound || c.Version != 3 {
		t.Errorf("the chain is %+v", c)
	}
	b.remove("m1")
	b.want("m2")
	b.remove("m2")

	// Version 2 has no place for it.
	b.add(b.member("m3"))
	_, err = b.chains.Replace(ctx, b.hook, libxdp.Target{Name: "m3"}, bind(b.member("m1"), index))
	refused(t, err, xdp.ErrDeviceBound, "only version 3")
	b.want("m3")
	b.remove("m3")
}

// bindsToDevices tells whether the kernel binds programs to the device, as it
// does since Linux 6.3.
func (b *bench) bindsToDevices() bool {
	b.Helper()
	bound := false
	b.veth.Near.In(b.T, func() error {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.XDP, AttachType: ebpf.AttachXDP, Flags: unix.BPF_F_XDP_DEV_BOUND_ONLY, Ifindex: uint32(b.hook.Index()),
			License: "GPL", Instructions: passing(),
		})
		if err == nil {
			bound = true
			p.Close()
		}
		return nil
	})
	return bound
}
