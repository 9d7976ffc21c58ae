// Package daemon is the host's arbiter for applications without privilege: they ask
// over a socket, the administrator's policy decides, and what they hold ends with them.
//
// The daemon keeps nothing that the kernel does not know: killed at any moment it
// leaves all that is attached as it is, and started again it finds all of it.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/metrics"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/policy"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Config says what a daemon works with.
type Config struct {
	// Socket is the path that it listens at, wire.DefaultSocket where it is empty.
	Socket string
	// Listener is a socket that somebody else listens at for it, instead.
	Listener *net.UnixListener
	// Dir has the policy and what is declared, policy.Dir where it is empty.
	Dir string
	// State says where the state is.
	State arbiter.Options
	// Metrics says where they are served, which is nowhere by default.
	Metrics Metrics
	// Version is what it says that it is.
	Version string
	// Log is told what happens, with the same keys always: interface, netns, member,
	// owner, uid, pid, error.
	Log *slog.Logger
	// Ready, if there is one, is called once the daemon answers, and Alive each time
	// that it has looked at what is attached, about once a second.
	Ready, Alive func()
	// Store, if there is one, keeps the link of a hook beyond the daemon's end, by a
	// name, and Drop gives it up: a second home beside its pin.
	Store func(name string, f *os.File) error
	Drop  func(name string) error
}

// Daemon is a daemon that runs.
type Daemon struct {
	config   Config
	log      *slog.Logger
	arbiter  *arbiter.Arbiter
	policy   atomic.Pointer[policy.Policy]
	events   *history
	leases   leases
	kept     kept
	users    users
	objects  *budget // in bytes
	watcher  *watcher
	declared *declarations
	metrics  *metrics.Metrics // nil where nobody asks for them
	seen     observed
	survey   survey
	// host is the id of the network namespace of process 1, and own of this process,
	// empty where it can't be told.
	host string
}

// Start reads the policy and opens the state. The caller has Serve called, and Close.
// The errors are those of [arbiter.Open] and [policy.Load].
func Start(c Config) (*Daemon, error) {
	if c.Socket == "" {
		c.Socket = wire.DefaultSocket
	}
	if c.Dir == "" {
		c.Dir = policy.Dir
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.State.Log = c.Log.Info
	if c.State.LockTimeout == arbiter.DefaultLockTimeout {
		c.State.LockTimeout = time.Minute // for as long as many clients take
	}
	d := &Daemon{config: c, log: c.Log, events: newHistory(), objects: newBudget(maxObjects)}
	p, err := policy.Load(c.Dir)
	if err != nil {
		return nil, err
	}
	d.policy.Store(p)
	d.metrics = d.newMetrics()
	d.metrics.Loaded(len(p.Rules))
	if d.arbiter, err = arbiter.Open(c.State); err != nil {
		return nil, err
	}
	if d.host, err = namespaceID("1"); err != nil {
		d.log.Warn("the host's network namespace can't be told: rules about it match where they deny only", "error", err)
	}
	d.watcher = newWatcher(d)
	d.declared = &declarations{daemon: d}
	return d, nil
}

func namespaceID(spec string) (string, error) {
	ns, err := xdp.OpenNamespace(spec)
	if err != nil {
		return "", err
	}
	defer ns.Close()
	return ns.ID(), nil
}

// Close closes the state. What is attached stays.
func (d *Daemon) Close() error { return d.arbiter.Close() }

// Serve answers until ctx ends.
func (d *Daemon) Serve(ctx context.Context) error {
	l := d.config.Listener
	if l == nil {
		// Everybody may ask: the policy decides.
		made, lock, err := listen(d.config.Socket, 0o666)
		if err != nil {
			return err
		}
		defer lock.Close()
		l = made
	}
	s := &varlink.Server{
		Vendor: "Holdfast", Product: "holdfast", Version: d.config.Version, URL: "https://github.com/holdfast-bpf/holdfast",
		Limits:      varlink.Limits{Message: 256 << 10, Files: maxFiles},
		Connections: maxConnections,
		Patience:    lastCalls,
		Connected:   d.connected,
		ErrorOf:     d.errorOf,
		Log:         d.log.Warn,
	}
	if d.metrics != nil {
		s.Answered = d.answered
	}
	if err := s.Handle(wire.Description, d.methods()); err != nil {
		l.Close()
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	d.declared.read()
	d.serveMetrics(ctx, &background)
	background.Go(func() { d.watcher.run(ctx) })
	background.Go(func() { d.watchForeign(ctx) })
	if d.config.Ready != nil {
		d.config.Ready()
	}
	return s.Serve(ctx, l)
}

const (
	// maxFiles is for as many objects as a chain has members, and a namespace.
	maxFiles = arbiter.MaxMembers + 1
	// maxConnections are all that there may be, and half of them one user's.
	maxConnections = 4096
	maxPerUser     = maxConnections / 2
	// lastCalls is how long calls may go on when the daemon ends: whatever is cut off
	// then can be completed or undone.
	lastCalls = 5 * time.Second
)

// listen makes the socket, and a lock on its path that lasts as long as it is open. One that a daemon which was killed has left is replaced;
// one that somebody listens at is not.
func listen(path string, perm os.FileMode) (l *net.UnixListener, lock *os.File, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, nil, err
	}
	// Whoever has this lock may take the path.
	lock, err = os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, nil, &xdp.Error{
			Op: "listen", Hook: path, Err: xdp.ErrExists, Detail: "another daemon listens there", Hint: "stop it first, or give another --socket",
		}
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode()&os.ModeSocket == 0:
		return nil, nil, &xdp.Error{Op: "listen", Hook: path, Err: xdp.ErrExists, Detail: "it is no socket", Hint: "remove it, or give another --socket"}
	case err == nil:
		if err := os.Remove(path); err != nil {
			return nil, nil, err
		}
	case !errors.Is(err, os.ErrNotExist):
		return nil, nil, err
	}
	l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, perm); err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, lock, nil
}

// Reload reads the policy and what is declared anew. A policy that can't be read
// leaves the one in force as it is, and is the error.
func (d *Daemon) Reload() error {
	p, err := policy.Load(d.config.Dir)
	if err != nil {
		d.metrics.Reloaded(0, err)
		d.log.Error("the policy stays as it was", "error", err)
		return fmt.Errorf("%w; the policy stays as it was", err)
	}
	d.policy.Store(p)
	d.metrics.Reloaded(len(p.Rules), nil)
	d.log.Info("read the policy", "rules", len(p.Rules))
	d.tell(wire.Event{Kind: wire.Reloaded, Message: fmt.Sprintf("the policy has %d rules", len(p.Rules))})
	d.declared.read()
	d.watcher.poke()
	return nil
}
