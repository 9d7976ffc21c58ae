package daemon

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/varlink"
)

// leases are those whose holders are connected, by the member.
type leases struct {
	mutex   sync.Mutex
	streams map[memberKey]*stream
}

// stream is a call that gets the events of leases.
type stream struct {
	events chan leaseEvent
	// open are the leases that have not ended.
	open map[memberKey]bool
}

// leaseEvent is a lease's end, or a new link of it.
type leaseEvent struct {
	key   memberKey
	event wire.Event
	ended bool
}

// enter has the call get the events of some leases. One that another call got is this
// one's from then on. The caller calls leave.
func (l *leases) enter(keys []memberKey) (s *stream, leave func()) {
	// A lease has at most its end and one link under way, see offer.
	s = &stream{events: make(chan leaseEvent, 2*len(keys)), open: map[memberKey]bool{}}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.streams == nil {
		l.streams = map[memberKey]*stream{}
	}
	for _, k := range keys {
		s.open[k] = true
		l.streams[k] = s
	}
	return s, func() {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		for _, k := range keys {
			if l.streams[k] == s {
				delete(l.streams, k)
			}
		}
	}
}

// keys are the leases whose holders are connected.
func (l *leases) keys() []memberKey {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	all := make([]memberKey, 0, len(l.streams))
	for k := range l.streams {
		all = append(all, k)
	}
	return all
}

// offer tells the holder, if it is connected and not busy with the last events.
func (l *leases) offer(e leaseEvent) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	s := l.streams[e.key]
	if s == nil {
		return
	}
	select {
	case s.events <- e:
		if e.ended {
			delete(l.streams, e.key)
		}
	default: // it comes again
	}
}

// hold gives the client what it holds from now on, and then tells it what happens to
// that. The daemon keeps no descriptor of it.
func (s *session) hold(ctx context.Context, c *varlink.Call, reply wire.Applied, applied *arbiter.Applied) error {
	var files []*os.File
	number := func(f *os.File) *int {
		files = append(files, f)
		n := len(files) - 1
		return &n
	}
	var keys []memberKey
	for _, l := range applied.Leases {
		one := wire.Lease{Entry: l.Entry, ID: l.ID, Member: l.Member, Token: number(l.Token), Maps: map[string]int{}}
		if l.Link != nil {
			one.Link = number(l.Link)
		}
		key := memberKey{l.Entry, l.ID}
		for name, f := range l.Maps {
			one.Maps[name] = *number(f)
			if err := s.daemon.kept.add(s.owner.UID, key, f); err != nil {
				s.daemon.log.Warn("a map that a client keeps can't be counted", "map", name, "error", err)
			}
		}
		reply.Leases = append(reply.Leases, one)
		keys = append(keys, key)
	}
	stream, leave := s.daemon.leases.enter(keys)
	defer leave()
	err := c.Continue(reply, files...)
	for _, l := range applied.Leases {
		l.Close()
	}
	defer s.daemon.watcher.poke() // the holder may have ended with its connection
	if err != nil {
		return err
	}
	if err := s.acknowledged(applied.Acknowledge, false); err != nil {
		s.daemon.log.Warn("what was done could not be marked as done", "error", err)
	}
	return s.follow(ctx, c, stream, func(e *wire.Event) any { return wire.Applied{Event: e} })
}

// claim gives a lease to whoever has a descriptor of it.
func (s *session) claim(ctx context.Context, c *varlink.Call, p wire.Claim) error {
	proof, err := c.Files.Take(p.Proof)
	if err != nil {
		return varlink.InvalidParameter("proof: " + err.Error())
	}
	l, err := s.arbiter().Claim(ctx, proof)
	// It must not prolong the member's life.
	proof.Close()
	if err != nil {
		return err
	}
	defer l.Close()
	one := &wire.Lease{Entry: l.Entry, ID: l.ID, Member: l.Member}
	var files []*os.File
	if l.Link != nil {
		one.Link, files = new(int), []*os.File{l.Link}
	}
	if !c.More {
		return c.Reply(wire.ClaimReply{Lease: one}, files...)
	}
	stream, leave := s.daemon.leases.enter([]memberKey{{l.Entry, l.ID}})
	defer leave()
	defer s.daemon.watcher.poke()
	err = c.Continue(wire.ClaimReply{Lease: one}, files...)
	l.Close()
	if err != nil {
		return err
	}
	s.daemon.tell(wire.Event{Kind: wire.Claimed, Entry: l.Entry, Member: l.Member, ID: l.ID, Owner: &s.owner})
	return s.follow(ctx, c, stream, func(e *wire.Event) any { return wire.ClaimReply{Event: e} })
}

// follow sends the events of leases until all have ended, or the client has gone.
func (s *session) follow(ctx context.Context, c *varlink.Call, stream *stream, reply func(*wire.Event) any) error {
	s.daemon.watcher.poke() // something may have happened before the call was entered
	for {
		var e leaseEvent
		select {
		case <-ctx.Done():
			return nil
		case e = <-stream.events:
		}
		if e.event.Time.IsZero() {
			e.event.Time = time.Now()
		}
		if e.ended {
			delete(stream.open, e.key)
			if len(stream.open) == 0 {
				return c.Reply(reply(&e.event))
			}
			if err := c.Continue(reply(&e.event)); err != nil {
				return err
			}
			continue
		}
		link, err := s.daemon.arbiter.Waiting(e.key.entry, e.key.id)
		if err != nil || link == nil {
			continue // it has been taken over, or has moved again
		}
		e.event.Link = new(int)
		err = c.Continue(reply(&e.event), link)
		link.Close()
		if err != nil {
			return err
		}
	}
}
