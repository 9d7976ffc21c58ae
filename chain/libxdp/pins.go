package libxdp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// pinsDir is the directory of all chains in the bpffs.
const pinsDir = "xdp"

// dirName is the directory of one dispatcher's pins.
func dirName(index int, dispatcher uint32) string {
	return fmt.Sprintf("dispatch-%d-%d", index, dispatcher)
}

// parseDirName reads what dirName writes, and nothing else.
func parseDirName(name string) (index int, dispatcher uint32, ok bool) {
	first, second, found := strings.Cut(strings.TrimPrefix(name, "dispatch-"), "-")
	if !found {
		return 0, 0, false
	}
	i, err1 := strconv.ParseInt(first, 10, 32)
	d, err2 := strconv.ParseUint(second, 10, 32)
	index, dispatcher = int(i), uint32(d)
	return index, dispatcher, err1 == nil && err2 == nil && name == dirName(index, dispatcher)
}

func programPin(slot int) string { return fmt.Sprintf("prog%d-prog", slot) }
func linkPin(slot int) string    { return fmt.Sprintf("prog%d-link", slot) }

// isPinName tells whether the protocol puts a pin of that name into a
// dispatcher's directory.
func isPinName(name string) bool {
	for slot := range MaxMembers {
		if name == programPin(slot) || name == linkPin(slot) {
			return true
		}
	}
	return false
}

// locked is the directory of all pins, and the proof that the caller holds the
// lock on it: what changes pins takes one.
type locked struct {
	*bpffs.Root
	held *bpffs.Lock
}

func (l locked) unlock() {
	l.held.Unlock()
	l.Close()
}

// lock locks the pins. Where there is no bpffs or no directory of pins it is an
// fs.ErrNotExist.
func (c *Chains) lock(ctx context.Context) (locked, error) {
	if c.root == nil {
		return locked{}, fs.ErrNotExist
	}
	dir, held, err := c.root.LockDir(ctx, pinsDir, c.timeout)
	return locked{dir, held}, err
}

// lockError says in words why the pins could not be locked.
func (c *Chains) lockError(op string, h *xdp.Hook, err error) error {
	e := &xdp.Error{Op: op, Hook: h.String(), Err: xdp.ErrUnexpected, Detail: err.Error()}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, ErrLockTimeout), errors.Is(err, context.DeadlineExceeded):
		e.Err = ErrLockTimeout
		e.Detail = fmt.Sprintf("another tool held the lock on %s/%s for too long", c.where, pinsDir)
		e.Hint = "try again, or see who has that directory open"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Err, e.Hint = xdp.ErrPermission, "chains of the libxdp protocol are for root"
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		e.Detail = fmt.Sprintf("%s/%s is no directory", c.where, pinsDir)
		e.Hint = "remove it"
	}
	return e
}

// makeAndLock makes the directory of all pins where there is none, and locks
// it.
func (c *Chains) makeAndLock(ctx context.Context) (locked, error) {
	for {
		l, err := c.lock(ctx)
		if c.root == nil || !errors.Is(err, fs.ErrNotExist) {
			return l, err
		}
		if err := c.root.MakeDir(pinsDir); err != nil && !errors.Is(err, fs.ErrExist) {
			return locked{}, err
		}
	}
}

// openedMember is what the pins tell of a member: its program, which the caller
// closes.
type openedMember struct {
	fd   kernel.FD
	info kernel.ProgramInfo
}

// openMembers opens the programs of a dispatcher's members by their pins and
// checks that each is what it should be. functions are the type ids of the
// functions where the member of each slot may be attached. The error is for
// people: whatever is there is told, and nothing of it is used.
func (l locked) openMembers(index int, dispatcher uint32, functions [][]uint32) (members []openedMember, err error) {
	dir, err := l.Dir(dirName(index, dispatcher))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("its pins are missing, there is no %s in %s: they are in another bpffs (LIBXDP_BPFFS says in which), or somebody removed them, as `xdp-loader clean` in another network namespace does",
			dirName(index, dispatcher), l.Name)
	case err != nil:
		return nil, fmt.Errorf("its pins can't be read: %w", err)
	}
	defer dir.Close()
	defer func() {
		if err != nil {
			closeMembers(members)
			members = nil
		}
	}()
	for slot := range functions {
		m, err := openMember(dir, slot, dispatcher, functions[slot])
		if err != nil {
			return members, err
		}
		members = append(members, m)
	}
	return members, nil
}

func closeMembers(members []openedMember) {
	for _, m := range members {
		m.fd.Close()
	}
}

