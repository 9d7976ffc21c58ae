package mounttest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"golang.org/x/sys/unix"
)

// The main goroutine keeps the process's first thread, until it says otherwise.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{"in host mounts": inHostMounts, "on the first thread": onTheFirstThread, "mount and wait": mountAndWait})
}

// mount has Mount mount a bpffs for the test's time.
func mount(t *testing.T, dir string) *bpffs.Root {
	t.Helper()
	root, err := bpffs.Mount(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return root
}

// pin pins a program there.
func pin(t *testing.T, path string) {
	t.Helper()
	if err := kernel.Pin(kernel.FD(kerneltest.Pass(t, "pinned", nil).FD()), path); err != nil {
		t.Fatal(err)
	}
}

func TestABPFFSIsMountedOnceAndForRootAlone(t *testing.T) {
	kerneltest.NoLeaks(t)
	dir := filepath.Join(t.TempDir(), "run", "bpf")
	if _, err := bpffs.Open(dir); !errors.Is(err, bpffs.ErrNoBPFFS) {
		t.Fatalf("before it is mounted: %v", err)
	}
	root := mount(t, dir)
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("its mode is %v (%v), want 0700", st.Mode(), err)
	}
	mounts, err := bpffs.Mounts()
	if err != nil || !slices.Contains(mounts, dir) {
		t.Errorf("the mounts are %v (%v), want %s among them", mounts, err, dir)
	}
	pin(t, root.Path("first"))
	again := mount(t, dir)
	if _, err := os.Stat(again.Path("first")); err != nil {
		t.Errorf("mounted again it is another: %v", err)
	}
	if n := count(t, dir); n != 1 {
		t.Errorf("it is mounted %d times", n)
	}
}

// count is how often a bpffs is mounted at the directory.
func count(t *testing.T, dir string) int {
	t.Helper()
	mounts, err := bpffs.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range mounts {
		if m == dir {
			n++
		}
	}
	return n
}

