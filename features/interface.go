package features

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// The names of the features that [Interface] reports: [Native], [Generic],
// Offload, [Frags] and [DeviceBound], and then the flags by which the driver
// announces what it can do, by the kernel's names for them.
const (
	Offload = "offload"

	FlagBasic       = "basic"
	FlagRedirect    = "redirect"
	FlagNdoXmit     = "ndo-xmit"
	FlagXSKZerocopy = "xsk-zerocopy"
	FlagHWOffload   = "hw-offload"
	FlagRxSG        = "rx-sg"
	FlagNdoXmitSG   = "ndo-xmit-sg"
)

var driverFlags = []struct {
	flag        rtnl.XDPFeatures
	name, about string
}{
	{rtnl.XDPBasic, FlagBasic, "runs programs natively"},
	{rtnl.XDPRedirect, FlagRedirect, "programs can redirect packets to elsewhere"},
	{rtnl.XDPNdoXmit, FlagNdoXmit, "packets can be redirected to it"},
	{rtnl.XDPXSKZerocopy, FlagXSKZerocopy, "AF_XDP without copying"},
	{rtnl.XDPHWOffload, FlagHWOffload, "runs programs on the card"},
	{rtnl.XDPRxSG, FlagRxSG, "programs see packets in several buffers"},
	{rtnl.XDPNdoXmitSG, FlagNdoXmitSG, "packets in several buffers can be redirected to it"},
}

// Options say how far Interface goes.
type Options struct {
	// Try tries a physical interface too, and one that lies over others. The
	// first attach may reset such a card: its link goes down for seconds. The
	// generic mode switches LRO and hardware GRO off, for good, there and in
	// everything below.
	Try bool
}

// Device is what there is to know of one interface.
type Device struct {
	// State is the interface and what is attached to it at present.
	xdp.State
	// MaxMTU is the largest MTU, in bytes, with which a program without frags
	// can be attached natively. 0 where it is not known; known it is for a
	// veth, where the MTU that counts is the peer's.
	MaxMTU   int       `json:"max_mtu_without_frags,omitempty"`
	Features []Feature `json:"features"`
}

// Interface finds out what the interface of that name can do. Features come in
// a fixed order, each exactly once.
//
// An interface that is virtual, has nothing below it and no program attached is
// tried: a program that passes every packet is attached, by a link, and
// detached before Interface returns. Somebody else who attaches in these
// milliseconds finds the hook taken; a busy veth may lose packets. A program
// that is there is never touched, and of an interface with one, or of a
// physical one, Interface says what the driver says, unless [Options] say
// otherwise. To load a program for a device, and not attach it, disturbs
// nobody, and is always tried.
//
// Errors: those of [xdp.Namespace.Hook], the context's, and that a program could
// not be detached.
func Interface(ctx context.Context, ns *xdp.Namespace, name string, o Options) (Device, error) {
	h, err := ns.Hook(name, xdp.Native)
	if err != nil {
		return Device{}, err
	}
	state, err := h.Query()
	if err != nil {
		return Device{}, err
	}
	net, err := reopen(ns)
	if err != nil {
		return Device{}, err
	}
	defer net.Close()
	e, err := examine(net, h, state, o)
	if err != nil {
		return Device{}, err
	}
	defer e.close()
	d := Device{State: state}
	if d.MaxMTU, err = maxMTU(state.Interface); err != nil {
		return Device{}, fmt.Errorf("take away what the MTU was measured with: %w", err)
	}
	for _, find := range []func() Feature{e.native, e.generic, e.offload, e.frags, e.deviceBound} {
		if err := ctx.Err(); err != nil {
			return Device{}, err
		}
		d.Features = append(d.Features, find())
		if e.stuck != nil {
			return Device{}, fmt.Errorf("detach the program that %s was tried with: %w", name, e.stuck)
		}
	}
	d.Features = append(d.Features, e.flags()...)
	return d, nil
}

// reopen opens the namespace once more, because an xdp.Namespace keeps its
// descriptor to itself, and makes sure that it is the same one: a name can come
// to mean another.
func reopen(ns *xdp.Namespace) (*netns.NS, error) {
	if ns.Spec() == "" {
		return netns.Ambient, nil
	}
	net, err := netns.Open(ns.Spec())
	if err != nil {
		return nil, err
	}
	id, err := net.Identify()
	if err == nil && id.String() != ns.ID() {
		err = fmt.Errorf("network namespace %q is another one now: open it again", ns.Spec())
	}
	if err != nil {
		net.Close()
		return nil, err
	}
	return net, nil
}

// examination is one interface while it is looked into.
type examination struct {
	net   *netns.NS
	hook  *xdp.Hook
	state xdp.State
	// hindrance says why nothing may be attached, and is empty where it may.
	hindrance string
	// driver is what the driver says, if it says something: driverErr is nil.
	driver    rtnl.XDPFeatures
	driverErr error
	// plain and multi are the programs to try with, without and with frags,
	// where the kernel loads them.
	plain, multi       *ebpf.Program
	plainErr, multiErr error
	// stuck is that a program could not be detached again.
	stuck error
}

