package bpffs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestOnlyTheMountPointsOfABPFFSAreFound(t *testing.T) {
	for _, c := range []struct {
		name, mountinfo string
		want            []string
	}{
		{"nothing mounted", "", nil},
		{"the usual one", "30 23 0:25 / /sys/fs/bpf rw,nosuid,nodev,noexec,relatime shared:9 - bpf bpf rw,mode=700\n", []string{"/sys/fs/bpf"}},
		{"no optional fields", "30 23 0:25 / /sys/fs/bpf rw - bpf bpf rw\n", []string{"/sys/fs/bpf"}},
		{"several optional fields", "30 23 0:25 / /b rw shared:9 master:1 unbindable - bpf none rw\n", []string{"/b"}},
		{"a directory of one, mounted elsewhere", "30 23 0:25 /dir /b rw - bpf bpf rw\n", []string{"/b"}},
		{"two, in their order", "30 23 0:25 / /b rw - bpf bpf rw\n31 23 0:26 / /a rw - bpf bpf rw\n", []string{"/b", "/a"}},
		{"another type that begins so", "30 23 0:25 / /b rw - bpfx bpf rw\n", nil},
		{"another type whose source is called so", "30 23 0:25 / /b rw - tmpfs bpf rw\n", nil},
		{"blanks and a backslash in the path", `30 23 0:25 / /a\040b\011c\134d rw - bpf bpf rw` + "\n", []string{"/a b\tc\\d"}},
		{"what looks like an escape of an escape", `30 23 0:25 / /a\134040b rw - bpf bpf rw` + "\n", []string{`/a\040b`}},
		{"a dash in the path", "30 23 0:25 / /a-b rw - bpf bpf rw\n", []string{"/a-b"}},
		{"no end of line", "30 23 0:25 / /b rw - bpf bpf rw", []string{"/b"}},
		{"a line cut short", "30 23 0:25 /", nil},
		{"too few fields", "30 23 - bpf bpf rw\n", nil},
		{
			"a line longer than any buffer before it",
			"29 23 0:24 / /o rw - overlay overlay lowerdir=" + strings.Repeat("/x:", 100_000) + "\n30 23 0:25 / /b rw - bpf bpf rw\n",
			[]string{"/b"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parseMountinfo(c.mountinfo); !slices.Equal(got, c.want) {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
}

// escape is what the kernel does to a path in mountinfo.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(path)
}

// FuzzMountinfo: a mount point is found by its path, whatever that is, between
// whatever lines.
func FuzzMountinfo(f *testing.F) {
	f.Add("/sys/fs/bpf", "24 1 0:22 / /proc rw - proc proc rw")
	f.Add(`/a b\040`+"\n\t", "")
	f.Add("/ - ", "- - -")
	f.Fuzz(func(t *testing.T, path, other string) {
		parseMountinfo(other) // must only not crash
		if !strings.HasPrefix(path, "/") || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r > '~' }) {
			return
		}
		line := fmt.Sprintf("30 23 0:25 / %s rw shared:9 - bpf bpf rw\n", escape(path))
		for _, text := range []string{line, "24 1 0:22 / /proc rw - proc proc rw\n" + line} {
			if got := parseMountinfo(text); len(got) != 1 || got[0] != path {
				t.Errorf("found %q in %q, want %q", got, text, path)
			}
		}
	})
}

func TestADirectoryIsLockedByOneAtATime(t *testing.T) {
	dir := t.TempDir()
	first, err := LockDir(t.Context(), dir, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockDir(t.Context(), dir, 0); !errors.Is(err, ErrLockTimeout) || !strings.Contains(err.Error(), dir) {
		t.Errorf("locked a second time: %v, want a timeout", err)
	}
	first.Unlock()
	again, err := LockDir(t.Context(), dir, time.Minute)
	if err != nil {
		t.Fatalf("locked after it was unlocked: %v", err)
	}
	again.Unlock()
}

func TestALockIsNotTakenOnceItsContextIsOver(t *testing.T) {
	dir := t.TempDir()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	why := errors.New("not wanted any more")
	caused, cause := context.WithCancelCause(t.Context())
	cause(why)
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for _, locked := range []bool{false, true} {
		if locked {
			lock, err := LockDir(t.Context(), dir, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Unlock()
		}
		for ctx, want := range map[context.Context]error{canceled: context.Canceled, caused: why, expired: context.DeadlineExceeded} {
			if _, err := LockDir(ctx, dir, time.Minute); !errors.Is(err, want) || errors.Is(err, ErrLockTimeout) {
				t.Errorf("locked by another: %t: got %v, want %v", locked, err, want)
			}
		}
	}
	// One that ends while the lock is waited for.
	waiting, cause := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := LockDir(waiting, dir, time.Hour)
		done <- err
	}()
	cause(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}

func TestAMountIsFoundByItsID(t *testing.T) {
	const mountinfo = "30 23 0:25 / / rw - tmpfs tmpfs rw\n310 30 0:26 / /a rw - bpf bpf rw\n"
	for id, want := range map[uint64]bool{30: true, 310: true, 3: false, 31: false, 23: false, 0: false} {
		if got := hasMount(mountinfo, id); got != want {
			t.Errorf("mount %d: got %t, want %t", id, got, want)
		}
	}
	if !sharesMounts(os.Getpid()) {
		t.Error("the process shares no mounts with itself")
	}
}

func TestWhoeverWaitsForALockGetsTheDirectoryThatIsThereThen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	for range 2 {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		lock, err := LockDir(t.Context(), dir, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		waiting := make(chan error, 1)
		go func() {
			late, err := LockDir(t.Context(), dir, time.Minute)
			if err == nil {
				// It must exclude those who come now.
				if _, other := LockDir(t.Context(), dir, 0); !errors.Is(other, ErrLockTimeout) {
					err = fmt.Errorf("the directory that is there is not locked: %w", other)
				}
				late.Unlock()
			}
			waiting <- err
		}()
		// Another directory takes the place of the one that is waited for.
		if err := os.Rename(dir, dir+"-old"); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		lock.Unlock()
		if err := <-waiting; err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		if err := errors.Join(os.Remove(dir), os.Remove(dir+"-old")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALockOfNoDirectoryIsNotWaitedFor(t *testing.T) {
	if _, err := LockDir(t.Context(), filepath.Join(t.TempDir(), "missing"), time.Hour); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestADirectoryThatIsNoBPFFSDoesNotOpen(t *testing.T) {
	dir := t.TempDir()
	if Is(dir) {
		t.Fatalf("%s is a bpffs", dir)
	}
	for _, path := range []string{dir, filepath.Join(dir, "missing")} {
		if _, err := Open(path); !errors.Is(err, ErrNoBPFFS) {
			t.Errorf("open %s: %v", path, err)
		}
	}
	if err := WalkPins(dir, func(string) { t.Error("it has a pin") }); !errors.Is(err, ErrNoBPFFS) {
		t.Errorf("walk: %v", err)
	}
}
