// Package netns is the door to network namespaces: it opens them by name, path
// or process, tells two apart, and makes calls inside one without moving the
// caller's thread for good.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/procfs"
)

// NamedDir is where `ip netns add` keeps namespaces.
const NamedDir = "/run/netns"

// NS is an open network namespace, which it keeps alive. The zero value is not
// valid; Ambient has no descriptor.
type NS struct {
	fd   int
	spec string
}

// Ambient is the namespace of whatever thread makes the call, as for a bare
// system call. It needs no Close.
var Ambient = &NS{fd: ambient}

// What NS.fd is where it is no descriptor. A closed namespace must not pass for
// the caller's own.
const (
	ambient = -1
	closed  = -2
)

// At is the namespace of a descriptor, which stays the caller's: it must be open
// for as long as the namespace is used, and Close is not to be called.
func At(fd int) *NS { return &NS{fd: fd, spec: fmt.Sprintf("/proc/self/fd/%d", fd)} }

// ErrNotExist says that there is no such namespace.
var ErrNotExist = errors.New("no such network namespace")

// Open opens a namespace: the calling thread's where spec is empty, a name
// under /run/netns, a path, or a process by its pid. A name wins over a pid.
// The caller closes it.
func Open(spec string) (*NS, error) {
	path, err := resolve(spec)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("%w: %q is no name in %s, no path and no running process", ErrNotExist, spec, NamedDir)
		}
		return nil, fmt.Errorf("open network namespace %q: %w", spec, err)
	}
	return isNetwork(fd, spec, path)
}

// Of opens the namespace that a descriptor is of, which stays the caller's, and is
// said to people as spec. Whatever else it is of is not touched: it may have come
// from somebody else.
func Of(f *os.File, spec string) (*NS, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	own := -1
	var ownErr error
	if err := raw.Control(func(fd uintptr) {
		own, ownErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if ownErr != nil {
		return nil, os.NewSyscallError("fcntl", ownErr)
	}
	return isNetwork(own, spec, "the descriptor")
}

// isNetwork makes a namespace of a descriptor, if it is of a network namespace, and
// closes it otherwise.
func isNetwork(fd int, spec, what string) (*NS, error) {
	// NS_GET_NSTYPE answers on namespaces only, and says which kind.
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: %s is not a network namespace", ErrNotExist, what)
	}
	return &NS{fd: fd, spec: spec}, nil
}

func resolve(spec string) (string, error) {
	switch {
	case spec == "":
		return "/proc/thread-self/ns/net", nil
	case strings.ContainsRune(spec, '/'):
		return spec, nil
	case spec == "." || spec == "..":
		return "", fmt.Errorf("%w: %q", ErrNotExist, spec)
	}
	named := filepath.Join(NamedDir, spec)
	if _, err := os.Stat(named); err == nil {
		return named, nil
	}
	if pid, err := strconv.ParseUint(spec, 10, 31); err == nil {
		return fmt.Sprintf("/proc/%d/ns/net", pid), nil
	}
	return named, nil
}

// FD is the namespace's descriptor, or negative for Ambient and once closed.
func (ns *NS) FD() int { return ns.fd }

// Spec is what the namespace was opened by.
func (ns *NS) Spec() string { return ns.spec }

// Close closes the descriptor. Closing again does nothing.
func (ns *NS) Close() error {
	if ns.fd < 0 {
		return nil
	}
	fd := ns.fd
	ns.fd = closed
	return unix.Close(fd)
}

// Do calls f inside the namespace: on the calling thread for Ambient, and
// otherwise on a thread of its own, which is thrown away if it can't be brought
// back. It needs CAP_SYS_ADMIN.
func (ns *NS) Do(f func() error) error {
	switch ns.fd {
	case ambient:
		return f()
	case closed:
		return fmt.Errorf("network namespace %q: %w", ns.spec, os.ErrClosed)
	}
	return away(func() error {
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %q: %w", ns.spec, err)
		}
		return f()
	})
}

// away calls f on a thread of its own, which f may move to another network
// namespace. Afterwards the thread is brought back, because throwing it away is
// not always possible: the process's first thread never ends, would keep the
// namespace alive, and would show the whole process in it under /proc.
func away(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the thread's own network namespace: %w", err)
			return
		}
		defer unix.Close(home)
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the runtime ends the thread with this goroutine
		done <- err
	}()
	return <-done
}

