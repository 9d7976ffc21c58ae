// Package arbiter decides who may hold a hook, and remembers what the kernel
// does not: whose each member of a chain is, and each attachment.
//
// An owned hook has a chain, and [Arbiter.Apply] makes all changes of it. A shared
// hook has one program that netlink attached: [Arbiter.Attach], [Arbiter.Replace],
// [Arbiter.Detach]. The chains of shared hooks are package libxdp's, and kept by
// nobody but the kernel.
//
// The state is a bpffs of its own, mode 0700, with a directory for each hook, named
// by network namespace and interface index:
//
//	/run/holdfast/bpf/c4-17/link      the pinned link, where a member is permanent
//	/run/holdfast/bpf/c4-17/chain     a map with what the kernel does not know
//	/run/holdfast/bpf/c4-17/m16/...   what belongs to member 16
//	/run/holdfast/bpf/c4-18/record    that of a shared hook
//
// One step of a change is what packets notice, and the kernel tells whether it was
// made; all else is written before, or can be told. So a process that is killed
// anywhere leaves what the next one completes or undoes. Nothing is kept in files,
// so nothing survives a reboot, as no attachment does.
//
// Every change is made under a lock on the directory, and no program is loaded
// under it.
package arbiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// DefaultDir is where the state lies.
const DefaultDir = "/run/holdfast/bpf"

// DefaultLockTimeout is how long a change waits for others.
const DefaultLockTimeout = 10 * time.Second

// ErrLockTimeout says that others changed something for longer than the caller
// would wait.
var ErrLockTimeout = bpffs.ErrLockTimeout

// Arbiter is an open state directory.
type Arbiter struct {
	root    *bpffs.Root // nil where there is none yet
	timeout time.Duration
	log     func(msg string, args ...any)
	lately  *lately
	turns   *turns
	behalf  *Behalf // nil for its own process
}

// Options say where the state is.
type Options struct {
	// Dir is a directory where a bpffs is mounted, or will be. The default is
	// DefaultDir in the mount namespace of process 1: a private one, such as
	// that of `ip netns exec`, would take all that is pinned with it.
	Dir string
	// LockTimeout is how long a change waits for the lock, DefaultLockTimeout
	// where it is 0.
	LockTimeout time.Duration
	// Log is told what was found and mended, as slog.Info would be.
	Log func(msg string, args ...any)
}

// Open opens the state for changes, and mounts the bpffs where there is none.
// The caller closes it. It needs CAP_SYS_ADMIN, and what it takes to enter the
// mount namespace of process 1: without, the error is [xdp.ErrPermission], rather
// than a state that ends with the caller's own mount namespace.
func Open(o Options) (*Arbiter, error) { return open(o, bpffs.Mount, bpffs.InHostMounts) }

// OpenReadOnly opens the state for looking: where there is none it is empty,
// and stays so.
func OpenReadOnly(o Options) (*Arbiter, error) {
	a, err := open(o, bpffs.Open, func(find func() error) error {
		err := bpffs.InHostMounts(find)
		if errors.Is(err, bpffs.ErrElsewhere) {
			return find() // what can be seen from here
		}
		return err
	})
	if errors.Is(err, bpffs.ErrNoBPFFS) {
		return newArbiter(o, nil), nil
	}
	return a, err
}

// Stateless is for those who may not read the state: it shows what the kernel
// shows, and knows nothing of names and owners. It can't change anything.
func Stateless(o Options) *Arbiter { return newArbiter(o, nil) }

func newArbiter(o Options, root *bpffs.Root) *Arbiter {
	a := &Arbiter{root: root, timeout: o.LockTimeout, log: o.Log, lately: &lately{}, turns: &turns{}}
	if a.timeout == 0 {
		a.timeout = DefaultLockTimeout
	}
	if a.log == nil {
		a.log = func(string, ...any) {}
	}
	return a
}

// open opens the directory: how opens one, and inHostMounts makes that call
// where the default one is.
func open(o Options, how func(string) (*bpffs.Root, error), inHostMounts func(func() error) error) (*Arbiter, error) {
	var root *bpffs.Root
	find := func(dir string) func() error {
		return func() (err error) {
			root, err = how(dir)
			return err
		}
	}
	var err error
	if o.Dir == "" || o.Dir == DefaultDir {
		o.Dir = DefaultDir
		err = inHostMounts(find(DefaultDir))
	} else {
		err = find(o.Dir)()
	}
	switch {
	case errors.Is(err, bpffs.ErrElsewhere):
		return nil, &xdp.Error{
			Op: "open state", Hook: o.Dir, Err: xdp.ErrPermission, Detail: err.Error(),
			Hint: "that takes CAP_SYS_PTRACE, CAP_SYS_ADMIN and CAP_SYS_CHROOT; " +
				"or choose a directory yourself with --bpffs: what is attached ends with its mount",
		}
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, &xdp.Error{
			Op: "open state", Hook: o.Dir, Err: xdp.ErrPermission, Detail: err.Error(),
			Hint: "what is attached is recorded there, and only root may change it",
		}
	case err != nil:
		return nil, fmt.Errorf("open state: %w", err)
	}
	return newArbiter(o, root), nil
}

// Close closes the state. It changes nothing.
func (a *Arbiter) Close() error {
	if a.root == nil || a.behalf != nil {
		return nil
	}
	return a.root.Close()
}

// locked is the proof that the caller holds the lock: what changes state takes
// one.
type locked struct {
	lock *bpffs.Lock
	done func() // ends the turn in this process
}

func (l locked) unlock() {
	l.lock.Unlock()
	l.done()
}

func (a *Arbiter) lock(ctx context.Context) (locked, error) {
	if a.root == nil {
		return locked{}, &xdp.Error{
			Op: "lock state", Err: xdp.ErrInvalid, Detail: "it was opened for looking", Hint: "open it with Open",
		}
	}
	begin := time.Now()
	done, err := a.turns.take(ctx, "the state", a.timeout)
	var lock *bpffs.Lock
	if err == nil {
		if lock, err = a.root.Lock(ctx, a.timeout-time.Since(begin)); err != nil {
			done()
		}
	}
	return locked{lock, done}, a.timedOut(err)
}

// timedOut says of a lock timeout what to do.
func (a *Arbiter) timedOut(err error) error {
	if errors.Is(err, ErrLockTimeout) {
		return fmt.Errorf("%w: others have been changing what Holdfast attached for %s; try again, or wait longer with --lock-timeout", ErrLockTimeout, a.timeout)
	}
	return err
}

// HeldError is a conflict with an attachment that Holdfast made.
type HeldError struct {
	// Err is the conflict.
	Err *xdp.Error
	// Record is what Holdfast knows of the rival.
	Record Record
}

// Error ends, as the conflict's own does, with what to do.
func (e *HeldError) Error() string {
	conflict := *e.Err
	conflict.Hint = ""
	s := fmt.Sprintf("%s; Holdfast attached it: %s", &conflict, e.Record)
	if e.Err.Hint != "" {
		s += "; " + e.Err.Hint
	}
	return s
}

// Unwrap returns the conflict.
func (e *HeldError) Unwrap() error { return e.Err }

// Acknowledge is called once whoever asked has been told that the change is
// made. Until then the same request, made again because its process was
// killed, succeeds; afterwards it is a new request.
type Acknowledge func() error

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
