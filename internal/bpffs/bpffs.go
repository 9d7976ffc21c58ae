// Package bpffs is the door to BPF file systems: finding and mounting them,
// walking their pins, and locking a directory of one.
//
// A name in a bpffs may not contain a dot, so an interface's name can't be a
// pin's name as it is.
package bpffs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Is tells whether the path lies in a bpffs.
func Is(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.BPF_FS_MAGIC
}

// Mounts lists the mount points of every bpffs that the calling thread sees.
func Mounts() ([]string, error) {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountinfo(string(b)), nil
}

// mount is a line of mountinfo about a bpffs: its device, which directory of it is
// mounted, and where.
type mount struct{ device, root, path string }

// parseMountinfo are the paths of parseMounts.
func parseMountinfo(s string) []string {
	var paths []string
	for _, m := range parseMounts(s) {
		paths = append(paths, m.path)
	}
	return paths
}

func parseMounts(s string) []mount {
	var mounts []mount
	for line := range strings.Lines(s) {
		// Optional fields end with a lone dash; the type follows.
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "bpf ") {
			continue
		}
		mounts = append(mounts, mount{fields[2], unescape(fields[3]), unescape(fields[4])})
	}
	return mounts
}

// unescape undoes the octal escapes of blanks and backslashes in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Root is an open bpffs directory. It stays the same directory whatever is
// mounted over its path later, and in whichever mount namespace it was found.
type Root struct {
	dir *os.File
	// Name is the path it was opened by.
	Name string
}

// ErrNoBPFFS says that no bpffs is mounted at a directory.
var ErrNoBPFFS = errors.New("no bpffs is mounted there")

// Open opens a directory where a bpffs is mounted, or returns ErrNoBPFFS. The
// caller closes it.
func Open(dir string) (*Root, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoBPFFS)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		f.Close()
		return nil, fmt.Errorf("%s: %w", dir, ErrNoBPFFS)
	}
	return &Root{dir: f, Name: dir}, nil
}

// Mount opens the bpffs at dir and mounts one there, of mode 0700, where there
// is none. Two processes that do so at once end up with the same one.
func Mount(dir string) (*Root, error) {
	if root, err := Open(dir); !errors.Is(err, ErrNoBPFFS) {
		return root, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	// The lock is on the directory above, because the one that is locked must
	// be the same before and after the mount.
	lock, err := LockDir(context.Background(), filepath.Dir(dir), 10*time.Second)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if root, err := Open(dir); !errors.Is(err, ErrNoBPFFS) {
		return root, err
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return nil, fmt.Errorf("mount a bpffs at %s: %w", dir, err)
	}
	return Open(dir)
}

// ErrElsewhere says that the caller is not known to be in the mount namespace of
// process 1, and may not enter it.
var ErrElsewhere = errors.New("the mount namespace of process 1 can't be entered")

// InHostMounts calls f in the mount namespace of process 1: as the caller is, if
// that is its own, and otherwise on a thread of its own. Where it can't be
// entered f is not called, and the error is ErrElsewhere: a bpffs that is
// mounted in the mount namespace of `ip netns exec`, say, would be gone with
// that command, and all that is pinned there with it.
//
// To look at the namespace takes CAP_SYS_PTRACE where process 1 has
// capabilities that the caller lacks, and to enter it CAP_SYS_ADMIN and
// CAP_SYS_CHROOT.
func InHostMounts(f func() error) error {
	host, err := openMounts("/proc/1/ns/mnt")
	if err != nil {
		if sharesMounts(1) {
			return f()
		}
		return fmt.Errorf("%w: %w", ErrElsewhere, err)
	}
	defer host.Close()
	same, err := sameFile(host, "/proc/thread-self/ns/mnt")
	switch {
	case err != nil:
		return err
	case same:
		return f()
	}
	return onLostThread(func() error {
		// It can't share its working directory with the others any more.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Setns(int(host.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("%w: %w", ErrElsewhere, os.NewSyscallError("setns", err))
		}
		return f()
	})
}

// openMounts opens a mount namespace. To a caller without the permission some
// kernels, Linux 5.10 among them, give the directory of the name, and no error.
func openMounts(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	// Namespaces alone answer this.
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNS {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: path, Err: unix.EACCES}
	}
	return f, nil
}

// sharesMounts tells whether the caller's root is on a mount of the mount
// namespace of that process. Ids of mounts are the machine's, and each mount is
// in one namespace; a list of mounts is everybody's to read.
func sharesMounts(pid int) bool {
	var root unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_MNT_ID, &root)
	if err != nil || root.Mask&unix.STATX_MNT_ID == 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	return err == nil && hasMount(string(b), root.Mnt_id)
}

func hasMount(mountinfo string, id uint64) bool {
	for line := range strings.Lines(mountinfo) {
		first, _, _ := strings.Cut(line, " ")
		if n, err := strconv.ParseUint(first, 10, 64); err == nil && n == id {
			return true
		}
	}
	return false
}

func sameFile(f *os.File, path string) (bool, error) {
	one, err := f.Stat()
	if err != nil {
		return false, err
	}
	other, err := os.Stat(path)
	return err == nil && os.SameFile(one, other), err
}

