package kerneltest

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// fake is a test of which it is seen how it ends.
type fake struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (f *fake) Cleanup(c func()) { f.cleanups = append(f.cleanups, c) }
func (f *fake) Errorf(format string, args ...any) {
	f.errors = append(f.errors, fmt.Sprintf(format, args...))
}

func (f *fake) end() {
	for len(f.cleanups) > 0 {
		last := len(f.cleanups) - 1
		c := f.cleanups[last]
		f.cleanups[last], f.cleanups = nil, f.cleanups[:last]
		c()
	}
}

// link attaches a new program at Near.
func link(t testing.TB, v *Veth, name string) (fd kernel.FD, err error) {
	p := Pass(t, name, nil)
	err = v.Near.Do(func() (err error) {
		fd, err = kernel.LinkCreateXDP(p.FD(), v.NearIndex, unix.XDP_FLAGS_SKB_MODE)
		return err
	})
	return fd, err
}

// closer makes a closer of a function.
type closer func() error

func (c closer) Close() error { return c() }

func TestWhatIsLeftBehindFailsTheTest(t *testing.T) {
	NoLeaks(t)
	v, dir := NewVeth(t), BPFFS(t)
	for name, c := range map[string]struct {
		leak func(t testing.TB) (io.Closer, error)
		says []string
	}{
		"a program": {func(t testing.TB) (io.Closer, error) {
			p := Pass(t, "left", nil)
			return p.Clone()
		}, []string{`program `, `"left"`, "1 descriptors of anon_inode:bpf-prog"}},
		"a map": {func(testing.TB) (io.Closer, error) {
			return ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		}, []string{"map ", "1 descriptors of anon_inode:bpf-map"}},
		"a link": {func(t testing.TB) (io.Closer, error) {
			return link(t, v, "linked")
		}, []string{"link {", `"linked"`, "1 descriptors of anon_inode:bpf"}},
		"a link that only a pin holds": {func(t testing.TB) (io.Closer, error) {
			fd, err := link(t, v, "pinned")
			if err != nil {
				return nil, err
			}
			defer fd.Close()
			pin := dir + "/link"
			return closer(func() error { return os.Remove(pin) }), kernel.Pin(fd, pin)
		}, []string{"link {", `"pinned"`}},
		"a network namespace": {func(testing.TB) (io.Closer, error) {
			return netns.New()
		}, []string{"1 descriptors of net"}},
		"an open xdp.Namespace": {func(testing.TB) (io.Closer, error) {
			return xdp.OpenNamespace(v.Near.Path())
		}, []string{"1 descriptors of net", "1 descriptors of socket"}},
		"a socket": {func(testing.TB) (io.Closer, error) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			return closer(func() error { return unix.Close(fd) }), err
		}, []string{"1 descriptors of socket"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{TB: t}
			noLeaks(f, 200*time.Millisecond)
			left, err := c.leak(f)
			f.end()
			if err != nil {
				t.Fatal(err)
			}
			if err := left.Close(); err != nil {
				t.Error(err)
			}
			if len(f.errors) != 1 {
				t.Fatalf("the test ended with %q, want one error", f.errors)
			}
			for _, want := range c.says {
				if !strings.Contains(f.errors[0], want) {
					t.Errorf("the error is %q, want %q in it", f.errors[0], want)
				}
			}
		})
	}
}

func TestATestThatCleansUpIsNotFailed(t *testing.T) {
	f := &fake{TB: t}
	NoLeaks(f)
	v := NewVeth(f)
	dir := BPFFS(f)
	c := Load(f, "gate", nil)
	ns, err := xdp.OpenNamespace(v.Near.Path())
	if err != nil {
		t.Fatal(err)
	}
	f.Cleanup(func() { ns.Close() })
	h, err := ns.Hook(v.NearName, xdp.Native)
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.AttachLink(c.Programs["gate"])
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Persist(dir + "/link"); err != nil {
		t.Fatal(err)
	}
	l.Close()
	f.end()
	if len(f.errors) > 0 {
		t.Errorf("it failed: %q", f.errors)
	}
}
