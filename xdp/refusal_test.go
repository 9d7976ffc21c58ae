package xdp_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestAPeerWithABigMTUIsNamedWithTheMTUThatWouldDo(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	h := open(t, v, xdp.Native)
	p := kerneltest.Pass(t, "big", nil)
	set := func(mtu int) {
		t.Helper()
		if err := v.Far.Conn.SetMTU(v.FarIndex, mtu); err != nil {
			t.Fatal(err)
		}
	}
	set(9000)
	_, err := h.AttachLink(p)
	for _, err := range []error{err, h.Attach(p, xdp.Empty)} {
		e := refused(t, err, xdp.ErrMTU)
		says(t, e, "the peer of "+v.NearName, "set the peer's MTU to", `SEC("xdp.frags")`, "mode generic")
		set(e.MaxMTU + 1)
		_, err = h.AttachLink(p)
		refused(t, err, xdp.ErrMTU)
		set(e.MaxMTU)
		l := attachLink(t, h, p)
		if err := l.Detach(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAReplaceAcrossAttachTypesIsToldSo(t *testing.T) {
	kerneltest.NoLeaks(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	xdpType := kerneltest.Pass(t, "typed", nil)
	none := kerneltest.Pass(t, "untyped", func(s *ebpf.ProgramSpec) { s.AttachType = ebpf.AttachNone })
	for _, c := range [][2]*ebpf.Program{{xdpType, none}, {none, xdpType}} {
		l := attachLink(t, h, c[0])
		e := refused(t, l.Replace(xdp.ReplaceOptions{Program: c[1], Expect: xdp.Expect(c[0])}), xdp.ErrAttachType)
		says(t, e, "another expected attach type", "BPF_XDP, or none")
		wantAttached(t, h, c[0])
		if err := l.Detach(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPortIsToldThatItsMasterHasTheProgram(t *testing.T) {
	if version, err := features.LinuxVersionCode(); err != nil || version < 5<<16|15<<8 {
		t.Skip("a port and its master are independent before Linux 5.15", err)
	}
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	if err := v.Near.Conn.Add("bridge", "br0"); err != nil {
		t.Fatal(err)
	}
	if err := v.Near.Conn.SetMaster(v.NearIndex, v.Near.Device(t, "br0").Index); err != nil {
		t.Fatal(err)
	}
	port := open(t, v, xdp.Native)
	master, p := kerneltest.Pass(t, "master", nil), kerneltest.Pass(t, "port", nil)
	attachLink(t, find(t, port.Namespace(), "br0", xdp.Auto), master)
	_, err := port.AttachLink(p)
	for _, err := range []error{err, port.Attach(p, xdp.Empty), port.Attach(p, xdp.Any)} {
		e := refused(t, err, xdp.ErrPort)
		says(t, e, v.NearName+" is a port of bridge br0", "attach to br0 instead, or detach there")
		if e.Rival == nil || e.Rival.Program.ID != kerneltest.ProgramID(t, master) {
			t.Errorf("%q does not name the bridge's program", e)
		}
	}
	wantAttached(t, port, nil)
}

// view is what a process without privileges gets.
type view struct {
	State  xdp.State
	Errors map[string]refusal
}

type refusal struct{ Kind, Text, Hint string }

// look uses the hook of that name, in its own namespace, as whoever it is.
func look(args []string) int {
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		return fail(err)
	}
	h, err := ns.Hook(args[0], xdp.Native)
	if err != nil {
		return fail(err)
	}
	v := view{Errors: map[string]refusal{}}
	if v.State, err = h.Query(); err != nil {
		return fail(err)
	}
	for what, call := range map[string]func() error{
		"detach":    func() error { return h.Detach(xdp.Any) },
		"by id":     func() error { return h.Detach(xdp.ExpectID(v.State.At(xdp.Native).Program.ID)) },
		"enter":     func() error { _, err := xdp.OpenNamespace(args[1]); return err },
		"open link": func() error { _, err := xdp.OpenID(1); return err },
		"list":      func() error { _, err := xdp.Links(); return err },
		"open pin":  func() error { _, err := xdp.OpenPinned(args[2]); return err },
	} {
		err := call()
		var e *xdp.Error
		if !errors.As(err, &e) {
			v.Errors[what] = refusal{Kind: "none"}
			continue
		}
		v.Errors[what] = refusal{Kind: e.Err.Error(), Text: e.Error(), Hint: e.Hint}
	}
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		return fail(err)
	}
	return 0
}

func TestWithoutPrivilegesOneSeesTheProgramAndIsToldWhatIsNeeded(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	h := open(t, v, xdp.Native)
	p := kerneltest.Pass(t, "seen", nil)
	attach(t, h, p)
	name := v.Far.Name(t, "far")
	pin := kerneltest.BPFFS(t) + "/pin"
	if err := p.Pin(pin); err != nil {
		t.Fatal(err)
	}
	cmd := kerneltest.Command("look", v.NearName, name, pin)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.Stderr = os.Stderr
	var out []byte
	v.Near.In(t, func() (err error) {
		out, err = cmd.Output()
		return err
	})
	var got view
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if a := got.State.At(xdp.Native); a == nil || a.Program.ID != kerneltest.ProgramID(t, p) || a.Held != xdp.HeldUnknown || a.LinkID != 0 {
		t.Errorf("it sees %+v, want the program's id and no more", a)
	}
	for what, r := range got.Errors {
		if r.Kind != xdp.ErrPermission.Error() {
			t.Errorf("%s: %+v, want: %v", what, r, xdp.ErrPermission)
		}
		if r.Hint == "" || !strings.HasSuffix(r.Text, "; "+r.Hint) {
			t.Errorf("%s: %q does not end with what to do", what, r.Text)
		}
	}
	wantAttached(t, h, p)
}
