package bpffs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/procfs"
)

// Place is a bpffs, or a directory of one, that some process sees.
type Place struct {
	// Path is where it is mounted, as those see it who see it.
	Path string
	// PID is a process that sees it, 0 where the caller does itself.
	PID int
}

// Name is the path in the bpffs of that name as the caller can use it.
func (m Place) Name(elem ...string) string {
	path := filepath.Join(append([]string{m.Path}, elem...)...)
	if m.PID == 0 {
		return path
	}
	return fmt.Sprintf("/proc/%d/root%s", m.PID, path)
}

// Everywhere calls f with every bpffs that is mounted in the mount namespace of
// the caller or of any process that it may look into, each once, and as the caller
// sees it where it does. A directory of a bpffs that is mounted beside the whole
// is another. The root is closed when f returns.
//
// One that ends while it is looked for, with the last process that sees it, may be
// left out: so are its pins. What is found may be the work of somebody who means
// harm: nothing that they mount or link is followed out of their view, and the
// budget bounds how much is looked at, the caller's own first.
//
// skipped is how many mount namespaces of others could not be looked at, or not as
// a whole. Since Linux 5.6.
func Everywhere(b *Budget, f func(Place, *Root)) (skipped int, err error) {
	type part struct {
		device, root string
	}
	seen := map[part]bool{}
	look := func(mountinfo []byte, process string, pid int) (whole bool) {
		whole = true
		top, err := openRoot(process)
		if err != nil {
			return ended(err)
		}
		defer unix.Close(top)
		found := parseMounts(string(mountinfo))
		// The whole first: then its parts have no other pins.
		slices.SortStableFunc(found, func(a, b mount) int { return len(a.root) - len(b.root) })
		for _, m := range found {
			if seen[part{m.device, m.root}] {
				continue
			}
			if !b.take(1) {
				return whole
			}
			at := Place{Path: m.path, PID: pid}
			root, err := openMount(top, m, at.Name())
			if err != nil {
				whole = whole && (ended(err) || errors.Is(err, ErrNoBPFFS))
				continue
			}
			seen[part{m.device, m.root}] = true
			f(at, root)
			root.Close()
		}
		return whole
	}
	own, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return 0, err
	}
	partly := map[string]bool{}
	if !look(own, "thread-self", 0) {
		partly["own"] = true
	}
	views := map[view]bool{}
	if v, err := viewOf("thread-self"); err == nil {
		views[v] = true
	}
	pids, err := procfs.Processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if !b.take(0) {
			break
		}
		v, err := viewOf(strconv.Itoa(pid))
		if err != nil && v.namespace != "" && !ended(err) {
			partly[v.namespace] = true
		}
		if err != nil || views[v] {
			continue
		}
		mountinfo, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			continue
		}
		if !look(mountinfo, strconv.Itoa(pid), pid) {
			partly[v.namespace] = true
		}
		// Should it have ended meanwhile another may show what it no longer did.
		if again, err := viewOf(strconv.Itoa(pid)); err == nil && again == v {
			views[v] = true
		}
	}
	return len(partly), nil
}

// ended tells of an error that the process or the mount is no longer there.
func ended(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// openRoot opens a process's root, and asks nobody who serves it.
func openRoot(process string) (int, error) {
	return unix.Open("/proc/"+process+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// openMount opens a mount below a process's root: ErrNoBPFFS where another is
// mounted over it. Names there are the process's, so no link is followed.
func openMount(top int, m mount, name string) (*Root, error) {
	at, err := openat2(top, m.path, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	// It is opened only once it is known whose file system it is.
	var st unix.Statx_t
	if err := unix.Statx(at, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return nil, err
	}
	if fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor) != m.device {
		return nil, ErrNoBPFFS
	}
	fd, err := openBelow(at, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return &Root{dir: os.NewFile(uintptr(fd), name), Name: name}, nil
}

// view is what decides which mounts a process sees: its mount namespace, and its
// root there.
type view struct {
	namespace    string
	device, root uint64
}

// viewOf has the namespace even where the error is of the root.
func viewOf(process string) (view, error) {
	namespace, err := os.Readlink("/proc/" + process + "/ns/mnt")
	if err != nil {
		return view{}, err
	}
	root, err := openRoot(process)
	if err != nil {
		return view{namespace: namespace}, err
	}
	defer unix.Close(root)
	var st unix.Statx_t
	if err := unix.Statx(root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return view{namespace: namespace}, err
	}
	return view{namespace, unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}, nil
}
