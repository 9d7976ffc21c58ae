package bpffs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
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
// left out: so are its pins.
func Everywhere(f func(Place, *Root)) error {
	type part struct {
		device, root string
	}
	seen := map[part]bool{}
	look := func(mountinfo []byte, pid int) {
		found := parseMounts(string(mountinfo))
		// The whole first: then its parts have no other pins.
		slices.SortStableFunc(found, func(a, b mount) int { return len(a.root) - len(b.root) })
		for _, m := range found {
			if seen[part{m.device, m.root}] {
				continue
			}
			at := Place{Path: m.path, PID: pid}
			root, err := Open(at.Name())
			if err != nil {
				continue
			}
			// Another may be mounted over it.
			if root.device() == m.device {
				seen[part{m.device, m.root}] = true
				f(at, root)
			}
			root.Close()
		}
	}
	own, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	look(own, 0)
	views := map[view]bool{}
	if v, ok := viewOf("thread-self"); ok {
		views[v] = true
	}
	pids, err := processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		v, ok := viewOf(strconv.Itoa(pid))
		if !ok || views[v] {
			continue
		}
		mountinfo, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			continue
		}
		look(mountinfo, pid)
		// Should it have ended meanwhile another may show what it no longer did.
		if again, ok := viewOf(strconv.Itoa(pid)); ok && again == v {
			views[v] = true
		}
	}
	return nil
}

func (r *Root) device() string {
	var st unix.Stat_t
	if unix.Fstat(int(r.dir.Fd()), &st) != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
}

// view is what decides which mounts a process sees: its mount namespace, and its
// root there.
type view struct {
	namespace    string
	device, root uint64
}

func viewOf(process string) (view, bool) {
	namespace, err := os.Readlink("/proc/" + process + "/ns/mnt")
	if err != nil {
		return view{}, false
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+process+"/root", &st); err != nil {
		return view{}, false
	}
	return view{namespace, st.Dev, st.Ino}, true
}

// processes are the pids of all processes, in order.
func processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.ParseUint(e.Name(), 10, 31); err == nil {
			pids = append(pids, int(pid))
		}
	}
	slices.Sort(pids)
	return pids, nil
}