func examine(net *netns.NS, h *xdp.Hook, state xdp.State, o Options) (*examination, error) {
	conn, err := rtnl.Dial(net.FD())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	devices, err := conn.Devices()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	e := &examination{net: net, hook: h, state: state}
	e.hindrance = hindrance(h.Index(), devices, o)
	e.driver, e.driverErr = rtnl.ReadXDPFeatures(net.FD(), h.Index())
	e.plain, e.plainErr = loadPass()
	e.multi, e.multiErr = loadFrags()
	return e, nil
}

func (e *examination) close() {
	for _, p := range []*ebpf.Program{e.plain, e.multi} {
		if p != nil {
			p.Close()
		}
	}
}

// hindrance says why attaching a program to the interface for a moment could
// disturb somebody, or "".
func hindrance(index int, devices []rtnl.Device, o Options) string {
	var d rtnl.Device
	var port string
	for _, other := range devices {
		switch {
		case other.Index == index:
			d = other
		case other.Master == index:
			port = other.Name
		}
	}
	switch {
	case d.Index == 0:
		return "it is gone"
	case d.XDP != (rtnl.XDP{}):
		return "a program is attached"
	case o.Try:
		return ""
	case d.Parent != "":
		return fmt.Sprintf("it is a physical device (%s), which a first attach may reset", d.Parent)
	case d.Kind == "" && !isLoopback(d):
		return "it may be a physical device, which a first attach may reset"
	case port != "":
		return fmt.Sprintf("it lies over %s, which trying would change too", port)
	case d.Link != 0 && (d.Link != index || d.LinkElsewhere) && d.Kind != "veth" && d.Kind != "netkit":
		return "it lies over another interface, which trying would change too"
	}
	return ""
}

// isLoopback: the loopback interface has index 1 in every namespace, and
// nothing else ever has.
func isLoopback(d rtnl.Device) bool { return d.Index == 1 }

// tryAttach attaches the program for a moment.
func (e *examination) tryAttach(mode xdp.Mode, prog *ebpf.Program, loadErr error) error {
	if e.plainErr != nil {
		return e.noPrograms()
	}
	if loadErr != nil {
		return loadErr
	}
	h, err := e.hook.Namespace().HookAt(e.hook.Index(), mode)
	if err != nil {
		return err
	}
	l, err := h.AttachLink(prog)
	if err != nil {
		return refused(err)
	}
	e.stuck = endLink(l)
	return nil
}

// refused is what an interface's refusal of a program that is in order says of
// its modes.
func refused(err error) error {
	switch {
	case errors.Is(err, xdp.ErrConflict):
		return undecided("somebody else attached a program meanwhile")
	case errors.Is(err, xdp.ErrPort):
		return undecided("its bridge, bond or other master has a program, and the kernel allows only one of the two")
	case errors.Is(err, unix.EINVAL):
		// A driver's word for what is wrong at present, such as the MTU: one
		// without the mode answers EOPNOTSUPP.
		return undecided("not as things are: " + oneLine(err))
	}
	return err
}

// noPrograms is never a "no": it says nothing of the interface.
func (e *examination) noPrograms() error {
	return undecided(fmt.Sprintf("no program can be loaded (%s), see what is said of %q", short(e.plainErr), BPF))
}

// tried is the answer to what was tried.
func tried(f Feature, err error) Feature {
	f.Supported, f.Reason = judge(err, f.Since)
	f.How = Tried
	if f.Supported == Unknown {
		f.How = NotTried
	}
	if errors.Is(err, xdp.ErrNotSupported) {
		f.Reason = "the driver does not have it (" + short(err) + ")"
	}
	return f
}

// said is what the driver says instead, because of the hindrance.
func (e *examination) said(f Feature, flag rtnl.XDPFeatures) Feature {
	if e.driverErr != nil {
		f.Supported, f.How = Unknown, NotTried
		f.Reason = e.hindrance + ", and " + e.driverSilence()
		return f
	}
	f.Supported, f.How = No, Driver
	if e.driver.Has(flag) {
		f.Supported = Yes
	}
	f.Reason = "said by the driver, not tried: " + e.hindrance
	return f
}

func (e *examination) driverSilence() string {
	if errors.Is(e.driverErr, rtnl.ErrNoNetdev) {
		return rtnl.ErrNoNetdev.Error()
	}
	return "the driver's answer can't be read: " + oneLine(e.driverErr)
}

// seen is the answer that a program which is attached gives.
func (e *examination) seen(f Feature, mode xdp.Mode) (Feature, bool) {
	a := e.state.At(mode)
	if a == nil {
		return f, false
	}
	f.Supported, f.How = Yes, NotTried
	f.Reason = fmt.Sprintf("program %d is attached in this mode", a.Program.ID)
	return f, true
}

