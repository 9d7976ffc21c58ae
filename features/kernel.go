package features

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// The names of the features that [Kernel] reports, in its order.
const (
	BPF             = "bpf"
	JIT             = "jit"
	BTF             = "btf"
	BPFFS           = "bpffs"
	NetnsCookie     = "netns-cookie"
	DriverFlags     = "driver-flags"
	Netlink         = "netlink"
	NetlinkExpected = "netlink-expected"
	Link            = "link"
	LinkUpdate      = "link-update"
	Native          = "native"
	Generic         = "generic"
	Frags           = "frags"
	FragsAttach     = "frags-attach"
	DeviceBound     = "device-bound"
	Freplace        = "freplace"
)

// probe tries one feature. It returns what else there is to know, and an error
// that judge turns into an answer.
type probe struct {
	name, about, since string
	// needs are the features without which there is nothing to try.
	needs []string
	try   func(*trial) (note string, err error)
}

// trial is what the probes share.
type trial struct {
	// pass and other do the same and are two programs all the same.
	pass, other *ebpf.Program
	// at is nil where it could not be made, for the reason atErr.
	at    *scratch
	atErr error
}

var kernelProbes = []probe{
	{name: BPF, about: "the caller can load XDP programs", since: "4.8", try: (*trial).bpf},
	{name: JIT, about: "programs are compiled, not interpreted", needs: []string{BPF}, try: (*trial).jit},
	{name: BTF, about: "the kernel describes its own types", since: "5.4", try: (*trial).btf},
	{name: BPFFS, about: "links can be pinned, which makes them permanent", since: "4.4", needs: []string{BPF}, try: (*trial).bpffs},
	{name: NetnsCookie, about: "network namespaces have ids that are never used again", since: "5.14", try: (*trial).netnsCookie},
	{name: DriverFlags, about: "drivers say what they can do", since: "6.3", try: (*trial).driverFlags},
	{name: Netlink, about: "attach by netlink, held by nobody", since: "4.8", needs: []string{BPF}, try: (*trial).netlink},
	{name: NetlinkExpected, about: "netlink refuses a change when another program is attached than expected", since: "5.7", needs: []string{Netlink}, try: (*trial).netlinkExpected},
	{name: Link, about: "attach by a link, which owns the hook", since: "5.9", needs: []string{BPF}, try: (*trial).link},
	{name: LinkUpdate, about: "a link's program is replaced in one step, if it is the expected one", since: "5.9", needs: []string{Link}, try: (*trial).linkUpdate},
	{name: Native, about: "a program runs in the driver (tried with veth)", since: "4.8", needs: []string{Link}, try: (*trial).native},
	{name: Generic, about: "a program runs in the network stack (tried with veth)", since: "4.12", needs: []string{Link}, try: (*trial).generic},
	{name: Frags, about: "programs can be loaded for packets in several buffers", since: "5.18", needs: []string{BPF}, try: (*trial).frags},
	{name: FragsAttach, about: "such a program runs natively whatever the MTU (tried with veth)", since: "5.18", needs: []string{Frags, Link}, try: (*trial).fragsAttach},
	{name: DeviceBound, about: "programs can be loaded for one device, to read its metadata", since: "6.3", needs: []string{Link}, try: (*trial).deviceBound},
	{name: Freplace, about: "a function of a running program can be replaced: live chains", since: "5.10", needs: []string{Link}, try: (*trial).freplace},
}

// Kernel tries what this kernel does for this caller, as root in some tenths of
// a second. Features come in a fixed order, each exactly once, and those that
// can't be tried are there too, with the reason. Nothing is left behind and
// nothing of the caller's namespaces is touched, except that the kernel may
// load its veth module.
//
// The error is the context's, or that something could not be taken away again.
func Kernel(ctx context.Context) ([]Feature, error) {
	t := &trial{}
	t.at, t.atErr = newScratch()
	features, err := t.run(ctx, kernelProbes)
	if closeErr := t.close(); err == nil && closeErr != nil {
		err = fmt.Errorf("take away what features were tried with: %w", closeErr)
	}
	if err != nil {
		return nil, err
	}
	return features, nil
}

func (t *trial) run(ctx context.Context, probes []probe) ([]Feature, error) {
	features := make([]Feature, 0, len(probes))
	for _, p := range probes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f := Feature{Name: p.name, About: p.about, Since: p.since}
		if missing := firstMissing(features, p.needs); missing != nil {
			// What needs something that is not there is not there either; of
			// what needs something unknown nothing is known.
			f.Supported, f.How = missing.Supported, NotTried
			f.Reason = fmt.Sprintf("it needs %q", missing.Name)
		} else {
			note, err := p.try(t)
			f.How = Tried
			f.Supported, f.Reason = judge(err, p.since)
			if err == nil {
				f.Reason = note
			}
			if f.Supported == Unknown {
				f.How = NotTried
			}
		}
		features = append(features, f)
	}
	return features, nil
}

func firstMissing(features []Feature, needs []string) *Feature {
	for _, name := range needs {
		if f := Find(features, name); f.Supported != Yes {
			return f
		}
	}
	return nil
}

