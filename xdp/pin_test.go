package xdp_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

func TestAPersistedLinkOutlivesItsDescriptorAndEndsWithItsPin(t *testing.T) {
	kerneltest.NoLeaks(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	pin := filepath.Join(kerneltest.BPFFS(t), "link")
	one, two := kerneltest.Pass(t, "one", nil), kerneltest.Pass(t, "two", nil)
	l := attachLink(t, h, one)
	if err := l.Persist(pin); err != nil {
		t.Fatal(err)
	}
	made := info(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(pin); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the pin has mode %v (%v), want 0600", st.Mode(), err)
	}
	again, err := xdp.OpenPinned(pin)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := info(t, again); got != made {
		t.Errorf("the pin opens as %+v, want %+v", got, made)
	}
	replace(t, again, one, two)
	wantAttached(t, h, two)
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	wantAttached(t, h, two)
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	wantEmptied(t, h)
}

func TestAPinIsRefusedWithWhatIsWrongWithItsPath(t *testing.T) {
	kerneltest.NoLeaks(t)
	l := attachLink(t, open(t, kerneltest.NewVeth(t), xdp.Native), kerneltest.Pass(t, "pinned", nil))
	dir, elsewhere := kerneltest.BPFFS(t), t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := l.Persist(taken); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		path string
		want error
		says string
	}{
		"taken":                 {taken, xdp.ErrExists, "choose another path"},
		"a directory":           {dir, xdp.ErrExists, "choose another path"},
		"in no bpffs":           {filepath.Join(elsewhere, "link"), xdp.ErrInvalid, "must be in a bpffs"},
		"a dot in it":           {filepath.Join(dir, "eth0.100"), xdp.ErrInvalid, "no name with a dot"},
		"no directory":          {filepath.Join(dir, "missing", "link"), xdp.ErrNotFound, "make it first"},
		"below a pin":           {filepath.Join(taken, "link"), xdp.ErrNotFound, "make it first"},
		"no directory anywhere": {filepath.Join(elsewhere, "missing", "link"), xdp.ErrNotFound, "make it first"},
		"a name too long":       {filepath.Join(dir, strings.Repeat("x", 256)), xdp.ErrInvalid, "check the path"},
		"a NUL byte in it":      {filepath.Join(dir, "a\x00b"), xdp.ErrInvalid, "check the path"},
		"empty":                 {"", xdp.ErrNotFound, ""},
	} {
		t.Run(what, func(t *testing.T) {
			says(t, refused(t, l.Persist(c.path), c.want), c.says)
		})
	}
}