// onLostThread calls f on a thread that ends afterwards. That is never the
// process's first, which can't end, and would leave the process in /proc where
// f went.
func onLostThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Kept by this goroutine, it is no other's.
			defer runtime.UnlockOSThread()
			done <- onLostThread(f)
			return
		}
		done <- f() // the runtime ends a thread that is locked still
	}()
	return <-done
}

// Close closes the directory.
func (r *Root) Close() error { return r.dir.Close() }

// Path returns a path that leads into this very directory, in whichever mount
// namespace it lies, for as long as Root is open.
func (r *Root) Path(elem ...string) string {
	return filepath.Join(append([]string{fmt.Sprintf("/proc/self/fd/%d", r.dir.Fd())}, elem...)...)
}

// Dir opens a directory in the root: ENOENT where there is none, ENOTDIR where
// the name is something else, a symbolic link to a directory too. The caller
// closes it.
func (r *Root) Dir(name string) (*Root, error) {
	fd, err := unix.Openat(int(r.dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(r.Name, name), Err: err}
	}
	path := filepath.Join(r.Name, name)
	return &Root{dir: os.NewFile(uintptr(fd), path), Name: path}, nil
}

// MakeDir makes a directory in the root, of mode 0700: EEXIST where the name is
// taken.
func (r *Root) MakeDir(name string) error {
	if err := unix.Mkdirat(int(r.dir.Fd()), name, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: filepath.Join(r.Name, name), Err: err}
	}
	return nil
}

// RemoveDir removes an empty directory from the root, and nothing else: ENOENT,
// ENOTDIR, ENOTEMPTY.
func (r *Root) RemoveDir(name string) error { return r.unlink(name, unix.AT_REMOVEDIR) }

// Remove removes a name from the root that is no directory; where it is a
// symbolic link, the link.
func (r *Root) Remove(name string) error { return r.unlink(name, 0) }

func (r *Root) unlink(name string, flags int) error {
	if err := unix.Unlinkat(int(r.dir.Fd()), name, flags); err != nil {
		return &fs.PathError{Op: "remove", Path: filepath.Join(r.Name, name), Err: err}
	}
	return nil
}

// Names are the names in the root, sorted, the kernel's own left out.
func (r *Root) Names() ([]string, error) {
	// Opened anew, because reading moves the position in the directory.
	entries, err := os.ReadDir(r.Path("."))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// ErrNotPin says that a name is no pin.
var ErrNotPin = errors.New("not a pin")

// WithPin calls f with a path that leads to the pin of that name in the root, as
// long as f runs and whatever happens to the name: ENOENT where there is none,
// ErrNotPin where the name is a directory or a symbolic link.
func (r *Root) WithPin(name string, f func(path string) error) error {
	path := filepath.Join(r.Name, name)
	fd, err := unix.Openat(int(r.dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	var in unix.Statfs_t
	if err := unix.Fstatfs(fd, &in); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || in.Type != unix.BPF_FS_MAGIC {
		return &fs.PathError{Op: "open", Path: path, Err: ErrNotPin}
	}
	return f(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// LockDir opens the directory of that name in the root and locks it, as Lock
// does.
func (r *Root) LockDir(ctx context.Context, name string, timeout time.Duration) (*Root, *Lock, error) {
	// For all tries together.
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: others held it for %s", ErrLockTimeout, timeout))
	defer cancel()
	for {
		dir, err := r.Dir(name)
		if err != nil {
			return nil, nil, err
		}
		lock, err := dir.Lock(ctx, timeout)
		if err != nil {
			dir.Close()
			return nil, nil, err
		}
		// Whoever held it before may have removed the directory.
		again, err := r.Dir(name)
		if err == nil {
			same := dir.same(again)
			again.Close()
			if same {
				return dir, lock, nil
			}
		}
		lock.Unlock()
		dir.Close()
	}
}

func (r *Root) same(other *Root) bool {
	a, err1 := r.dir.Stat()
	b, err2 := other.dir.Stat()
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// Lock is an exclusive lock on a directory. It ends with Unlock, or with the
// process.
type Lock struct{ f *os.File }

// ErrLockTimeout says that somebody else held the lock until the deadline.
var ErrLockTimeout = errors.New("lock timeout")

// Lock locks the root, waiting for as long as the timeout allows, or fails with
// ErrLockTimeout; or with the context's cause, once the context is over.
func (r *Root) Lock(ctx context.Context, timeout time.Duration) (*Lock, error) {
	return LockDir(ctx, r.Path("."), timeout)
}

// LockDir locks a directory by flock, waiting for as long as the timeout
// allows, or fails with ErrLockTimeout; or with the context's cause, once the
// context is over.
func LockDir(ctx context.Context, dir string, timeout time.Duration) (*Lock, error) {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for pause := time.Millisecond; ; pause = min(2*pause, 10*time.Millisecond) {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("lock %s: %w", dir, context.Cause(ctx))
		}
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// Whoever held it before may have removed the directory, and
			// another of the same name is not locked by this.
			locked, err1 := f.Stat()
			there, err2 := os.Stat(dir)
			if err1 == nil && err2 == nil && os.SameFile(locked, there) {
				return &Lock{f}, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-deadline.C:
			return nil, fmt.Errorf("%w: another process held the lock on %s for %s", ErrLockTimeout, dir, timeout)
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Unlock releases the lock.
func (l *Lock) Unlock() { l.f.Close() }
