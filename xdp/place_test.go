package xdp_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestANamespaceIsFoundByNamePathAndProcess(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	name := v.Near.Name(t, "blue")
	var inside *kerneltest.Process
	v.Near.In(t, func() error {
		inside = start(t, nil, "hold")
		return nil
	})
	id := namespace(t, v.Near.Path()).ID()
	for what, spec := range map[string]string{
		"name":    name,
		"path":    "/run/netns/" + name,
		"process": fmt.Sprint(inside.PID()),
	} {
		t.Run(what, func(t *testing.T) {
			ns := namespace(t, spec)
			if ns.ID() != id {
				t.Errorf("%q is namespace %s, want %s", spec, ns.ID(), id)
			}
			h := find(t, ns, v.NearName, xdp.Native)
			if h.Index() != v.NearIndex {
				t.Errorf("%s is interface %d, want %d", h, h.Index(), v.NearIndex)
			}
			p := kerneltest.Pass(t, "placed", nil)
			l := attachLink(t, h, p)
			wantAttached(t, open(t, v, xdp.Native), p)
			if err := l.Detach(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestANameOfANamespaceWinsOverAPid(t *testing.T) {
	kerneltest.NoLeaks(t)
	named, other := kerneltest.NewNetNS(t), kerneltest.NewNetNS(t)
	var inside *kerneltest.Process
	other.In(t, func() error {
		inside = start(t, nil, "hold")
		return nil
	})
	pid := fmt.Sprint(inside.PID())
	if got, want := namespace(t, pid).ID(), namespace(t, other.Path()).ID(); got != want {
		t.Errorf("without a name, %s is namespace %s, want %s", pid, got, want)
	}
	named.Name(t, pid)
	if got, want := namespace(t, pid).ID(), namespace(t, named.Path()).ID(); got != want {
		t.Errorf("with a name, %s is namespace %s, want %s", pid, got, want)
	}
}

// threads are the network namespaces of all threads of the process, each once.
func threads(t *testing.T) []string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatal("no threads", err)
	}
	seen := map[string]bool{}
	var all []string
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && !seen[ns] {
			seen[ns] = true
			all = append(all, ns)
		}
	}
	return all
}

func TestNoCallLeavesAThreadInAnotherNamespace(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	p := kerneltest.Pass(t, "moved", nil)
	h := open(t, v, xdp.Native)
	l, rival := attachLink(t, h, p), kerneltest.Pass(t, "rival", nil)
	ns := h.Namespace()
	for name, call := range map[string]func() error{
		"open":                   func() error { n, err := xdp.OpenNamespace(v.Near.Path()); n.Close(); return err },
		"open a missing one":     func() error { _, err := xdp.OpenNamespace("nowhere"); return err },
		"find":                   func() error { _, err := ns.Hook(v.NearName, xdp.Auto); return err },
		"find a missing one":     func() error { _, err := ns.Hook("nowhere", xdp.Auto); return err },
		"query":                  func() error { _, err := h.Query(); return err },
		"all states":             func() error { _, err := ns.States(); return err },
		"attach, refused":        func() error { _, err := h.AttachLink(rival); return err },
		"attach by netlink":      func() error { return h.Attach(rival, xdp.Empty) },
		"detach by netlink":      func() error { return h.Detach(xdp.Any) },
		"replace":                func() error { return l.Replace(xdp.ReplaceOptions{Program: p, Expect: xdp.Any}) },
		"a call of one's own":    func() error { return ns.Do(func() error { return nil }) },
		"one that fails":         func() error { return ns.Do(func() error { return os.ErrInvalid }) },
		"a namespace of another": func() error { _, err := xdp.OpenNamespace("/proc/self/ns/mnt"); return err },
	} {
		err := call()
		if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != home {
			t.Errorf("%s (%v) moved the thread from %s to %s", name, err, home, now)
		}
		if all := threads(t); len(all) != 1 || all[0] != home {
			t.Errorf("%s (%v) left threads in %v, and home is %s", name, err, all, home)
		}
	}
}

func TestANamespaceThatIsNotThereIsNotFound(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, spec := range map[string]string{
		"an unknown name":         "nowhere",
		"a pid of no process":     "4194304", // PID_MAX_LIMIT, one too many
		"a number that is no pid": "99999999999999999999",
		"a path to nothing":       "/run/netns/nowhere",
		"a file":                  file,
		"a directory":             filepath.Dir(file),
		"another kind":            "/proc/self/ns/mnt",
		"the directory of names":  ".",
		"the one above":           "..",
	} {
		t.Run(what, func(t *testing.T) {
			_, err := xdp.OpenNamespace(spec)
			says(t, refused(t, err, xdp.ErrNotFound), spec)
		})
	}
}

// Processes that end at once lead to the namespace, and a descriptor keeps it: whoever
// takes it for gone with one of them takes what is attached in it for gone, too.
func TestANamespaceIsFoundAlthoughProcessesInItEnd(t *testing.T) {
	kerneltest.NoLeaks(t)
	const looks = 300
	n := kerneltest.NewNetNS(t)
	id := namespace(t, n.Path()).ID()
	done := make(chan struct{})
	var running sync.WaitGroup
	var ended int
	running.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := n.Do(func() error { return kerneltest.Command("hold").Run() }); err != nil {
				t.Error(err)
				return
			}
			ended++
		}
	})
	for range looks {
		var seen int
		for ns, err := range xdp.Namespaces() {
			if err != nil {
				t.Error(err)
				continue
			}
			if ns.ID() == id {
				seen++
			}
			if err := ns.Close(); err != nil {
				t.Error(err)
			}
		}
		if seen != 1 {
			t.Errorf("the namespace was found %d times", seen)
		}
	}
	close(done)
	running.Wait()
	t.Logf("%d processes ended meanwhile", ended)
}

