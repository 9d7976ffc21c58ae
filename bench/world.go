package main

import (
	"bytes"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// world is the network namespace of this process, with interfaces to attach to.
// Nothing else keeps it, so it goes with the process, however that ends.
type world struct {
	ns    *xdp.Namespace
	conn  *rtnl.Conn
	hooks []*xdp.Hook // native, one an interface
	names []string

	// far has the other ends of the pairs.
	far     *xdp.Namespace
	farNS   *netns.NS
	farConn *rtnl.Conn

	warmed int // how many programs are attached there

	took time.Duration // to make it
}

// newWorld makes that many veth interfaces in the process's namespace, which must
// be new, and their peers in one of their own, so that whoever lists the
// interfaces sees no more than these and the loopback. They stay down: XDP is
// attached all the same, and what an interface does when it comes up is no part
// of that.
func newWorld(interfaces int) (*world, error) {
	start := time.Now()
	w := &world{}
	var err error
	if w.farNS, err = netns.New(); err != nil {
		return nil, err
	}
	if w.farConn, err = rtnl.Dial(w.farNS.FD()); err != nil {
		return nil, err
	}
	if w.far, err = xdp.OpenNamespace(fmt.Sprintf("/proc/self/fd/%d", w.farNS.FD())); err != nil {
		return nil, err
	}
	if w.conn, err = rtnl.Dial(-1); err != nil {
		return nil, err
	}
	if w.ns, err = xdp.OpenNamespace(""); err != nil {
		return nil, err
	}
	for i := range interfaces {
		name := fmt.Sprintf("v%d", i)
		if err := w.conn.AddVeth(name, name, w.farNS.FD()); err != nil {
			return nil, fmt.Errorf("make veth pair %s: %w", name, err)
		}
		hook, err := w.ns.Hook(name, xdp.Native)
		if err != nil {
			return nil, err
		}
		w.hooks, w.names = append(w.hooks, hook), append(w.names, name)
	}
	w.took = time.Since(start)
	return w, nil
}

// warm attaches the programs in the far namespace, for as long as that lasts, so
// that none enters or leaves XDP when it is attached to a hook or taken off:
// the kernel waits for an RCU grace period then.
func (w *world) warm(programs ...*ebpf.Program) error {
	for _, p := range programs {
		name := fmt.Sprintf("warm%d", w.warmed)
		w.warmed++
		if err := w.farConn.AddVeth(name, name+"peer", -1); err != nil {
			return fmt.Errorf("make interface %s: %w", name, err)
		}
		hook, err := w.far.Hook(name, xdp.Generic)
		if err != nil {
			return err
		}
		if err := hook.Attach(p, xdp.Empty); err != nil {
			return err
		}
	}
	return nil
}

// load loads the smallest program there is, as often as asked. The caller
// closes them.
func load(n int) ([]*ebpf.Program, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpfprog.ELF("pass")))
	if err != nil {
		return nil, err
	}
	programs := make([]*ebpf.Program, n)
	for i := range programs {
		if programs[i], err = ebpf.NewProgram(spec.Programs["xdp_pass"]); err != nil {
			closeAll(programs)
			return nil, fmt.Errorf("load a program: %w", err)
		}
	}
	return programs, nil
}

func closeAll(programs []*ebpf.Program) {
	for _, p := range programs {
		p.Close() // nil is fine
	}
}

// mounts gives the process, whose mount namespace must be its own, and every
// command that it starts an empty /run, where Holdfast keeps its state, and a
// bpffs where others look for one. All of it goes with the process.
func mounts() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount an empty /run: %w", err)
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpffs: %w", err)
	}
	return nil
}