// ID tells namespaces apart. Cookies are never used again while the machine
// runs; inode numbers, which is all there is before Linux 5.14, can be.
type ID struct {
	Cookie uint64
	Inode  uint64
}

// Identify reads the namespace's ID.
func (ns *NS) Identify() (ID, error) {
	var id ID
	err := ns.Do(func() error {
		var st unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
			return fmt.Errorf("identify the network namespace: %w", err)
		}
		id.Inode = st.Ino
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("identify the network namespace: %w", err)
		}
		defer unix.Close(fd)
		id.Cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if errors.Is(err, unix.ENOPROTOOPT) {
			id.Cookie = 0
			return nil
		}
		return err
	})
	return id, err
}

// String is the ID as a file name: "c7" for a cookie, "i4026531840" for an
// inode.
func (id ID) String() string {
	if id.Cookie != 0 {
		return "c" + strconv.FormatUint(id.Cookie, 10)
	}
	return "i" + strconv.FormatUint(id.Inode, 10)
}

// Found is a namespace that can be reached.
type Found struct {
	// Spec opens it: a name, or the path of a process's, because a pid can be
	// the name of another.
	Spec string
	// Names are all its names. Where it has none it is called by the lowest
	// pid in it, or where nobody is in it by the path that keeps it.
	Names []string
	Inode uint64
}

// Open opens the namespace, unless what led to it is gone or leads to another one by
// now, which is ErrNotExist and does not say that the namespace is gone. The caller
// closes it.
func (f Found) Open() (*NS, error) {
	if f.Spec == "" {
		return Ambient, nil
	}
	ns, err := Open(f.Spec)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(ns.FD(), &st); err != nil {
		ns.Close()
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Ino != f.Inode {
		ns.Close()
		return nil, fmt.Errorf("%w: %q is another one by now", ErrNotExist, f.Spec)
	}
	return ns, nil
}

// All finds the network namespaces that can be reached from here, each once, the
// caller's first: those with a name, those of all processes, and those that only
// a mount or a descriptor of a process keeps.
func All() ([]Found, error) {
	var found []Found
	byInode := map[uint64]int{}
	add := func(path, spec, name string) {
		var st unix.Stat_t
		// To a caller without the permission some kernels, Linux 5.10 among
		// them, show the directory of the name instead.
		if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return
		}
		if i, ok := byInode[st.Ino]; ok {
			if strings.HasPrefix(path, NamedDir) && !strings.Contains(name, "/") {
				found[i].Names = append(found[i].Names, name)
			}
			return
		}
		f := Found{Spec: spec, Inode: st.Ino}
		if name != "" {
			f.Names = []string{name}
		}
		byInode[st.Ino] = len(found)
		found = append(found, f)
	}
	add("/proc/thread-self/ns/net", "", "")
	// Names before processes: a name says more.
	named, err := os.ReadDir(NamedDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range named {
		path := filepath.Join(NamedDir, e.Name())
		var fs unix.Statfs_t
		if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
			continue // a name whose namespace is not mounted here
		}
		add(path, e.Name(), e.Name())
	}
	procs, err := procfs.Processes()
	if err != nil {
		return nil, err
	}
	for _, number := range procs {
		pid := strconv.Itoa(number)
		path := filepath.Join("/proc", pid, "ns/net")
		add(path, path, pid)
	}
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, path := range parseMounts(string(mounts)) {
		add(path, path, path)
	}
	descriptors, err := procfs.Descriptors(namespacePrefix)
	if err != nil {
		return nil, err
	}
	for _, d := range descriptors {
		add(d.Path, d.Path, d.Path)
	}
	return found, nil
}

// namespacePrefix tells network namespaces from all else by how nsfs names them.
const namespacePrefix = "net:["

// parseMounts are the paths in mountinfo where network namespaces are mounted.
func parseMounts(s string) []string {
	var mounts []string
	for line := range strings.Lines(s) {
		// Optional fields end with a lone dash; the type follows. The root is
		// the fourth field, and where it is mounted the fifth.
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && len(fields) >= 5 && strings.HasPrefix(after, "nsfs ") && strings.HasPrefix(fields[3], namespacePrefix) {
			mounts = append(mounts, unescape(fields[4]))
		}
	}
	return mounts
}

// unescape undoes the octal escapes of blanks and backslashes in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