func TestAnInterfaceThatIsNotThereIsNotFound(t *testing.T) {
	n := kerneltest.NewNetNS(t)
	ns := namespace(t, n.Path())
	for _, name := range []string{"nowhere", ".", "..", "a.b", strings.Repeat("x", 15), "ü"} {
		_, err := ns.Hook(name, xdp.Auto)
		says(t, refused(t, err, xdp.ErrNotFound), name, n.Path())
	}
	_, err := ns.HookAt(1_000_000, xdp.Auto)
	says(t, refused(t, err, xdp.ErrNotFound), "interface 1000000")
}

func TestWhatCanBeNoInterfaceIsInvalid(t *testing.T) {
	ns := namespace(t, "")
	for name, word := range map[string]string{
		"":                           "empty",
		strings.Repeat("x", 16):      "too long",
		strings.Repeat("x", 100_000): "too long",
		"a/b":                        "'/'",
		"/":                          "'/'",
		"a b":                        "' '",
		"a:1":                        "':'",
		"a\n":                        `'\n'`,
		"a\x00":                      `'\x00'`,
	} {
		_, err := ns.Hook(name, xdp.Auto)
		says(t, refused(t, err, xdp.ErrInvalid), word)
	}
	for _, index := range []int{0, -1, 1 << 31, 1<<32 + 1} {
		_, err := ns.HookAt(index, xdp.Auto)
		refused(t, err, xdp.ErrInvalid)
	}
}

func TestTheSameNameInTwoNamespacesIsTwoHooks(t *testing.T) {
	kerneltest.NoLeaks(t)
	var hooks []*xdp.Hook
	for range 2 {
		n := kerneltest.NewNetNS(t)
		if err := n.Conn.AddVethAt(7, "same", 8, "peer"); err != nil {
			t.Fatal(err)
		}
		hooks = append(hooks, find(t, namespace(t, n.Path()), "same", xdp.Native))
	}
	one, two := kerneltest.Pass(t, "one", nil), kerneltest.Pass(t, "two", nil)
	attachLink(t, hooks[0], one)
	wantAttached(t, hooks[1], nil)
	attachLink(t, hooks[1], two)
	wantAttached(t, hooks[0], one)
	wantAttached(t, hooks[1], two)
}

func TestAClosedNamespaceIsNotTheCallersOwn(t *testing.T) {
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	p := kerneltest.Pass(t, "astray", nil)
	// In a thread in Far, an attach that went astray would succeed: both have
	// the same index.
	if v.NearIndex != v.FarIndex {
		t.Fatalf("the indexes are %d and %d", v.NearIndex, v.FarIndex)
	}
	ns := namespace(t, v.Near.Path())
	h := find(t, ns, v.NearName, xdp.Native)
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	v.Far.In(t, func() error {
		if _, err := h.AttachLink(p); err == nil {
			t.Error("a link was attached in a closed namespace")
		}
		if err := h.Attach(p, xdp.Any); err == nil {
			t.Error("netlink attached in a closed namespace")
		}
		if err := h.Detach(xdp.Any); err == nil {
			t.Error("netlink detached in a closed namespace")
		}
		if _, err := h.Query(); err == nil {
			t.Error("a hook of a closed namespace can be read")
		}
		return nil
	})
	wantAttached(t, find(t, namespace(t, v.Far.Path()), v.FarName, xdp.Native), nil)
	if err := ns.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}
