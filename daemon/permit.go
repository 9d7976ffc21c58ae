package daemon

import (
	"fmt"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/peer"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/policy"
)

// permit is the policy's answer to what a client wants to do.
func (s *session) permit(i arbiter.Intent) error {
	if i.Verb == arbiter.VerbClaim && !s.others(i.Owner) {
		return nil // it goes on with what it was allowed
	}
	request := s.request(i)
	d := s.daemon.policy.Load().Decide(s.subject, request)
	err := d.Err(request.Verb, i.Interface)
	if err != nil {
		s.daemon.metrics.Denied(d.Rule)
		e := wire.Event{Kind: wire.Denied, Interface: i.Interface, Entry: i.Entry, Member: i.Member, Message: string(i.Verb) + ": " + d.Reason}
		if i.Hook != nil {
			e.Netns = i.Hook.Namespace().ID()
		}
		s.tellRefused(e)
	}
	return err
}

// tellRefused tells of a denial or a conflict. Who asks for the same again and again would
// fill the log and the history: that is told once in a while.
func (s *session) tellRefused(e wire.Event) {
	const often = 10 * time.Second
	what := fmt.Sprint(e.Kind, e.Interface, " ", e.Member, " ", e.Message)
	if s.refused.what == what && time.Since(s.refused.told) < often {
		return
	}
	s.refused.what, s.refused.told = what, time.Now()
	e.Owner = &s.owner
	s.daemon.tell(e)
}

// request is what the policy is asked.
func (s *session) request(i arbiter.Intent) policy.Request {
	r := policy.Request{
		Verb: policy.Verb(i.Verb), Interface: i.Interface, Lifetime: i.Lifetime,
		Priority: i.Priority, Beside: i.Beside, Exclusive: i.Exclusive, Others: s.others(i.Owner),
		Digest: i.Digest, ObjectSize: i.Cost.ObjectSize, Instructions: i.Cost.Instructions, MapMemory: i.Cost.MapMemory,
		Usage: func() (int, uint64) {
			members, memory := s.daemon.usage(s.owner.UID)
			return members + i.Earlier.Members, memory + i.Earlier.MapMemory
		},
	}
	if i.Hook == nil {
		r.NetnsUnknown = r.Verb != policy.Reload // which is about no interface
		return r
	}
	id, host, own := i.Hook.Namespace().ID(), s.daemon.host, s.ownNamespace()
	r.Mode, r.HostNetns, r.OwnNetns, r.NetnsUnknown = i.Hook.Mode(), id == host, id == own, host == "" || own == ""
	return r
}

// ownNamespace is the id of the client's network namespace, empty where it has ended.
func (s *session) ownNamespace() string {
	ns, err := s.namespace(nil, nil)
	if err != nil {
		return ""
	}
	defer ns.Close()
	return ns.ID()
}

// others tells whether that is somebody else than who asks: another user, or the same
// number in another container.
func (s *session) others(o *arbiter.Owner) bool {
	return o != nil && (o.UID != s.owner.UID || peer.Container(o.Cgroup) != peer.Container(s.owner.Cgroup))
}

// memberKey names a version of a member.
type memberKey struct {
	entry string
	id    uint32
}

// usage is how many members a user has, and how much memory their maps take, with those
// that it keeps of members that have ended.
func (d *Daemon) usage(uid int) (members int, memory uint64) {
	chains, err := d.arbiter.Chains()
	if err != nil {
		d.log.Warn("what a user has can't be counted", "uid", uid, "error", err)
		return 1 << 30, 1 << 60 // which is beyond every quota
	}
	for _, c := range chains {
		for _, m := range c.Members {
			if m.Owner.UID == uid && !m.Ended {
				members++
				memory += m.Cost.MapMemory
			}
		}
	}
	keeps, _ := d.kept.memory(uid, alive(chains))
	return members, memory + keeps
}