func TestThoseWhoMountAtOnceGetTheSame(t *testing.T) {
	for round := range 10 {
		dir := filepath.Join(t.TempDir(), "bpf")
		var wait sync.WaitGroup
		for n := range 8 {
			wait.Go(func() {
				root, err := bpffs.Mount(dir)
				if err != nil {
					t.Error(err)
					return
				}
				defer root.Close()
				if err := os.Mkdir(root.Path("made"), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
					t.Error(err)
				}
				if err := os.Mkdir(root.Path("made", fmt.Sprint(n)), 0o700); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		made, err := os.ReadDir(filepath.Join(dir, "made"))
		if err != nil || len(made) != 8 || count(t, dir) != 1 {
			t.Errorf("round %d: %d of 8 directories in %d mounts (%v)", round, len(made), count(t, dir), err)
		}
	}
}

func TestAnOpenBPFFSStaysTheSameWhateverIsMountedOverIt(t *testing.T) {
	kerneltest.NoLeaks(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	root := mount(t, dir)
	pin(t, root.Path("mine"))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if _, err := os.Stat(filepath.Join(dir, "mine")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("it is not mounted over: %v", err)
	}
	var pins []string
	if err := bpffs.WalkPins(root.Path(), func(path string) { pins = append(pins, path) }); err != nil {
		t.Fatal(err)
	}
	if want := []string{root.Path("mine")}; !slices.Equal(pins, want) {
		t.Errorf("its pins are %v, want %v", pins, want)
	}
	lock, err := root.Lock(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Lock(t.Context(), 0); !errors.Is(err, bpffs.ErrLockTimeout) {
		t.Errorf("locked a second time: %v", err)
	}
	lock.Unlock()
}

func TestAllPinsAreFoundAndNothingElse(t *testing.T) {
	kerneltest.NoLeaks(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	root := mount(t, dir)
	for _, sub := range []string{"a", "a/b", "empty", "over"} {
		if err := os.Mkdir(root.Path(sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"one", "a/two", "a/b/three"} {
		pin(t, root.Path(path))
	}
	if err := os.Symlink("one", root.Path("link")); err != nil {
		t.Fatal(err)
	}
	// Another file system below it, and a bpffs too.
	over := filepath.Join(dir, "over")
	if err := unix.Mount("tmpfs", over, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(over, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(over, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var pins []string
	if err := bpffs.WalkPins(dir, func(path string) { pins = append(pins, path) }); err != nil {
		t.Fatal(err)
	}
	slices.Sort(pins)
	want := []string{filepath.Join(dir, "a/b/three"), filepath.Join(dir, "a/two"), filepath.Join(dir, "one")}
	if !slices.Equal(pins, want) {
		t.Errorf("the pins are %v, want %v", pins, want)
	}
}

func TestInHostMountsACallSeesWhatProcess1Sees(t *testing.T) {
	dir := t.TempDir()
	done := make(chan error, 1)
	go func() {
		// The thread moves to mounts of its own and is thrown away.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "own"), nil, 0o600); err != nil {
				return err
			}
			err := bpffs.InHostMounts(func() error {
				if _, err := os.Stat(filepath.Join(dir, "own")); !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("it sees the caller's own mount: %w", err)
				}
				return os.WriteFile(filepath.Join(dir, "host"), nil, 0o600)
			})
			if err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(dir, "own")); err != nil {
				return fmt.Errorf("the caller was moved: %w", err)
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "host")); err != nil {
		t.Errorf("what was made there: %v", err)
	}
}

func TestWhereTheCallerIsInProcess1sMountsACallIsMadeAsItIs(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := unix.Gettid()
	want := errors.New("its own error")
	if err := bpffs.InHostMounts(func() error {
		if unix.Gettid() != before {
			t.Error("it was made on another thread")
		}
		return want
	}); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

// inHostMounts is the command: without the capabilities it is told, it says
// whether a call was made.
func inHostMounts(args []string) int {
	var caps []int
	for _, arg := range args {
		c, err := strconv.Atoi(arg)
		if err != nil {
			return failed(err)
		}
		caps = append(caps, c)
	}
	if err := kerneltest.Drop(caps...); err != nil {
		return failed(err)
	}
	called := false
	err := bpffs.InHostMounts(func() error { called = true; return nil })
	switch {
	case err == nil && called:
		fmt.Print("called")
	case errors.Is(err, bpffs.ErrElsewhere) && !called:
		fmt.Print("elsewhere")
	default:
		return failed(fmt.Errorf("called: %t, error: %w", called, err))
	}
	return 0
}

func failed(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func TestACallIsMadeInProcess1sMountsOrNotAtAll(t *testing.T) {
	for _, c := range []struct {
		name    string
		without []int
		// Where the caller is in process 1's mounts, and where it is not.
		same, other string
	}{
		{"with all capabilities", nil, "called", "called"},
		{"without CAP_SYS_PTRACE", []int{unix.CAP_SYS_PTRACE}, "called", "elsewhere"},
		{"without CAP_SYS_ADMIN", []int{unix.CAP_SYS_ADMIN}, "called", "elsewhere"},
		{"without CAP_SYS_CHROOT", []int{unix.CAP_SYS_CHROOT}, "called", "elsewhere"},
		{"without any of them", []int{unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT}, "called", "elsewhere"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for flags, want := range map[uintptr]string{0: c.same, unix.CLONE_NEWNS: c.other} {
				var args []string
				for _, capability := range c.without {
					args = append(args, strconv.Itoa(capability))
				}
				cmd := kerneltest.Command("in host mounts", args...)
				cmd.SysProcAttr.Unshareflags = flags
				if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
					t.Errorf("in other mounts: %t: %q (%v), want %q", flags != 0, out, err, want)
				}
			}
		})
	}
}

// onTheFirstThread is the command: it makes calls of which each begins on the
// process's first thread, and says where the process is afterwards.
func onTheFirstThread([]string) int {
	// A goroutine that is waited for runs where the waiting one ran.
	runtime.GOMAXPROCS(1)
	runtime.UnlockOSThread()
	for range 100 {
		err := bpffs.InHostMounts(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("the first thread was moved")
			}
			return nil
		})
		if err != nil {
			return failed(err)
		}
	}
	mounts, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return failed(err)
	}
	fmt.Print(mounts)
	return 0
}

func TestTheProcessStaysInItsOwnMounts(t *testing.T) {
	cmd := kerneltest.Command("on the first thread")
	cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	host, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if string(out) == host {
		t.Errorf("the process is in %s, as process 1", out)
	}
}

func TestEveryBPFFSThatAProcessSeesIsFoundOnce(t *testing.T) {
	kerneltest.NoLeaks(t)
	mine, theirs := kerneltest.BPFFS(t), t.TempDir()
	// A part of it that is mounted elsewhere is told of, and is another.
	if err := os.Mkdir(filepath.Join(mine, "part"), 0o700); err != nil {
		t.Fatal(err)
	}
	part := t.TempDir()
	if err := unix.Mount(filepath.Join(mine, "part"), part, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(part, unix.MNT_DETACH) })
	cmd := kerneltest.Command("mount and wait", theirs)
	cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	p := kerneltest.Start(t, cmd)
	if !p.Lines.Scan() {
		t.Fatal("it said nothing")
	}
	found := map[string][]bpffs.Place{}
	skipped, err := bpffs.Everywhere(nil, func(at bpffs.Place, root *bpffs.Root) {
		found[at.Path] = append(found[at.Path], at)
		if !bpffs.Is(at.Name()) || root.Name != at.Name() {
			t.Errorf("%s is called %s, and is no bpffs", at.Path, at.Name())
		}
	})
	if err != nil || skipped != 0 {
		t.Fatalf("%d were left out (%v)", skipped, err)
	}
	if got := found[mine]; len(got) != 1 || got[0].PID != 0 {
		t.Errorf("our own is found as %+v, want once, as we see it", got)
	}
	if got := found[theirs]; len(got) != 1 || got[0].PID != p.PID() || got[0].Name() != fmt.Sprintf("/proc/%d/root%s", p.PID(), theirs) {
		t.Errorf("the other process's is found as %+v, want once, as that sees it", got)
	}
	if got := found[part]; len(got) != 1 {
		t.Errorf("the part is found as %+v, want once", got)
	}
}

// mountAndWait mounts a bpffs that nobody else sees.
func mountAndWait(args []string) int {
	if err := unix.Mount("bpf", args[0], "bpf", 0, ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return 0
}
