package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/metrics"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Metrics says where Prometheus finds what the daemon counts.
type Metrics struct {
	// Address is host:port, or unix: and the path of a socket, which is root's only.
	// Where it is empty nothing is counted.
	Address string
	// Interfaces is how many interfaces are told of each by itself,
	// [metrics.DefaultInterfaces] where it is 0. The others are told of together.
	Interfaces int
}

// What drift there is.
const (
	driftGone     = "interface_gone"
	driftMoved    = "interface_moved"
	driftUnpinned = "unpinned"
	driftDetached = "detached"
	driftReplaced = "replaced"
)

// observed is what the watcher has seen the last time.
type observed struct {
	mutex   sync.Mutex
	failed  bool
	chains  []arbiter.ChainState
	drifted int
}

func (o *observed) set(chains []arbiter.ChainState, drifted int) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.failed, o.chains, o.drifted = false, chains, drifted
}

func (o *observed) fail() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.failed = true
}

// newMetrics are those that the daemon counts, nil where nobody asks for them.
func (d *Daemon) newMetrics() *metrics.Metrics {
	if d.config.Metrics.Address == "" {
		return nil
	}
	results := append(wire.Names(),
		"InterfaceNotFound", "MethodNotFound", "MethodNotImplemented", "InvalidParameter", "PermissionDenied", "ExpectedMore")
	return metrics.New(metrics.Options{
		Version: d.config.Version, Interfaces: d.config.Metrics.Interfaces, State: d.state,
		Methods: slices.Sorted(maps.Keys(d.methods())), Results: results, Conflicts: wire.Kinds(conflict),
		Events: []string{
			string(wire.Attached), string(wire.Replaced), string(wire.Detached), string(wire.Changed), string(wire.Locked),
			string(wire.Unlocked), string(wire.Adopted), string(wire.Claimed), string(wire.Ended), string(wire.Denied), string(wire.Conflict),
			string(wire.Drift), string(wire.Restored), string(wire.Reloaded),
		},
		Drift: []string{driftGone, driftMoved, driftUnpinned, driftDetached, driftReplaced},
	})
}

// conflict is the error of what somebody else is in the way of.
const conflict = "Conflict"

// answered counts a call.
func (d *Daemon) answered(method string, err error, took time.Duration) {
	result := metrics.OK
	var e *varlink.Error
	switch {
	case errors.As(err, &e):
		result = e.Name[strings.LastIndexByte(e.Name, '.')+1:]
	case err != nil:
		result = metrics.HungUp
	}
	d.metrics.Request(strings.TrimPrefix(method, wire.Interface+"."), result, took)
}

// serveMetrics listens where metrics are asked for, and answers until ctx ends. What is
// declared does not wait for an address that is not there yet, as before the network is
// configured, or that somebody else has: that is tried again. The
// caller waits for the group.
func (d *Daemon) serveMetrics(ctx context.Context, background *sync.WaitGroup) {
	if d.metrics == nil {
		return
	}
	const again = 5 * time.Second
	l, lock, err := d.listenForMetrics(d.config.Metrics.Address)
	background.Go(func() {
		for told := ""; err != nil; l, lock, err = d.listenForMetrics(d.config.Metrics.Address) {
			if err.Error() != told {
				told = err.Error()
				d.log.Warn("metrics can't be served yet", "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(again):
			}
		}
		defer lock.Close() // which is nil for an address
		d.log.Info("metrics are served", "address", l.Addr().String())
		if err := d.metrics.Serve(ctx, l, d.log); err != nil {
			d.log.Error("metrics are not served any more", "error", err)
		}
	})
}

// Check refuses an address that nobody can listen at.
func (m Metrics) Check() error {
	path, socket := strings.CutPrefix(m.Address, "unix:")
	switch {
	case m.Address == "", socket && path != "":
		return nil
	case socket:
		return errors.New("unix: is followed by the path of a socket")
	}
	if _, port, err := net.SplitHostPort(m.Address); err != nil || port == "" {
		return fmt.Errorf("%q is neither host:port nor unix: and the path of a socket", m.Address)
	}
	return nil
}

// listenForMetrics listens at an address. A socket has a lock as the daemon's own has.
func (d *Daemon) listenForMetrics(address string) (net.Listener, *os.File, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return listen(path, 0o600)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, nil, err
	}
	if at, ok := l.Addr().(*net.TCPAddr); !ok || !at.IP.IsLoopback() {
		d.log.Warn("metrics can be read from other machines: names of interfaces and rules are in them", "address", l.Addr().String())
	}
	return l, nil, nil
}

