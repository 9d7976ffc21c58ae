package xdploader

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// load is `xdp-loader load`: all files in one change.
func (l *loader) load(r request) int {
	switch {
	case r.section != "" && r.progName != "":
		l.warn("Only one of --section or --prog-name can be set")
		return exitFailed
	case len(r.files) > 1 && r.mode == xdp.Offload:
		l.warn("Cannot attach multiple programs in HW mode")
		return exitFailed
	}
	ns, h, err := l.hook(r.iface, r.mode)
	if err != nil {
		return exitFailed
	}
	defer ns.Close()
	l.debug("Loading %d files on interface '%s'.", len(r.files), r.iface)
	var adds []libxdp.Addition
	for i, file := range r.files {
		a, err := l.addition(r, i, file, h)
		if err != nil {
			l.warn("Couldn't open file '%s': %s", file, words(errno(err)))
			l.why(err)
			return exitCode(err)
		}
		adds = append(adds, a)
	}
	made, err := makePinPath(r.pinPath)
	if err != nil {
		return l.fail("Couldn't make the pin path '"+r.pinPath+"'", err)
	}
	if made {
		defer os.Remove(r.pinPath) // which fails where maps are pinned now
	}
	if err := l.attach(h, adds); err != nil {
		return l.refused(r, err)
	}
	return exitDone
}

// addition is what one file adds to the chain.
func (l *loader) addition(r request, i int, file string, h *xdp.Hook) (libxdp.Addition, error) {
	o, err := object.Open(l.objectPath(file))
	if err != nil {
		return libxdp.Addition{}, err
	}
	a := libxdp.Addition{Object: o, Load: object.LoadOptions{
		Program: object.Choice{Name: r.progName, Section: r.section, First: true},
		PinMaps: r.pinPath,
	}, ArraysMayEmpty: true} // as scripts have it, which fill them afterwards
	if r.mode == xdp.Offload {
		a.Load.Offload, a.Load.Ifindex = true, h.Index()
	}
	p, err := o.Program(a.Load.Program)
	if err != nil {
		return libxdp.Addition{}, err
	}
	wants, err := o.RunConfig(p.Name)
	if err != nil {
		return libxdp.Addition{}, err
	}
	if r.prio != 0 {
		wants.Priority, a.Priority = r.prio, &r.prio
	}
	if r.actions != 0 {
		wants.ProceedOn, a.ProceedOn = r.actions, &r.actions
	}
	l.debug("XDP program %d: Run prio: %d. Chain call actions: %s", i, wants.Priority, wants.ProceedOn)
	return a, nil
}

// makePinPath makes the directory for pinned maps, as libbpf does, if it is
// missing in a bpffs, and tells whether it did.
func makePinPath(path string) (bool, error) {
	if path == "" || !bpffs.Is(filepath.Dir(path)) {
		return false, nil
	}
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// attach adds the programs to the chain, or attaches the only one alone where
// that is asked for or there can be no chain.
func (l *loader) attach(h *xdp.Hook, adds []libxdp.Addition) error {
	// Several files get a dispatcher all the same, as there.
	if l.isSet("LIBXDP_SKIP_DISPATCHER") && len(adds) == 1 || h.Mode() == xdp.Offload {
		return l.single(h, adds)
	}
	chains, err := l.chains()
	if err != nil {
		return err
	}
	defer chains.Close()
	if !l.lookForBPFFS() {
		l.warn(" libxdp: Can't use dispatcher without a working bpffs")
	}
	_, err = chains.Add(context.Background(), h, adds...)
	if !errors.Is(err, libxdp.ErrNoFreplace) {
		return err
	}
	l.debug(" libxdp: Compatibility check for dispatcher program failed: %s", err)
	if len(adds) > 1 {
		l.warn(" libxdp: Can't fall back to legacy load with %d programs", len(adds))
		return err
	}
	l.debug(" libxdp: Falling back to loading single prog without dispatcher")
	return l.single(h, adds)
}

// bpffs is the directory below which libxdp's tools pin.
func (l *loader) bpffs() string {
	return cmp.Or(l.env.Getenv("LIBXDP_BPFFS"), libxdp.DefaultBPFFS)
}

// chains opens the bpffs with the pins. LIBXDP_BPFFS_AUTOMOUNT mounts one there.
// The caller closes it.
func (l *loader) chains() (*libxdp.Chains, error) {
	if l.isSet("LIBXDP_BPFFS_AUTOMOUNT") && !bpffs.Is(l.bpffs()) {
		root, err := bpffs.Mount(l.bpffs())
		if err != nil {
			return nil, err
		}
		root.Close()
	}
	return libxdp.Open(libxdp.Options{BPFFS: l.bpffs(), Log: l.log})
}

// lookForBPFFS tells whether there is one, and says where there is none.
func (l *loader) lookForBPFFS() bool {
	if bpffs.Is(l.bpffs()) {
		return true
	}
	l.warn(" libxdp: No bpffs found at %s", l.bpffs())
	return false
}

// single attaches the only program by netlink, without a dispatcher.
func (l *loader) single(h *xdp.Hook, adds []libxdp.Addition) error {
	if len(adds) > 1 {
		return &xdp.Error{
			Op: "load", Hook: h.String(), Err: xdp.ErrNotSupported, Detail: "without a dispatcher an interface has one program",
			Hint: "load one file",
		}
	}
	state, err := h.Query()
	if err != nil {
		return err
	}
	at := state.At(h.Mode())
	if at == nil && h.Mode() != xdp.Offload {
		at = state.At(xdp.Auto) // in the other mode, it is in the way as well
	}
	if at != nil {
		xdp.FindHolders(at)
		return &xdp.Error{Op: "load", Hook: h.String(), Err: xdp.ErrConflict, Rival: at}
	}
	loaded, err := adds[0].Object.Load(adds[0].Load)
	if err != nil {
		return err
	}
	defer loaded.Close()
	return h.Attach(loaded.Program, xdp.Empty)
}

// refused says that programs could not be attached, in the words that scripts
// know, and why.
func (l *loader) refused(r request, err error) int {
	var e *xdp.Error
	if errors.As(err, &e) && errors.Is(err, xdp.ErrConflict) && e.Rival != nil && e.Rival.Program.Name != libxdp.DispatcherName {
		l.warn(" libxdp: Existing program is not using a dispatcher, can't replace; unload first")
		e.Hint = "unload it first"
		if e.Rival.Held == xdp.HeldByLink {
			e.Hint = "whoever holds the link must let go first"
		}
	}
	if errno(err) == unix.EOPNOTSUPP && slices.Contains([]xdp.Mode{xdp.Native, xdp.Offload}, r.mode) {
		mode, other := "native", "SKB"
		if r.mode == xdp.Offload {
			mode, other = "HW", "native or SKB"
		}
		l.warn("Attaching XDP program in %s mode not supported - try %s mode.", mode, other)
		l.why(err)
		return exitCode(err)
	}
	return l.fail("Couldn't attach XDP program on iface '"+r.iface+"'", err)
}

// fail says what could not be done, with the errno's words and its number as
// scripts know them, then why, and returns the exit code.
func (l *loader) fail(what string, err error) int {
	no := errno(err)
	l.warn("%s: %s(-%d)", what, words(no), int(no))
	l.why(err)
	return exitCode(err)
}