// openMember opens one member by its two pins.
func openMember(dir *bpffs.Root, slot int, dispatcher uint32, functions []uint32) (m openedMember, err error) {
	fd, err := openPin(dir, programPin(slot))
	if err != nil {
		return m, err
	}
	defer func() {
		if err != nil {
			fd.Close()
		}
	}()
	if !kernel.IsProgram(fd) {
		return m, fmt.Errorf("its pin %s/%s is not a program", dir.Name, programPin(slot))
	}
	info, err := kernel.ReadProgram(fd)
	if err != nil {
		return m, fmt.Errorf("its pin %s/%s can't be read: %w", dir.Name, programPin(slot), err)
	}
	if !info.IsExtension() {
		return m, fmt.Errorf("its pin %s/%s is program %d %q, which is no extension", dir.Name, programPin(slot), info.ID, info.Name)
	}

	linkFD, err := openPin(dir, linkPin(slot))
	if err != nil {
		return m, err
	}
	defer linkFD.Close()
	link, err := kernel.ReadExtensionLink(linkFD)
	if err != nil {
		return m, fmt.Errorf("its pin %s/%s can't be read: %w", dir.Name, linkPin(slot), err)
	}
	switch {
	case link.ProgID != info.ID:
		return m, fmt.Errorf("its pin %s/%s is the link of program %d, and beside it is program %d", dir.Name, linkPin(slot), link.ProgID, info.ID)
	case link.TargetID == 0: // Linux 5.10 to 5.12 don't tell.
	case link.TargetID != dispatcher:
		return m, fmt.Errorf("its pin %s/%s is a link to program %d", dir.Name, linkPin(slot), link.TargetID)
	case !contains(functions, link.Function):
		return m, fmt.Errorf("its pin %s/%s is a link to another slot", dir.Name, linkPin(slot))
	}
	return openedMember{fd, info}, nil
}

func contains(ids []uint32, id uint32) bool {
	for _, i := range ids {
		if i == id {
			return true
		}
	}
	return false
}

// openPin opens a pin, of whatever kind.
func openPin(dir *bpffs.Root, name string) (kernel.FD, error) {
	fd := kernel.FD(-1)
	err := dir.WithPin(name, func(path string) (err error) {
		fd, err = kernel.OpenPin(path)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return -1, fmt.Errorf("its pin %s/%s is missing: somebody removed it, or is just doing so", dir.Name, name)
	}
	if err != nil {
		return -1, fmt.Errorf("its pin %s/%s can't be opened: %w", dir.Name, name, err)
	}
	return fd, nil
}

// pin makes a dispatcher's directory with the pins of its members, all or none.
func (l locked) pin(index int, dispatcher uint32, members []built) (err error) {
	name := dirName(index, dispatcher)
	err = l.MakeDir(name)
	if errors.Is(err, fs.ErrExist) {
		// The id is that of a program which was just loaded: what is there was
		// never of use to anybody.
		if err := l.unpin(index, dispatcher); err != nil {
			return err
		}
		err = l.MakeDir(name)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.unpin(index, dispatcher))
		}
	}()
	dir, err := l.Dir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	for slot, m := range members {
		if err := kernel.Pin(m.link, dir.Path(linkPin(slot))); err != nil {
			return fmt.Errorf("pin %s/%s: %w", dir.Name, linkPin(slot), err)
		}
		if err := kernel.Pin(m.program, dir.Path(programPin(slot))); err != nil {
			return fmt.Errorf("pin %s/%s: %w", dir.Name, programPin(slot), err)
		}
	}
	return nil
}

// unpin removes a dispatcher's directory with the pins of its members. What the
// protocol puts there is removed, and nothing else: where there is more the
// directory stays, and that is an error. It is none where there is no such
// directory.
func (l locked) unpin(index int, dispatcher uint32) error {
	name := dirName(index, dispatcher)
	dir, err := l.Dir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Names()
	if err != nil {
		return err
	}
	var others []string
	for _, n := range names {
		if !isPinName(n) {
			others = append(others, n)
			continue
		}
		if err := dir.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			others = append(others, n)
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("%s is kept, because the protocol knows nothing of %s in it", dir.Name, strings.Join(others, ", "))
	}
	if err := l.RemoveDir(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dispatchers lists the directories that name a dispatcher for the interface of
// that index, 0 for all.
func (l locked) dispatchers(index int) (found []Cleaned, err error) {
	names, err := l.Names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		i, d, ok := parseDirName(name)
		if ok && (index == 0 || i == index) {
			found = append(found, Cleaned{Path: l.Name + "/" + name, Index: i, DispatcherID: d})
		}
	}
	return found, nil
}
