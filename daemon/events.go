package daemon

import (
	"strings"
	"sync"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/wire"
)

// remembered is how many events are.
const remembered = 1000

// history remembers the last events, and tells new ones to whoever listens.
type history struct {
	mutex     sync.Mutex
	events    []wire.Event // the last of them, in their order
	listeners map[*listener]bool
}

func newHistory() *history { return &history{listeners: map[*listener]bool{}} }

// listener gets events. One that does not read them loses its place: missed is closed.
type listener struct {
	events chan wire.Event
	missed chan struct{}
}

// queue is how many events a listener may be behind.
const queue = 256

// listen returns what has happened since a time, and gets what happens from then on.
// The caller calls stop.
func (h *history) listen(since time.Time) (past []wire.Event, l *listener, stop func()) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	for _, e := range h.events {
		if !since.IsZero() && e.Time.After(since) {
			past = append(past, e)
		}
	}
	l = &listener{events: make(chan wire.Event, queue), missed: make(chan struct{})}
	h.listeners[l] = true
	return past, l, func() {
		h.mutex.Lock()
		defer h.mutex.Unlock()
		delete(h.listeners, l)
	}
}

// add remembers an event, and tells it. It returns how many listeners lost their place.
func (h *history) add(e wire.Event) (lost int) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if len(h.events) == remembered {
		h.events = append(h.events[:0], h.events[1:]...)
	}
	h.events = append(h.events, e)
	for l := range h.listeners {
		select {
		case l.events <- e:
		default:
			close(l.missed)
			delete(h.listeners, l)
			lost++
		}
	}
	return lost
}

// tell completes an event, remembers it, and logs it.
func (d *Daemon) tell(e wire.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Netns == "" {
		e.Netns, _, _ = strings.Cut(e.Entry, "-") // which begins with it
	}
	args := []any{"kind", string(e.Kind)}
	add := func(key, value string) {
		if value != "" {
			args = append(args, key, value)
		}
	}
	add("interface", e.Interface)
	add("netns", e.Netns)
	add("entry", e.Entry)
	add("member", e.Member)
	if e.Owner != nil {
		args = append(args, "uid", e.Owner.UID, "pid", e.Owner.PID, "owner", e.Owner.Comm)
	}
	add("why", e.Message)
	switch e.Kind {
	case wire.Denied, wire.Conflict, wire.Drift:
		d.log.Warn("event", args...)
	default:
		d.log.Info("event", args...)
	}
	d.metrics.Event(string(e.Kind))
	for range d.events.add(e) {
		d.metrics.Dropped()
	}
}
