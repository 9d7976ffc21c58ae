package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/cli"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// site is where the operations of one sweep happen: an interface, a state, and
// what the machine has besides.
type site struct {
	netns string
	name  string
	// dir is the state, empty for the default.
	dir string
	// pins is a bpffs beside the state.
	pins string
	// links and programs were there before.
	links    []kernel.LinkInfo
	programs []ebpf.ProgramID
	// objects are the paths of the project's objects, by name.
	objects map[string]string
}

func newSite(t *testing.T) *site {
	t.Helper()
	kerneltest.NoLeaks(t)
	conn, err := rtnl.Dial(-1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	const near, far = "near", "far"
	if err := conn.AddVeth(near, far, -1); err != nil {
		t.Fatal(err)
	}
	d, err := conn.Device(near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Delete(d.Index) })
	s := &site{name: near, dir: kerneltest.BPFFS(t), pins: kerneltest.BPFFS(t), objects: map[string]string{}}
	for _, name := range []string{"pass", "drop", "tailcall"} {
		s.objects[name] = kerneltest.ObjectFile(t, name)
	}
	s.remember(t)
	return s
}

func (s *site) remember(t *testing.T) { s.links, s.programs = links(t), programs(t) }

func links(t *testing.T) []kernel.LinkInfo {
	t.Helper()
	l, err := kernel.XDPLinks()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func programs(t *testing.T) []ebpf.ProgramID {
	t.Helper()
	var ids []ebpf.ProgramID
	for id := ebpf.ProgramID(0); ; ids = append(ids, id) {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return ids
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
	}
}

// command is the process that makes the request.
func (s *site) command(t *testing.T, r request) crash.Command {
	t.Helper()
	c := crash.Command{Path: "/proc/self/exe", Counts: points(r.Floor)}
	if r.Floor == byCommand {
		c.Args, c.Env = r.commandLine(), s.env()
		return c
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	c.Args, c.Env = []string{string(b)}, append(os.Environ(), kerneltest.CommandEnv(libraryProcess))
	return c
}

// env is the command's environment.
func (s *site) env() []string {
	return append(os.Environ(), kerneltest.CommandEnv(commandProcess), "HOLDFAST_BPFFS="+s.dir)
}

// perform makes the request in this process, and returns the command's exit
// code; that of the library is 0 or 1.
func (s *site) perform(t *testing.T, r request) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	if r.Floor == byCommand {
		code = cli.Main(cli.Env{
			Args: r.commandLine(), Stdin: os.Stdin, Stdout: &out, Stderr: &errOut,
			Getenv: func(name string) string {
				if name == "HOLDFAST_BPFFS" {
					return s.dir
				}
				return os.Getenv(name)
			},
		})
	} else if err := r.perform(&out); err != nil {
		code = 1
		errOut.WriteString(err.Error())
	}
	return code, out.String(), errOut.String()
}

// attached is the program at the hook, nil for none.
func (s *site) attached(t *testing.T) *xdp.Attachment {
	t.Helper()
	ns, err := xdp.OpenNamespace(s.netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := ns.Hook(s.name, xdp.Auto)
	if err != nil {
		t.Fatal(err)
	}
	state, err := h.Query()
	if err != nil {
		t.Fatal(err)
	}
	return state.At(xdp.Auto)
}

// pinned are the links that are pinned, by id, with their pins.
func (s *site) pinned(t *testing.T) map[uint32][]string {
	t.Helper()
	found := map[uint32][]string{}
	for _, dir := range []string{s.stateDir(), s.pins} {
		err := bpffs.WalkPins(dir, func(path string) {
			l, err := xdp.OpenPinned(path)
			if err != nil {
				return // a map
			}
			defer l.Close()
			info, err := l.Info()
			if err != nil {
				t.Fatal(err)
			}
			found[info.ID] = append(found[info.ID], path)
			if info.Defunct() {
				t.Errorf("%s pins a link that attaches nothing", path)
			}
		})
		if err != nil && !errors.Is(err, bpffs.ErrNoBPFFS) {
			t.Fatal(err)
		}
	}
	return found
}

func (s *site) stateDir() string {
	if s.dir == "" {
		return arbiter.DefaultDir
	}
	return s.dir
}

// settle waits until the kernel has let go of what killed processes had: of
// every link that is not pinned, if nobody else holds one.
func (s *site) settle(t *testing.T) {
	t.Helper()
	var now []kernel.LinkInfo
	ok := kerneltest.Eventually(func() bool {
		now = slices.DeleteFunc(links(t), func(l kernel.LinkInfo) bool { return slices.Contains(s.links, l) })
		return len(now) == len(s.pinned(t))
	})
	if !ok {
		t.Errorf("links %v are left, and pins %v", now, s.pinned(t))
	}
}

// loaded waits until as many programs are loaded as expected.
func (s *site) loaded(t *testing.T, expected int) {
	t.Helper()
	var now []ebpf.ProgramID
	ok := kerneltest.Eventually(func() bool {
		now = slices.DeleteFunc(programs(t), func(p ebpf.ProgramID) bool { return slices.Contains(s.programs, p) })
		return len(now) == expected
	})
	if !ok {
		t.Errorf("%d programs are loaded, want %d: %v", len(now), expected, now[:min(len(now), 5)])
	}
}

// state opens Holdfast's state for looking.
func (s *site) state(t *testing.T) *arbiter.Arbiter {
	t.Helper()
	a, err := arbiter.OpenReadOnly(arbiter.Options{Dir: s.dir})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// status is what Holdfast shows at the hook, and what else it has.
func (s *site) status(t *testing.T) []arbiter.Status {
	t.Helper()
	ns, err := xdp.OpenNamespace(s.netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	a := s.state(t)
	defer a.Close()
	all, err := a.Status([]*xdp.Namespace{ns})
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	return all
}

// gc removes what is stale.
func (s *site) gc(t *testing.T, dryRun bool) []arbiter.Stale {
	t.Helper()
	a := s.state(t)
	defer a.Close()
	stale, err := a.GC(context.Background(), dryRun)
	if err != nil {
		t.Fatalf("gc: %v", err)
	}
	return stale
}

// entries are the directories of the state.
func (s *site) entries(t *testing.T) []string { return names(t, s.stateDir()) }

// names are those in a directory that need not be there. The kernel itself puts
// maps.debug and progs.debug into a bpffs; nobody else can use a dot.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names
}

// empty checks that nothing is left, and waits for the kernel to let go.
func (s *site) empty(t *testing.T) {
	t.Helper()
	if at := s.attached(t); at != nil {
		t.Errorf("%v is attached, want nothing", at)
	}
	if names := s.entries(t); len(names) > 0 {
		t.Errorf("entries %v are left", names)
	}
	if pins := names(t, s.pins); len(pins) > 0 {
		t.Errorf("pins %v are left", pins)
	}
	s.settle(t)
	s.loaded(t, 0)
}

// removeDefaultState unmounts the default state, for the next run to make.
func removeDefaultState(t *testing.T) {
	t.Helper()
	if bpffs.Is(arbiter.DefaultDir) {
		if err := unix.Unmount(arbiter.DefaultDir, 0); err != nil {
			t.Fatalf("unmount the state: %v", err)
		}
	}
	if bpffs.Is(arbiter.DefaultDir) {
		t.Fatal("the state was mounted twice")
	}
	if err := os.RemoveAll(filepath.Dir(arbiter.DefaultDir)); err != nil {
		t.Fatal(err)
	}
}

func describe(at *xdp.Attachment) string {
	if at == nil {
		return "nothing"
	}
	return fmt.Sprint(at)
}