// state reads what gauges tell: what the watcher has seen, what is in memory, and the
// programs of the daemon's network namespace.
func (d *Daemon) state() metrics.State {
	d.seen.mutex.Lock()
	chains, s := d.seen.chains, metrics.State{Readable: !d.seen.failed, Drifted: d.seen.drifted}
	d.seen.mutex.Unlock()
	s.Clients, s.Users = d.users.count()
	s.Undone = int(d.declared.undone.Load())
	counts, owned := runsAreCounted(), map[uint32]string{}
	for _, c := range chains {
		netns, _, _ := strings.Cut(c.Entry, "-")
		h := metrics.Hook{Interface: c.Interface, Netns: netns, Engine: string(c.Engine)}
		for _, m := range c.Members {
			if m.Ended {
				continue
			}
			h.Members = append(h.Members, string(m.Lifetime))
			if m.Leased {
				s.Leases++
			}
		}
		if counts && c.ProgramID != 0 {
			h.Run = run(c.ProgramID)
		}
		if c.LinkID != 0 {
			owned[c.LinkID] = string(arbiter.Held)
			if c.Pinned {
				owned[c.LinkID] = string(arbiter.Permanent)
			}
		}
		s.Hooks = append(s.Hooks, h)
	}
	s.Attachments = d.survey.look(func() ([]metrics.Attachment, error) {
		all, err := attachments(owned)
		if err != nil {
			d.log.Warn("what is attached can't be counted", "error", err)
			d.metrics.StateError()
		}
		return all, err
	})
	return s
}

// survey is what was attached in the daemon's network namespace when it was looked at
// last. The kernel has one lock for all that are asked by netlink, which whoever changes
// an interface anywhere may hold for seconds: a scrape does not wait that long.
type survey struct {
	mutex sync.Mutex
	all   []metrics.Attachment
	// looking is closed when the look that is under way has come to its end.
	looking chan struct{}
}

// surveyed is how long a scrape waits for what is attached now.
const surveyed = 500 * time.Millisecond

// look looks by f, and returns what was there the last time if that takes long.
func (s *survey) look(f func() ([]metrics.Attachment, error)) []metrics.Attachment {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.looking == nil {
		done := make(chan struct{})
		s.looking = done
		go func() {
			all, err := f()
			s.mutex.Lock()
			defer s.mutex.Unlock()
			if err == nil {
				s.all = all
			}
			s.looking = nil
			close(done)
		}()
	}
	looking := s.looking
	s.mutex.Unlock()
	select {
	case <-looking:
	case <-time.After(surveyed):
	}
	s.mutex.Lock()
	return s.all
}

// attachments are the programs of this network namespace; owned are the links of
// Holdfast's hooks, with their lifetimes. Who holds the links of others would take a look
// at all processes.
func attachments(owned map[uint32]string) ([]metrics.Attachment, error) {
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	states, err := ns.States()
	if err != nil {
		return nil, err
	}
	var all []metrics.Attachment
	for _, s := range states {
		for _, at := range s.Attachments {
			a := metrics.Attachment{Mode: at.Mode.String(), Owner: "other", Held: string(at.Held), Lifetime: string(arbiter.Unknown)}
			if at.Held == xdp.HeldByNetlink {
				a.Lifetime = string(arbiter.Permanent)
			}
			if lifetime, ok := owned[at.LinkID]; ok && at.LinkID != 0 {
				a.Owner, a.Lifetime = "holdfast", lifetime
			}
			all = append(all, a)
		}
	}
	return all, nil
}

// runsAreCounted tells whether somebody has switched on that the kernel counts how often
// programs run, and for how long.
func runsAreCounted() bool {
	b, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled")
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// run is what the kernel has counted of a program, nil where that can't be read, such as
// of one that has been replaced meanwhile.
func run(id uint32) *metrics.Run {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return nil
	}
	defer p.Close()
	stats, err := p.Stats()
	if err != nil {
		return nil
	}
	return &metrics.Run{Count: stats.RunCount, Time: stats.Runtime}
}
