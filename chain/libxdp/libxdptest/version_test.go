package libxdptest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// versionOne attaches a chain as libxdp did before version 2: members of
// bpf/member.c, of which each goes on after its actions, with priorities 10, 11
// and so on.
func (b *bench) versionOne(proceedOn []chain.Actions, members ...string) (dispatcher *ebpf.Program) {
	b.Helper()
	const size, actions, priorities = 84, 4, 44
	conf := make([]byte, size)
	conf[0] = byte(len(members))
	for i := range members {
		binary.LittleEndian.PutUint32(conf[actions+4*i:], uint32(proceedOn[i].With(31)))
		binary.LittleEndian.PutUint32(conf[priorities+4*i:], uint32(10+i))
	}
	dispatcher = b.loadVersionOne(conf)
	info, err := kernel.ReadProgram(kernel.FD(dispatcher.FD()))
	b.must(err)
	dir := filepath.Join(b.bpffs, "xdp", fmt.Sprintf("dispatch-%d-%d", b.hook.Index(), info.ID))
	b.must(os.MkdirAll(dir, 0o700))
	for i, name := range members {
		a := b.member(name)
		a.Load.Extend = &object.Extension{Target: dispatcher, Function: fmt.Sprintf("prog%d", i)}
		loaded, err := a.Object.Load(a.Load)
		b.must(err)
		link, err := kernel.LinkCreateExtension(loaded.Program.FD(), 0, 0)
		b.must(err)
		b.must(kernel.Pin(link, fmt.Sprintf("%s/prog%d-link", dir, i)))
		b.must(loaded.Program.Pin(fmt.Sprintf("%s/prog%d-prog", dir, i)))
		b.must(link.Close())
		b.must(loaded.Close())
	}
	b.must(b.hook.Attach(dispatcher, xdp.Empty))
	return dispatcher
}

// loadVersionOne loads bpf/dispatcherv1.c. cilium/ebpf would leave out of its BTF
// what no function needs: the version.
func (b *bench) loadVersionOne(conf []byte) *ebpf.Program {
	b.Helper()
	spec, err := bpfprog.LoadDispatcherv1()
	b.must(err)
	program := spec.Programs["xdp_dispatcher"]
	var version *btf.Datasec
	b.must(spec.Types.TypeByName("xdp_metadata", &version))
	var types btf.Builder
	functions, _, err := btf.MarshalExtInfos(program.Instructions, &types)
	b.must(err)
	_, err = types.Add(version)
	b.must(err)
	raw, err := types.Marshal(nil, btf.KernelMarshalOptions())
	b.must(err)
	typesFD, err := kernel.LoadTypes(raw)
	b.must(err)
	defer typesFD.Close()

	confFD, err := kernel.MakeConstant("xdp_disp.rodata", conf)
	b.must(err)
	confMap, err := ebpf.NewMapFromFD(int(confFD))
	b.must(err)
	defer confMap.Close()
	for it := program.Instructions.Iterate(); it.Next(); {
		if it.Ins.IsLoadFromMap() {
			b.must(it.Ins.AssociateMap(confMap))
		}
	}
	var instructions bytes.Buffer
	b.must(program.Instructions.Marshal(&instructions, program.ByteOrder))
	fd, err := kernel.LoadProgram(kernel.XDPProgram{
		Name: program.Name, Instructions: instructions.Bytes(), License: []byte("GPL\x00"),
		Types: typesFD, Functions: functions,
	})
	b.must(err)
	dispatcher, err := ebpf.NewProgramFromFD(int(fd))
	b.must(err)
	b.Cleanup(func() { dispatcher.Close() })
	return dispatcher
}

func TestAChainOfVersionOneIsReadAndDetachedAndNotChanged(t *testing.T) {
	needFreplace(t)
	kerneltest.NoLeaks(t)
	b := newBench(t)
	ctx := context.Background()
	proceedOn := []chain.Actions{chain.DefaultProceedOn, chain.Set(chain.Drop, chain.Tx), chain.DefaultProceedOn}
	members := []string{"m2", "m1", "a_member_with_a_long_name"}
	dispatcher := b.versionOne(proceedOn, members...)
	pins := dirs(t, b.bpffs)

	c := b.read()
	if c.Kind != libxdp.Dispatcher || c.Version != 1 || c.MadeBy != libxdp.MadeByOther || c.Problem != "" {
		t.Fatalf("the chain is %+v", c)
	}
	if !slices.Equal(names(c), members) {
		t.Errorf("the members are %v, want %v", names(c), members)
	}
	for i, m := range c.Members {
		if m.Slot != i || m.Priority != uint32(10+i) || m.ProceedOn != proceedOn[i] {
			t.Errorf("member %d is %+v", i, m)
		}
	}
	// The second member passes, and its chain does not go on after that.
	if met := b.send(); !slices.Equal(met, members[:2]) {
		t.Errorf("a packet met %v, want %v", met, members[:2])
	}

	_, add := b.chains.Add(ctx, b.hook, b.member("m3"))
	_, remove := b.chains.Remove(ctx, b.hook, libxdp.Target{Name: "m1"})
	_, replace := b.chains.Replace(ctx, b.hook, libxdp.Target{Name: "m1"}, b.member("m3"))
	priority := uint32(1)
	_, set := b.chains.Set(ctx, b.hook, libxdp.Target{Name: "m1"}, libxdp.Settings{Priority: &priority})
	for _, err := range []error{add, remove, replace, set} {
		refused(t, err, xdp.ErrNotSupported, "version 1", "detach it as a whole and add its programs anew")
	}
	if now := b.read(); now.Dispatcher.ID != c.Dispatcher.ID || !slices.Equal(names(now), members) || !slices.Equal(dirs(t, b.bpffs), pins) {
		t.Errorf("the chain is %+v now", now)
	}

	info, err := dispatcher.Info()
	b.must(err)
	if id, _ := info.ID(); uint32(id) != c.Dispatcher.ID {
		t.Errorf("program %d is attached, and program %d is told", id, c.Dispatcher.ID)
	}
	b.must(b.chains.RemoveAll(ctx, b.hook, xdp.ExpectID(c.Dispatcher.ID)))
	b.want()
}
