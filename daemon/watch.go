package daemon

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// interval is how often the watcher looks by itself. The kernel tells nobody of links
// that end or are detached.
const interval = time.Second

// rest is how many intervals nothing happens in until memory is given back.
const rest = 3

// watcher looks at what is recorded and what the kernel has, tells holders of leases
// what concerns them, forgets what has ended, and notices drift.
type watcher struct {
	daemon *Daemon
	pokes  chan struct{}
	// told are the links that wait, by what was said of them: a holder is told once.
	told map[memberKey]uint32
	// drift is what was said of each hook's drift, so that it is said once.
	drift map[string]string
	// gone are those of them whose interface is gone: nobody is to put them right.
	gone        map[string]bool
	lookedAgain time.Time
	// lost is why the members of a hook run no more, for their holders.
	lost map[string]string
	// moved are the hooks whose interfaces have moved, which was told, and lookedFor is
	// when they were looked for last.
	moved     map[string]bool
	lookedFor time.Time
	// stored are the links of hooks that are in the store.
	stored map[uint32]bool
}

func newWatcher(d *Daemon) *watcher {
	return &watcher{daemon: d, pokes: make(chan struct{}, 1), told: map[memberKey]uint32{}, drift: map[string]string{}, gone: map[string]bool{}, lost: map[string]string{}, stored: map[uint32]bool{}}
}

// poke has the watcher look soon.
func (w *watcher) poke() {
	select {
	case w.pokes <- struct{}{}:
	default: // it is about to
	}
}

func (w *watcher) run(ctx context.Context) {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	quiet := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
			if quiet++; quiet > rest && quiet <= 2*rest {
				// What a burst of changes took would stay for minutes, and the
				// stacks that have grown with it shrink by half each time.
				debug.FreeOSMemory()
			}
		case <-w.pokes:
			quiet = 0
		}
		if err := w.look(ctx); err != nil && ctx.Err() == nil {
			w.daemon.log.Warn("what is attached can't be looked at", "error", err)
			w.daemon.seen.fail()
			w.daemon.metrics.StateError()
			continue
		}
		if w.daemon.config.Alive != nil {
			w.daemon.config.Alive()
		}
	}
}

// look looks once.
func (w *watcher) look(ctx context.Context) error {
	d := w.daemon
	// Who is entered by now was recorded before that.
	connected := d.leases.keys()
	chains, err := d.arbiter.Chains()
	if err != nil {
		return err
	}
	there, told, drift := map[memberKey]bool{}, map[memberKey]uint32{}, map[string]string{}
	for _, c := range chains {
		if c.Changing { // and is looked at when that is over
			if why := w.drift[c.Entry]; why != "" {
				drift[c.Entry] = why
			}
			continue
		}
		dead := 0
		for _, m := range c.Members {
			key := memberKey{c.Entry, m.ID}
			switch {
			case m.Ended:
				dead++
				if m.Leased {
					d.leases.offer(leaseEvent{key: key, ended: true, event: ended(c, m, "its descriptors were closed")})
				}
				continue
			case m.Waits:
				if told[key] = c.ProgramID; w.told[key] != c.ProgramID {
					d.leases.offer(leaseEvent{key: key, event: wire.Event{Kind: wire.Moved, Interface: c.Interface, Entry: c.Entry, Member: m.Name, ID: m.ID}})
				}
			}
			there[key] = true
		}
		if c.Lost != "" {
			drift[c.Entry] = c.Lost
		}
		if dead > 0 {
			w.forget(ctx, c, dead)
		}
	}
	for _, key := range connected {
		if !there[key] && !changing(chains, key.entry) {
			d.leases.offer(leaseEvent{key: key, ended: true, event: wire.Event{
				Kind: wire.Ended, Entry: key.entry, ID: key.id, Message: "the member is not in the chain any more",
			}})
		}
	}
	w.told = told
	d.kept.forget(alive(chains))
	w.store(chains)
	w.lookForMoved(ctx, chains)
	w.tellDrift(ctx, chains, drift)
	d.seen.set(chains, len(w.drift)-len(w.gone))
	return nil
}

// changing tells whether the chain of that entry is being changed at the moment, and so
// is left out of what was read.
func changing(chains []arbiter.ChainState, entry string) bool {
	for _, c := range chains {
		if c.Entry == entry {
			return c.Changing
		}
	}
	return false
}

func ended(c arbiter.ChainState, m arbiter.MemberState, why string) wire.Event {
	return wire.Event{Kind: wire.Ended, Interface: c.Interface, Entry: c.Entry, Member: m.Name, ID: m.ID, Message: why}
}

// forget takes the members out whose holders have ended.
func (w *watcher) forget(ctx context.Context, c arbiter.ChainState, dead int) {
	d := w.daemon
	for _, m := range c.Members {
		if !m.Ended {
			continue
		}
		e := ended(c, m, "its holder has ended")
		e.Owner = &m.Owner
		d.tell(e)
	}
	if err := d.arbiter.Forget(ctx, c.Entry); err != nil && ctx.Err() == nil {
		d.log.Warn("members whose holders have ended can't be taken out", "interface", c.Interface, "entry", c.Entry, "error", err)
		d.metrics.StateError()
	}
}

// movedEvery is how often interfaces are looked for in all namespaces, which takes longer
// than all the rest.
const movedEvery = 10 * interval

