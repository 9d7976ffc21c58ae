package features_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

var interfaceNames = []string{
	"native", "generic", "offload", "frags", "device-bound",
	"basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg",
}

func open(t testing.TB, n *kerneltest.NetNS) *xdp.Namespace {
	t.Helper()
	ns, err := xdp.OpenNamespace(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func hook(t testing.TB, ns *xdp.Namespace, name string, mode xdp.Mode) *xdp.Hook {
	t.Helper()
	h, err := ns.Hook(name, mode)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// examine looks into an interface, and checks what holds for all of them.
func examine(t testing.TB, ns *xdp.Namespace, name string, o features.Options) features.Device {
	t.Helper()
	h := hook(t, ns, name, xdp.Auto)
	before, err := h.Query()
	if err != nil {
		t.Fatal(err)
	}
	d, err := features.Interface(t.Context(), ns, name, o)
	if err != nil {
		t.Fatal(err)
	}
	// At once, and not only some time later.
	after, err := h.Query()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("looking into %s changed it (-before +after):\n%s", name, diff)
	}
	if diff := cmp.Diff(before, d.State); diff != "" {
		t.Errorf("the state of %s (-there +reported):\n%s", name, diff)
	}
	if diff := cmp.Diff(interfaceNames, names(d.Features)); diff != "" {
		t.Errorf("names and order are fixed (-want +got):\n%s", diff)
	}
	for _, f := range d.Features {
		t.Logf("%-14s %-8s %-10s %s", f.Name, f.Supported, f.How, f.Reason)
		if f.About == "" || f.Supported != features.Yes && f.Reason == "" {
			t.Errorf("%s says too little: %+v", f.Name, f)
		}
	}
	return d
}

// expect compares a feature's answer with "yes, tried" and the like.
func expect(t testing.TB, d features.Device, name string, supported features.Answer, how features.How, reason string) {
	t.Helper()
	f := features.Find(d.Features, name)
	if f.Supported != supported || f.How != how || !strings.Contains(f.Reason, reason) {
		t.Errorf("%s of %s: %s, %s (%s); want %s, %s (%s)", name, d.Interface.Name, f.Supported, f.How, f.Reason, supported, how, reason)
	}
}

// expectSaid is for what the driver says, if the kernel lets it.
func expectSaid(t testing.TB, d features.Device, name string, supported features.Answer) {
	t.Helper()
	if atLeast(t, "6.3") {
		expect(t, d, name, supported, features.Driver, "")
	} else {
		expect(t, d, name, features.Unknown, features.NotTried, "6.3")
	}
}

func TestAVethIsTried(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	ns := open(t, v.Near)
	d := examine(t, ns, v.NearName, features.Options{})
	expect(t, d, features.Native, features.Yes, features.Tried, "")
	expect(t, d, features.Generic, features.Yes, features.Tried, "")
	expect(t, d, features.Offload, features.No, features.Tried, "driver")
	if atLeast(t, "5.18") {
		expect(t, d, features.Frags, features.Yes, features.Tried, "")
	} else {
		expect(t, d, features.Frags, features.No, features.Tried, "5.18")
	}
	if atLeast(t, "6.3") {
		expect(t, d, features.DeviceBound, features.Yes, features.Tried, "")
	} else {
		expect(t, d, features.DeviceBound, features.No, features.Tried, "6.3")
	}
	for _, flag := range []string{features.FlagBasic, features.FlagRedirect, features.FlagRxSG} {
		expectSaid(t, d, flag, features.Yes)
	}
	for _, flag := range []string{features.FlagXSKZerocopy, features.FlagHWOffload} {
		expectSaid(t, d, flag, features.No)
	}
}

func TestTheLargestMTUOfAVethIsTheLargest(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	ns := open(t, v.Near)
	d := examine(t, ns, v.NearName, features.Options{})
	if d.MaxMTU <= 1500 || d.MaxMTU >= os.Getpagesize() {
		t.Fatalf("it is %d", d.MaxMTU)
	}
	h := hook(t, ns, v.NearName, xdp.Native)
	pass := kerneltest.Pass(t, "plain", nil)
	setMTU(t, v, d.MaxMTU)
	l, err := h.AttachLink(pass)
	if err != nil {
		t.Fatalf("the peer has MTU %d: %v", d.MaxMTU, err)
	}
	if err := l.Detach(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	setMTU(t, v, d.MaxMTU+1)
	if l, err := h.AttachLink(pass); !errors.Is(err, xdp.ErrMTU) {
		if err == nil {
			l.Close()
		}
		t.Errorf("the peer has MTU %d: %v", d.MaxMTU+1, err)
	}
}

func setMTU(t testing.TB, v *kerneltest.Veth, mtu int) {
	t.Helper()
	if err := v.Far.Conn.SetMTU(v.FarIndex, mtu); err != nil {
		t.Fatal(err)
	}
}

func TestABigMTUIsNotTakenForALackOfNativeMode(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	setMTU(t, v, 9000)
	d := examine(t, open(t, v.Near), v.NearName, features.Options{})
	if atLeast(t, "5.18") {
		expect(t, d, features.Native, features.Yes, features.Tried, "only programs with frags")
		expect(t, d, features.Frags, features.Yes, features.Tried, "")
	} else {
		expect(t, d, features.Native, features.Yes, features.Tried, "not with the present MTU")
	}
}

func TestAnAttachedProgramIsNeverTouched(t *testing.T) {
	tests := []struct {
		name   string
		attach func(t *testing.T, h *xdp.Hook, p *ebpf.Program)
	}{
		{"held by a link", func(t *testing.T, h *xdp.Hook, p *ebpf.Program) {
			l, err := h.AttachLink(p)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}},
		{"attached by netlink", func(t *testing.T, h *xdp.Hook, p *ebpf.Program) {
			if err := h.Attach(p, xdp.Empty); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, o := range []features.Options{{}, {Try: true}} {
				kerneltest.NoLeaks(t)
				v := kerneltest.NewVeth(t)
				ns := open(t, v.Near)
				tt.attach(t, hook(t, ns, v.NearName, xdp.Native), kerneltest.Pass(t, "mine", nil))
				d := examine(t, ns, v.NearName, o)
				if len(d.Attachments) != 1 || d.Attachments[0].Program.Name != "mine" {
					t.Errorf("attached is %+v", d.Attachments)
				}
				expect(t, d, features.Native, features.Yes, features.NotTried, "is attached in this mode")
				expect(t, d, features.Generic, features.Yes, features.NotTried, "a program is attached")
				expectSaid(t, d, features.Offload, features.No)
				if atLeast(t, "5.18") {
					expectSaid(t, d, features.Frags, features.Yes)
				} else {
					expect(t, d, features.Frags, features.No, features.Tried, "5.18")
				}
			}
		})
	}
}

func TestALoopbackInterfaceHasNoNativeMode(t *testing.T) {
	kerneltest.NoLeaks(t)
	d := examine(t, open(t, kerneltest.NewNetNS(t)), "lo", features.Options{})
	expect(t, d, features.Native, features.No, features.Tried, "EOPNOTSUPP")
	expect(t, d, features.Generic, features.Yes, features.Tried, "")
	expect(t, d, features.Offload, features.No, features.Tried, "")
	expect(t, d, features.Frags, features.No, features.Tried, "")
	expect(t, d, features.DeviceBound, features.No, features.Tried, "")
	expectSaid(t, d, features.FlagBasic, features.No)
	if d.MaxMTU != 0 {
		t.Errorf("the largest MTU without frags is %d", d.MaxMTU)
	}
}

func TestABridgeIsTriedOnlyWithoutPorts(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	ns := open(t, v.Near)
	if err := v.Near.Conn.Add("bridge", "br"); err != nil {
		t.Fatal(err)
	}
	bridge := v.Near.Device(t, "br")
	d := examine(t, ns, "br", features.Options{})
	expect(t, d, features.Native, features.No, features.Tried, "EOPNOTSUPP")
	expect(t, d, features.Generic, features.Yes, features.Tried, "")

	if err := v.Near.Conn.SetMaster(v.NearIndex, bridge.Index); err != nil {
		t.Fatal(err)
	}
	d = examine(t, ns, "br", features.Options{})
	expectSaid(t, d, features.Native, features.No)
	expect(t, d, features.Generic, features.Yes, features.NotTried, "it lies over "+v.NearName)
	d = examine(t, ns, "br", features.Options{Try: true})
	expect(t, d, features.Generic, features.Yes, features.Tried, "")

	// From 5.15 on the port of a bridge that has a program can't have one.
	if err := hook(t, ns, "br", xdp.Generic).Attach(kerneltest.Pass(t, "bridge", nil), xdp.Empty); err != nil {
		t.Fatal(err)
	}
	d = examine(t, ns, v.NearName, features.Options{})
	for _, mode := range []string{features.Native, features.Generic} {
		if atLeast(t, "5.15") {
			expect(t, d, mode, features.Unknown, features.NotTried, "has a program")
		} else {
			expect(t, d, mode, features.Yes, features.Tried, "")
		}
	}
}

func TestTheCallersOwnNamespaceNeedsNoName(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	v.Near.In(t, func() error {
		ns, err := xdp.OpenNamespace("")
		if err != nil {
			return err
		}
		defer ns.Close()
		d := examine(t, ns, v.NearName, features.Options{})
		expect(t, d, features.Native, features.Yes, features.Tried, "")
		expectSaid(t, d, features.FlagBasic, features.Yes)
		return nil
	})
}

func TestAnInterfaceThatIsNotThereIsNotFound(t *testing.T) {
	ns := open(t, kerneltest.NewNetNS(t))
	if _, err := features.Interface(t.Context(), ns, "nowhere", features.Options{}); !errors.Is(err, xdp.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestAContextEndsTheTryingOfAnInterface(t *testing.T) {
	kerneltest.NoLeaks(t)
	ns := open(t, kerneltest.NewNetNS(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := features.Interface(ctx, ns, "lo", features.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