func (t *trial) close() error {
	for _, p := range []*ebpf.Program{t.pass, t.other} {
		if p != nil {
			p.Close()
		}
	}
	if t.at == nil {
		return nil
	}
	return t.at.close()
}

// hook is the scratch interface's in that mode.
func (t *trial) hook(mode xdp.Mode) (*xdp.Hook, error) {
	if t.atErr != nil {
		return nil, t.noScratch()
	}
	return t.at.hook(mode)
}

// noScratch is never a "no": it says nothing of the feature that was to be
// tried there.
func (t *trial) noScratch() error {
	if isPermission(t.atErr) {
		return undecided("not permitted: it is tried in a network namespace of its own, which takes CAP_SYS_ADMIN")
	}
	return undecided("there is nothing to try it with: " + oneLine(t.atErr))
}

func (t *trial) bpf() (string, error) {
	var err error
	if t.pass, err = loadPass(); err == nil {
		t.other, err = loadPass()
	}
	switch {
	case errors.Is(err, unix.ENOSYS):
		return "", refutation("the kernel was built without bpf(2) (CONFIG_BPF_SYSCALL)")
	case isPermission(err):
		// Never a "no": who may load programs is a matter of the caller.
		reason := "loading programs takes CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN"
		if memlockInTheWay() {
			reason += ", and before Linux 5.11 a high limit of locked memory (ulimit -l)"
		}
		return "", undecided("not permitted (" + short(err) + "): " + reason)
	case err != nil:
		return "", undecided("loading a program failed: " + oneLine(err))
	}
	return "", nil
}

func (t *trial) jit() (string, error) {
	info, err := t.pass.Info()
	if err != nil {
		return "", undecided("the program can't be read: " + oneLine(err))
	}
	if _, err := info.JitedSize(); err == nil {
		return "", nil
	}
	// The kernel hides the size from some, but not from who may load.
	return "", refutation("the kernel interprets programs, which is slower: see sysctl net.core.bpf_jit_enable")
}

func (t *trial) btf() (string, error) {
	const path = "/sys/kernel/btf/vmlinux"
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat("/sys/kernel"); err != nil {
			return "", undecided("no sysfs is mounted at /sys")
		}
		return "", refutation("there is no " + path + ": the kernel was built without it (CONFIG_DEBUG_INFO_BTF)")
	}
	if err != nil {
		return "", undecided(oneLine(err))
	}
	defer f.Close()
	magic := make([]byte, 2)
	if _, err := io.ReadFull(f, magic); err != nil {
		return "", undecided(oneLine(err))
	}
	if !bytes.Equal(magic, []byte{0x9f, 0xeb}) && !bytes.Equal(magic, []byte{0xeb, 0x9f}) {
		return "", undecided(path + " is no BTF")
	}
	return "", nil
}

// bpffs makes a bpffs that is mounted nowhere, and pins in it: when its
// descriptor is closed, it is gone.
func (t *trial) bpffs() (string, error) {
	mounts, err := bpffs.Mounts()
	if err != nil {
		return "", undecided(oneLine(err))
	}
	note := "none is mounted; `mount -t bpf bpf /sys/fs/bpf` does"
	if len(mounts) > 0 {
		note = "mounted at " + strings.Join(mounts, ", ")
	}
	context, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENODEV):
		return "", refutation("the kernel was built without it")
	case isPermission(err):
		return "", undecided("not permitted: mounting takes CAP_SYS_ADMIN; " + note)
	case err != nil:
		return "", err
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return "", fmt.Errorf("make a bpffs: %w", err)
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("mount a bpffs: %w", err)
	}
	defer unix.Close(mount)
	pinned, err := t.pass.Clone()
	if err != nil {
		return "", err
	}
	defer pinned.Close()
	if err := pinned.Pin(descriptorPath(mount) + "/probe"); err != nil {
		return "", fmt.Errorf("pin a program: %w", err)
	}
	return note, nil
}

func (t *trial) netnsCookie() (string, error) {
	id, err := netns.Ambient.Identify()
	if err == nil && id.Cookie == 0 {
		err = unix.ENOPROTOOPT
	}
	return "", err
}

func (t *trial) driverFlags() (string, error) {
	// The loopback interface has index 1 in every namespace.
	_, err := rtnl.ReadXDPFeatures(-1, 1)
	if errors.Is(err, rtnl.ErrNoNetdev) {
		return "", unix.EOPNOTSUPP
	}
	return "", err
}

func (t *trial) native() (string, error)  { return "", t.attachFor(xdp.Native, t.pass, nil) }
func (t *trial) generic() (string, error) { return "", t.attachFor(xdp.Generic, t.pass, nil) }
func (t *trial) link() (string, error)    { return "", t.attachFor(xdp.Auto, t.pass, ownsHook(t.other)) }

// attachFor attaches the program by a link for as long as f runs.
func (t *trial) attachFor(mode xdp.Mode, prog *ebpf.Program, f func(*xdp.Hook, *xdp.Link) error) error {
	h, err := t.hook(mode)
	if err != nil {
		return err
	}
	l, err := h.AttachLink(prog)
	if err != nil {
		return err
	}
	if f != nil {
		err = f(h, l)
	}
	return errors.Join(err, endLink(l))
}