// lookForMoved tells of interfaces that have gone to another network namespace, with
// what is attached to them.
func (w *watcher) lookForMoved(ctx context.Context, chains []arbiter.ChainState) {
	if len(chains) == 0 || time.Since(w.lookedFor) < movedEvery {
		return
	}
	w.lookedFor = time.Now()
	byEntry := map[string]arbiter.ChainState{}
	var entries []string
	for _, c := range chains {
		if c.Lost == "" && c.LinkID != 0 && !c.Changing {
			byEntry[c.Entry] = c
			entries = append(entries, c.Entry)
		}
	}
	moved, err := w.daemon.arbiter.Moved(entries)
	if err != nil {
		w.daemon.log.Warn("interfaces can't be looked for", "error", err)
		w.daemon.metrics.StateError()
		return
	}
	for entry := range moved {
		if !w.moved[entry] {
			// One that was deleted since its chain was looked at is not there either.
			if d, err := w.daemon.arbiter.Drift(ctx, entry); err != nil || d.Lost != "" {
				delete(moved, entry)
				continue
			}
			w.daemon.metrics.Drift(driftMoved)
			w.daemon.tell(wire.Event{
				Kind: wire.Drift, Interface: byEntry[entry].Interface, Entry: entry,
				Message: "its interface has moved to another network namespace, and what is attached with it",
			})
		}
	}
	w.moved = moved
}

// store keeps the links of hooks in the store, and what is no hook's any more out of it.
func (w *watcher) store(chains []arbiter.ChainState) {
	config := w.daemon.config
	if config.Store == nil {
		return
	}
	now := map[uint32]bool{}
	for _, c := range chains {
		if c.Changing {
			now[c.LinkID] = w.stored[c.LinkID]
			continue
		}
		if !c.Pinned || c.LinkID == 0 {
			continue
		}
		now[c.LinkID] = true
		if w.stored[c.LinkID] {
			continue
		}
		if err := storeLink(config, c.LinkID); err != nil {
			w.daemon.log.Warn("a link can't be stored", "interface", c.Interface, "error", err)
		}
	}
	for id := range w.stored {
		if !now[id] {
			if err := config.Drop(storeName(id)); err != nil {
				w.daemon.log.Warn("a link can't be dropped from the store", "error", err)
			}
		}
	}
	w.stored = now
}

func storeName(link uint32) string { return fmt.Sprintf("link-%d", link) }

func storeLink(config Config, id uint32) error {
	link, err := xdp.OpenID(id)
	if err != nil {
		return err
	}
	// It owns the descriptor from then on.
	f := os.NewFile(uintptr(link.FD()), storeName(id))
	defer f.Close()
	return config.Store(storeName(id), f)
}

// tellDrift tells of what is not as Holdfast has left it, once, and has what is declared
// made anew. Who holds a member there is told that it has ended: what was acknowledged is
// not lost silently.
func (w *watcher) tellDrift(ctx context.Context, chains []arbiter.ChainState, drift map[string]string) {
	// An interface may go after its link was taken away by force.
	again := time.Since(w.lookedAgain) >= movedEvery
	if again {
		w.lookedAgain = time.Now()
	}
	for _, c := range chains {
		why := drift[c.Entry]
		if why == "" || w.drift[c.Entry] == why {
			if why != "" && again && !w.gone[c.Entry] {
				d, err := w.daemon.arbiter.Drift(ctx, c.Entry)
				w.gone[c.Entry] = err == nil && d.Gone
			}
			w.tellHolders(c)
			continue
		}
		d, err := w.daemon.arbiter.Drift(ctx, c.Entry)
		switch {
		case err != nil:
			if ctx.Err() == nil {
				w.daemon.log.Warn("a hook can't be looked at", "interface", c.Interface, "entry", c.Entry, "error", err)
				w.daemon.metrics.StateError()
			}
			delete(drift, c.Entry) // it comes again
			continue
		case d.Lost == "": // it was being changed
			delete(drift, c.Entry)
			continue
		}
		kind, message := describe(d)
		if kind == driftGone {
			w.gone[c.Entry] = true
		}
		w.daemon.metrics.Drift(kind)
		w.daemon.tell(wire.Event{Kind: wire.Drift, Interface: c.Interface, Entry: c.Entry, Message: message})
		if !d.Repinned {
			w.lost[c.Entry] = message
			w.tellHolders(c)
		}
		w.daemon.declared.drifted(c.Interface)
	}
	w.drift = drift
	maps.DeleteFunc(w.gone, func(entry string, gone bool) bool { return !gone || drift[entry] == "" })
	maps.DeleteFunc(w.lost, func(entry, _ string) bool { return drift[entry] == "" })
	w.daemon.declared.step(ctx)
}

// tellHolders tells those who are connected that what they hold there has ended, if it has.
func (w *watcher) tellHolders(c arbiter.ChainState) {
	why := w.lost[c.Entry]
	if why == "" {
		return
	}
	for _, m := range c.Members {
		if m.Leased {
			w.daemon.leases.offer(leaseEvent{key: memberKey{c.Entry, m.ID}, ended: true, event: ended(c, m, why)})
		}
	}
}

// describe says what has happened to a hook, in a word and in a sentence.
func describe(d arbiter.Drift) (kind, message string) {
	switch {
	case d.Gone:
		return driftGone, "its interface is gone"
	case d.Repinned:
		return driftUnpinned, d.Lost + ", and has been made again"
	case d.At == nil:
		return driftDetached, d.Lost + "; nothing is attached there now"
	}
	xdp.FindHolders(d.At)
	return driftReplaced, d.Lost + "; now " + d.At.String()
}
