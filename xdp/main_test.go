package xdp_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{
		"attach-first": attachFirst,
		"replace":      replaceInTurn,
		"hold":         hold,
		"own":          own,
		"persist":      persist,
		"send":         send,
		"look":         look,
		"operate":      operate,
	})
}

// namespace opens a network namespace for the test's time.
func namespace(t testing.TB, spec string) *xdp.Namespace {
	t.Helper()
	ns, err := xdp.OpenNamespace(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func find(t testing.TB, ns *xdp.Namespace, name string, mode xdp.Mode) *xdp.Hook {
	t.Helper()
	h, err := ns.Hook(name, mode)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// open returns the hook of Near in that mode.
func open(t testing.TB, v *kerneltest.Veth, mode xdp.Mode) *xdp.Hook {
	t.Helper()
	return find(t, namespace(t, v.Near.Path()), v.NearName, mode)
}

// attachLink makes the hook owned, by a link that is closed when the test ends.
func attachLink(t testing.TB, h *xdp.Hook, p *ebpf.Program) *xdp.Link {
	t.Helper()
	l, err := h.AttachLink(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// attach attaches the program by netlink to an empty hook.
func attach(t testing.TB, h *xdp.Hook, p *ebpf.Program) {
	t.Helper()
	if err := h.Attach(p, xdp.Empty); err != nil {
		t.Fatal(err)
	}
}

func replace(t testing.TB, l *xdp.Link, old, next *ebpf.Program) {
	t.Helper()
	if err := l.Replace(xdp.ReplaceOptions{Program: next, Expect: xdp.Expect(old)}); err != nil {
		t.Fatal(err)
	}
}

func info(t testing.TB, l *xdp.Link) xdp.LinkInfo {
	t.Helper()
	i, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// query returns what is attached in the hook's mode, nil for nothing.
func query(t testing.TB, h *xdp.Hook) *xdp.Attachment {
	t.Helper()
	s, err := h.Query()
	if err != nil {
		t.Fatal(err)
	}
	return s.At(h.Mode())
}

// attached returns the id of the program at the hook's interface, 0 for none.
func attached(t testing.TB, h *xdp.Hook) uint32 {
	t.Helper()
	if a := query(t, h); a != nil {
		return a.Program.ID
	}
	return 0
}

// wantAttached checks what is at the hook; nil stands for nothing.
func wantAttached(t testing.TB, h *xdp.Hook, p *ebpf.Program) {
	t.Helper()
	var want uint32
	if p != nil {
		want = kerneltest.ProgramID(t, p)
	}
	if got := attached(t, h); got != want {
		t.Errorf("program %d is attached to %s, want %d", got, h, want)
	}
}

// wantEmptied waits until the hook is empty: the kernel releases links later.
func wantEmptied(t testing.TB, h *xdp.Hook) {
	t.Helper()
	if !kerneltest.Eventually(func() bool { return attached(t, h) == 0 }) {
		t.Errorf("program %d stays attached to %s", attached(t, h), h)
	}
}

// refused checks that the error is of that kind, and that its last words are
// what to do about it.
func refused(t testing.TB, err, kind error) *xdp.Error {
	t.Helper()
	var e *xdp.Error
	if !errors.Is(err, kind) || !errors.As(err, &e) {
		t.Fatalf("got: %v, want: %v", err, kind)
	}
	if e.Hint == "" || !strings.HasSuffix(err.Error(), "; "+e.Hint) {
		t.Errorf("%q does not end with what to do", err)
	}
	return e
}

// says checks that the message contains the words.
func says(t testing.TB, e *xdp.Error, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("%q does not say %q", e, w)
		}
	}
}
