package bpffs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Budget bounds how much is looked at: everybody with a user namespace can mount a
// bpffs and make as many names there as memory has room for. A nil one is without
// bounds.
type Budget struct {
	// Entries is how many names and mounts may still be looked at, and Until when
	// that ends.
	Entries int
	Until   time.Time
	spent   bool
}

// Spent tells whether something was left out because the budget was used up.
func (b *Budget) Spent() bool { return b != nil && b.spent }

// take takes n entries, and tells whether they may be looked at.
func (b *Budget) take(n int) bool {
	if b == nil {
		return true
	}
	b.Entries -= n
	b.spent = b.spent || b.Entries < 0 || time.Now().After(b.Until)
	return !b.spent
}

// WalkPins calls f with the path of every pin below dir. Directories that can't
// be read, and mount points below it, are left out, and so are the kernel's own
// files, such as maps.debug: only it can make a name with a dot.
func WalkPins(dir string, f func(path string)) error {
	root, err := Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	walk(int(root.dir.Fd()), "", nil, func(_ int, name string) { f(filepath.Join(dir, name)) })
	return nil
}

// WalkPins calls f with the name of every pin below the root, as the package's
// WalkPins does, and with a path that leads to that very pin for as long as f runs,
// whoever changes what meanwhile. Since Linux 5.6.
func (r *Root) WalkPins(b *Budget, f func(name, pin string)) {
	walk(int(r.dir.Fd()), "", b, func(dir int, name string) {
		fd, err := openBelow(dir, path.Base(name), unix.O_PATH)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		f(name, fmt.Sprintf("/proc/self/fd/%d", fd))
	})
}

// walk walks the open directory, which is called that in the root.
func walk(dir int, prefix string, b *Budget, f func(dir int, name string)) {
	for _, e := range entries(dir, b) {
		if b.Spent() || !b.take(0) {
			return
		}
		name := path.Join(prefix, e.Name())
		switch {
		case e.IsDir():
			if fd, err := openBelow(dir, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
				walk(fd, name, b, f)
				unix.Close(fd)
			}
		case e.Type().IsRegular() && !strings.Contains(e.Name(), "."):
			f(dir, name)
		}
	}
}

// entries are what is in the directory, sorted, as far as the budget goes.
func entries(dir int, b *Budget) []fs.DirEntry {
	// Opened anew, because reading moves the position in the directory.
	fd, err := openBelow(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	var all []fs.DirEntry
	for {
		some, err := f.ReadDir(256)
		if !b.take(len(some)) || len(some) == 0 {
			break
		}
		all = append(all, some...)
		if err != nil {
			break
		}
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return all
}

// openBelow opens a name in a directory, and neither what a link leads to nor what
// is mounted there: its server might let us wait.
func openBelow(dir int, name string, flags uint64) (int, error) {
	return openat2(dir, name, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
}

// openat2 opens a name. The kernel answers EAGAIN where something was renamed
// meanwhile.
func openat2(dir int, name string, flags, resolve uint64) (fd int, err error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	for range 10 {
		fd, err = unix.Openat2(dir, name, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}