func TestWhatIsNoPinnedXDPLinkDoesNotOpen(t *testing.T) {
	kerneltest.NoLeaks(t)
	dir, elsewhere := kerneltest.BPFFS(t), t.TempDir()
	pinned := func(name string, pin func(path string) error) string {
		path := filepath.Join(dir, name)
		if err := pin(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	file := filepath.Join(elsewhere, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := otherLink(t)
	for what, c := range map[string]struct {
		path string
		want error
		says string
	}{
		"a map":             {pinned("map", m.Pin), xdp.ErrInvalid, "not an XDP link"},
		"a program":         {pinned("program", kerneltest.Pass(t, "pinned", nil).Pin), xdp.ErrInvalid, "not an XDP link"},
		"a link of another": {pinned("other", other.Pin), xdp.ErrInvalid, "a link, but not of XDP"},
		"a directory":       {dir, xdp.ErrInvalid, ""},
		"a file":            {file, xdp.ErrInvalid, "a pin must be in a bpffs"},
		"nothing":           {filepath.Join(dir, "nothing"), xdp.ErrNotFound, "nothing is pinned there"},
		"nothing elsewhere": {filepath.Join(elsewhere, "nothing"), xdp.ErrNotFound, "nothing is pinned there"},
		"empty":             {"", xdp.ErrNotFound, ""},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := xdp.OpenPinned(c.path)
			says(t, refused(t, err, c.want), c.says)
		})
	}
}

// otherLink makes a link that is not of XDP.
func otherLink(t *testing.T) *link.NetNsLink {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.FlowDissector, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	l, err := link.AttachNetNs(kerneltest.NewNetNS(t).FD(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// linkThroughASocket: the link outlives its sender, also before it is received.
func linkThroughASocket(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	h := open(t, v, xdp.Native)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer unix.Close(pair[0])
	sender := start(t, []*os.File{theirs}, "send", v.Near.Path(), v.NearName)
	theirs.Close()
	// Nobody but the socket has the link now.
	sender.Kill()
	sent := query(t, h)
	if sent == nil {
		t.Fatal("the program went with its sender")
	}
	l, err := xdp.Adopt(receive(t, pair[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if i := info(t, l); i.ID != sent.LinkID || i.ProgramID != sent.Program.ID {
		t.Errorf("adopted %+v, want link %d with program %d", i, sent.LinkID, sent.Program.ID)
	}
	p := kerneltest.Pass(t, "adopted", nil)
	if err := l.Replace(xdp.ReplaceOptions{Program: p, Expect: xdp.ExpectID(sent.Program.ID)}); err != nil {
		t.Fatal(err)
	}
	wantAttached(t, h, p)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantEmptied(t, h)
}

// linkInherited: the link is held by the child that inherited it.
func linkInherited(t *testing.T) {
	kerneltest.NoLeaks(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	l := attachLink(t, h, kerneltest.Pass(t, "inherited", nil))
	inherited := dup(t, l.FD())
	child := start(t, []*os.File{inherited}, "hold")
	inherited.Close()
	if got, want := holders(t, h), []int{unix.Getpid(), child.PID()}; !slices.Equal(got, want) {
		t.Errorf("the holders are %v, want parent and child, %v", got, want)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := holders(t, h), []int{child.PID()}; !slices.Equal(got, want) {
		t.Errorf("the holders are %v, want the child, %v", got, want)
	}
	child.Kill()
	wantEmptied(t, h)
}

// holders are the pids of those who hold the hook's link.
func holders(t *testing.T, h *xdp.Hook) []int {
	t.Helper()
	a := query(t, h)
	if a == nil {
		t.Fatalf("nothing is attached to %s", h)
	}
	xdp.FindHolders(a)
	var pids []int
	for _, holder := range a.Holders {
		pids = append(pids, holder.PID)
	}
	return pids
}

func TestADescriptorThatIsNoXDPLinkIsNotAdoptedAndStaysTheCallers(t *testing.T) {
	kerneltest.NoLeaks(t)
	p := kerneltest.Pass(t, "program", nil)
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for what, c := range map[string]struct {
		fd   int
		says string
	}{
		"a file":            {int(file.Fd()), "not an XDP link"},
		"a program":         {p.FD(), "not an XDP link"},
		"a link of another": {otherLink(t).FD(), "a link, but not of XDP"},
		"none":              {-1, "not an XDP link"},
		"a closed one":      {1 << 20, "not an XDP link"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := xdp.Adopt(c.fd)
			says(t, refused(t, err, xdp.ErrInvalid), c.says)
			if c.fd < 0 || c.fd == 1<<20 {
				return
			}
			if _, err := unix.FcntlInt(uintptr(c.fd), unix.F_GETFD, 0); err != nil {
				t.Errorf("the caller's descriptor: %v", err)
			}
		})
	}
}

func TestALinkOpenedByItsIDProlongsItsLife(t *testing.T) {
	kerneltest.NoLeaks(t)
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	p := kerneltest.Pass(t, "prolonged", nil)
	l := attachLink(t, h, p)
	id := info(t, l).ID
	same, err := xdp.OpenID(id)
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// The close of another link was released by the time that one of this
	// would have been.
	releaseAnother(t)
	wantAttached(t, h, p)
	if err := same.Close(); err != nil {
		t.Fatal(err)
	}
	wantEmptied(t, h)
	if !kerneltest.Eventually(func() bool { _, err = xdp.OpenID(id); return err != nil }) {
		t.Fatal("the link is still there")
	}
	says(t, refused(t, err, xdp.ErrNotFound), "it has ended")
}

// releaseAnother waits until the kernel has released a link that was closed
// just now, and so whatever was closed before.
func releaseAnother(t *testing.T) {
	t.Helper()
	h := open(t, kerneltest.NewVeth(t), xdp.Native)
	if err := attachLink(t, h, kerneltest.Pass(t, "another", nil)).Close(); err != nil {
		t.Fatal(err)
	}
	wantEmptied(t, h)
}