// ownsHook finds out that a link keeps everybody else out.
func ownsHook(other *ebpf.Program) func(*xdp.Hook, *xdp.Link) error {
	return func(h *xdp.Hook, _ *xdp.Link) error {
		if err := h.Attach(other, xdp.Any); !errors.Is(err, xdp.ErrConflict) {
			return refutation(fmt.Sprintf("a link does not protect its program: a netlink attach over it came back with %v", err))
		}
		return nil
	}
}

func (t *trial) netlink() (string, error) {
	h, err := t.hook(xdp.Auto)
	if err != nil {
		return "", err
	}
	if err := h.Attach(t.pass, xdp.Any); err != nil {
		return "", err
	}
	return "", h.Detach(xdp.Any)
}

func (t *trial) netlinkExpected() (note string, err error) {
	h, err := t.hook(xdp.Auto)
	if err != nil {
		return "", err
	}
	if err := h.Attach(t.pass, xdp.Any); err != nil {
		return "", err
	}
	defer func() {
		if detachErr := h.Detach(xdp.Any); err == nil {
			err = detachErr
		}
	}()
	switch err := h.Attach(t.other, xdp.Expect(t.other)); {
	case err == nil:
		return "", refutation("the kernel replaced a program that was not the expected one")
	case !errors.Is(err, xdp.ErrConflict):
		return "", err
	}
	return "", h.Attach(t.other, xdp.Expect(t.pass))
}

func (t *trial) linkUpdate() (string, error) {
	return "", t.attachFor(xdp.Auto, t.pass, func(_ *xdp.Hook, l *xdp.Link) error {
		switch err := l.Replace(xdp.ReplaceOptions{Program: t.other, Expect: xdp.Expect(t.other)}); {
		case err == nil:
			return refutation("the kernel replaced a program that was not the expected one")
		case !errors.Is(err, xdp.ErrConflict):
			return err
		}
		return l.Replace(xdp.ReplaceOptions{Program: t.other, Expect: xdp.Expect(t.pass)})
	})
}

func (t *trial) frags() (string, error) {
	p, err := loadFrags()
	if err != nil {
		return "", err
	}
	return "", p.Close()
}

// fragsAttach sends packets of more than a page towards near, which is where a
// program without frags is refused.
func (t *trial) fragsAttach() (note string, err error) {
	if t.atErr != nil {
		return "", t.noScratch()
	}
	const jumbo = 9000
	if err := t.at.conn.SetMTU(t.at.far.Index, max(jumbo, 2*os.Getpagesize())); err != nil {
		return "", undecided("the MTU can't be set: " + oneLine(err))
	}
	defer func() {
		if mtuErr := t.at.conn.SetMTU(t.at.far.Index, t.at.far.MTU); err == nil {
			err = mtuErr
		}
	}()
	if err := t.attachFor(xdp.Native, t.pass, nil); !errors.Is(err, xdp.ErrMTU) {
		return "", undecided(fmt.Sprintf("a program without frags was expected to be refused, and was not: %v", err))
	}
	p, err := loadFrags()
	if err != nil {
		return "", err
	}
	defer p.Close()
	err = t.attachFor(xdp.Native, p, nil)
	if errors.Is(err, xdp.ErrMTU) {
		return "", refutation("the driver refuses it like any other program")
	}
	return "", err
}

func (t *trial) deviceBound() (string, error) {
	if t.atErr != nil {
		return "", t.noScratch()
	}
	var p *ebpf.Program
	err := t.at.net.Do(func() (err error) {
		p, err = loadBound(t.at.near.Index)
		return err
	})
	if err != nil {
		return "", err
	}
	defer p.Close()
	return "", t.attachFor(xdp.Native, p, nil)
}

// freplace replaces a function of a dispatcher that is attached already, and
// runs the dispatcher before, while and after.
func (t *trial) freplace() (string, error) {
	dispatcher, err := loadDispatcher()
	if err != nil {
		return "", fmt.Errorf("load a dispatcher: %w", err)
	}
	defer dispatcher.Close()
	return "", t.attachFor(xdp.Native, dispatcher, func(*xdp.Hook, *xdp.Link) error {
		extension, err := loadExtension(dispatcher)
		if err != nil {
			return fmt.Errorf("load an extension: %w", err)
		}
		defer extension.Close()
		if err := returns(dispatcher, actionPass); err != nil {
			return err
		}
		l, err := kernel.LinkCreateExtension(extension.FD(), 0, 0)
		if err != nil {
			return fmt.Errorf("attach an extension: %w", err)
		}
		effect := returns(dispatcher, actionDrop)
		return errors.Join(effect, l.Close())
	})
}

// returns runs the program on an empty frame and compares what it returns.
func returns(p *ebpf.Program, want uint32) error {
	got, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		return fmt.Errorf("run a dispatcher: %w", err)
	}
	if got != want {
		return refutation(fmt.Sprintf("the dispatcher returned %d where %d was expected: extensions have no effect", got, want))
	}
	return nil
}