func (e *examination) native() Feature {
	f := Feature{Name: Native, About: "programs run in the driver"}
	if f, ok := e.seen(f, xdp.Native); ok {
		return f
	}
	if e.hindrance != "" {
		return e.said(f, rtnl.XDPBasic)
	}
	err := e.tryAttach(xdp.Native, e.plain, e.plainErr)
	if !errors.Is(err, xdp.ErrMTU) {
		return tried(f, err)
	}
	if f := tried(f, e.tryAttach(xdp.Native, e.multi, e.multiErr)); f.Supported == Yes {
		f.Reason = "with the present MTU only programs with frags"
		return f
	}
	// The driver looked at the MTU, so it has the mode.
	f.Supported, f.How, f.Reason = Yes, Tried, "not with the present MTU"
	return f
}

func (e *examination) generic() Feature {
	f := Feature{Name: Generic, About: "programs run in the network stack", Since: "4.12"}
	if f, ok := e.seen(f, xdp.Generic); ok {
		return f
	}
	if e.hindrance != "" {
		f.Supported, f.How = Yes, NotTried
		f.Reason = "the kernel has it for every interface; not tried: " + e.hindrance
		return f
	}
	return tried(f, e.tryAttach(xdp.Generic, e.plain, e.plainErr))
}

func (e *examination) offload() Feature {
	f := Feature{Name: Offload, About: "programs run on the card"}
	if f, ok := e.seen(f, xdp.Offload); ok {
		return f
	}
	if e.hindrance != "" {
		return e.said(f, rtnl.XDPHWOffload)
	}
	p, err := e.load(loadOffloaded)
	if isAny(err, unix.EINVAL, unix.EOPNOTSUPP) {
		err = refutation("the driver does not have it (" + short(err) + ")")
	}
	if err != nil {
		return tried(f, err)
	}
	defer p.Close()
	return tried(f, e.tryAttach(xdp.Offload, p, nil))
}

// load loads a program for the interface, in whose namespace the kernel looks
// it up.
func (e *examination) load(f func(index int) (*ebpf.Program, error)) (p *ebpf.Program, err error) {
	if e.plainErr != nil {
		return nil, e.noPrograms()
	}
	err = e.net.Do(func() (err error) {
		p, err = f(e.hook.Index())
		return err
	})
	return p, err
}

// frags: a driver takes a program with frags without asking what for, as long
// as the MTU is small. That it gives the program packets in several buffers is
// something that only its flag tells.
func (e *examination) frags() Feature {
	f := Feature{Name: Frags, About: "native programs see packets in several buffers, so the MTU can be big", Since: "5.18"}
	if e.plainErr == nil && e.multiErr != nil {
		return tried(f, e.multiErr)
	}
	if e.hindrance != "" {
		return e.said(f, rtnl.XDPRxSG)
	}
	if f := tried(f, e.tryAttach(xdp.Native, e.multi, e.multiErr)); f.Supported != Yes {
		return f
	}
	f.How = Tried
	switch {
	case e.driverErr == nil && e.driver.Has(rtnl.XDPRxSG):
		f.Supported = Yes
	case e.driverErr == nil:
		f.Supported, f.How = No, Driver
		f.Reason = "the driver takes such a program, and says that it gives it no packet in several buffers"
	case e.state.Interface.Kind == "veth":
		// It learned about frags together with the kernel.
		f.Supported = Yes
	default:
		f.Supported, f.How = Unknown, NotTried
		f.Reason = "the driver takes such a program, and whether it gives it packets in several buffers can't be told: " + e.driverSilence()
	}
	return f
}

func (e *examination) deviceBound() Feature {
	f := Feature{Name: DeviceBound, About: "programs can be loaded for it, to read its metadata", Since: "6.3"}
	p, err := e.load(loadBound)
	if err == nil {
		p.Close()
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = refutation("the driver has no native mode (" + short(err) + ")")
	}
	return tried(f, err)
}

// flags is what the driver announces.
func (e *examination) flags() []Feature {
	features := make([]Feature, len(driverFlags))
	for i, d := range driverFlags {
		f := Feature{Name: d.name, About: d.about, Supported: No, How: Driver}
		switch {
		case e.driverErr != nil:
			f.Supported, f.How, f.Reason = Unknown, NotTried, e.driverSilence()
		case e.driver.Has(d.flag):
			f.Supported = Yes
		default:
			f.Reason = "the driver does not announce it at present"
		}
		features[i] = f
	}
	return features
}

// maxMTU measures at another interface of the same kind, where that can be
// done: while a program without frags is attached to a veth, the kernel lowers
// the largest MTU of its peer to what such a program can take. It is 0 where it
// can't be told; the error is that something could not be taken away again.
func maxMTU(i xdp.Interface) (mtu int, err error) {
	if i.Kind != "veth" {
		return 0, nil
	}
	t := &trial{}
	if t.at, t.atErr = newScratch(); t.atErr != nil {
		return 0, nil
	}
	if t.pass, err = loadPass(); err == nil {
		err = t.attachFor(xdp.Native, t.pass, func(*xdp.Hook, *xdp.Link) error {
			far, err := t.at.conn.DeviceByIndex(t.at.far.Index)
			mtu = far.MaxMTU
			return err
		})
	}
	if err != nil {
		mtu = 0
	}
	return mtu, t.close()
}
