package xdploader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// status is `xdp-loader status`.
func (l *loader) status(r request) int {
	var ns *xdp.Namespace
	var interfaces []xdp.Interface
	var err error
	if r.iface != "" {
		var h *xdp.Hook
		if ns, h, err = l.hook(r.iface, xdp.Auto); err != nil {
			return exitFailed
		}
		defer ns.Close()
		interfaces = []xdp.Interface{{Name: h.Name(), Index: h.Index()}}
	} else {
		if ns, err = xdp.OpenNamespace(""); err != nil {
			return l.fail("Couldn't list the interfaces", err)
		}
		defer ns.Close()
		if interfaces, err = ns.Interfaces(); err != nil {
			return l.fail("Couldn't list the interfaces", err)
		}
	}
	chains, err := libxdp.Open(libxdp.Options{BPFFS: l.env.Getenv("LIBXDP_BPFFS"), Log: l.log})
	if err != nil {
		return l.fail("Couldn't look for pins", err)
	}
	defer chains.Close()
	printHead(l.env.Stdout)
	for _, i := range interfaces {
		if err := l.interfaceStatus(chains, ns, i); err != nil {
			return l.fail("Couldn't read the status of '"+i.Name+"'", err)
		}
	}
	fmt.Fprintln(l.env.Stdout)
	return exitDone
}

func (l *loader) interfaceStatus(chains *libxdp.Chains, ns *xdp.Namespace, i xdp.Interface) error {
	var found []*libxdp.Chain
	for _, mode := range []xdp.Mode{xdp.Offload, xdp.Auto} {
		h, err := ns.HookAt(i.Index, mode)
		if errors.Is(err, xdp.ErrNotFound) {
			return nil // gone since it was listed
		}
		if err != nil {
			return err
		}
		c, err := chains.Read(h)
		if err != nil {
			return err
		}
		if c.Problem != "" {
			l.debug(" holdfast: %s: %s", i.Name, c.Problem)
		}
		found = append(found, c)
	}
	printInterface(l.env.Stdout, i.Name, found...)
	return nil
}

func printHead(w io.Writer) {
	fmt.Fprint(w, "CURRENT XDP PROGRAM STATUS:\n\n"+
		"Interface        Prio  Program name      Mode     ID   Tag               Chain actions\n"+
		"--------------------------------------------------------------------------------------\n")
}

// printInterface prints what is at an interface's hooks: of a chain the
// dispatcher and below it the members.
func printInterface(w io.Writer, name string, found ...*libxdp.Chain) {
	empty := true
	for _, c := range found {
		if c.Attachment == nil {
			continue
		}
		empty = false
		p := c.Attachment.Program
		fmt.Fprintf(w, "%-16s %-5s %-17s %-8s %-4d %-17s\n", name, "", cmp.Or(p.Name, "-"), modeName(c.Attachment.Mode), p.ID, p.Tag)
		for _, m := range c.Members {
			fmt.Fprintf(w, "%-16s %-5d  %-16s %-8s %-4d %-17s %s\n", " =>", m.Priority, m.Name, "", m.Program.ID, m.Program.Tag, m.ProceedOn)
		}
	}
	if empty {
		fmt.Fprintf(w, "%-22s <No XDP program loaded!>\n", name)
	}
}

// clean is `xdp-loader clean`.
func (l *loader) clean(r request) int {
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		return l.fail("Couldn't clean up", err)
	}
	defer ns.Close()
	what, index := "all interfaces", 0
	if r.iface != "" {
		named, h, err := l.hook(r.iface, xdp.Auto)
		if err != nil {
			return exitFailed
		}
		named.Close()
		what, index = r.iface, h.Index()
	}
	chains, err := l.chains()
	if err != nil {
		return l.fail("Couldn't clean up", err)
	}
	defer chains.Close()
	fmt.Fprintf(l.env.Stdout, "Cleaning up detached XDP program links for %s\n", what)
	if !l.lookForBPFFS() {
		return exitCode(os.ErrNotExist)
	}
	cleaned, err := chains.Clean(context.Background(), ns, index)
	for _, c := range cleaned {
		if c.Removed {
			l.debug(" holdfast: removed %s: %s", c.Path, c.Reason)
		} else {
			l.warn(" holdfast: left %s: %s", c.Path, c.Reason)
		}
	}
	if err != nil {
		return l.fail("Couldn't clean up", err)
	}
	return exitDone
}

// driverFeatures are in the order, and with the tabs, of xdp-loader.
var driverFeatures = []struct {
	name string
	flag rtnl.XDPFeatures
}{
	{"NETDEV_XDP_ACT_BASIC:\t\t", rtnl.XDPBasic},
	{"NETDEV_XDP_ACT_REDIRECT:\t", rtnl.XDPRedirect},
	{"NETDEV_XDP_ACT_NDO_XMIT:\t", rtnl.XDPNdoXmit},
	{"NETDEV_XDP_ACT_XSK_ZEROCOPY:\t", rtnl.XDPXSKZerocopy},
	{"NETDEV_XDP_ACT_HW_OFFLOAD:\t", rtnl.XDPHWOffload},
	{"NETDEV_XDP_ACT_RX_SG:\t\t", rtnl.XDPRxSG},
	{"NETDEV_XDP_ACT_NDO_XMIT_SG:\t", rtnl.XDPNdoXmitSG},
}

// features is `xdp-loader features`.
func (l *loader) features(r request) int {
	ns, h, err := l.hook(r.iface, xdp.Auto)
	if err != nil {
		return exitFailed
	}
	defer ns.Close()
	said, err := rtnl.ReadXDPFeatures(-1, h.Index())
	if errors.Is(err, rtnl.ErrNoNetdev) {
		l.warn("The running kernel does not support querying XDP features.")
		l.why(err)
		return exitCode(&xdp.Error{Op: "features", Err: xdp.ErrNotSupported})
	}
	if err != nil {
		return l.fail("Couldn't query the features of '"+r.iface+"'", err)
	}
	printFeatures(l.env.Stdout, said)
	return exitDone
}

func printFeatures(w io.Writer, said rtnl.XDPFeatures) {
	for _, f := range driverFeatures {
		answer := "no"
		if said.Has(f.flag) {
			answer = "yes"
		}
		fmt.Fprintf(w, "%s%s\n", f.name, answer)
	}
}
