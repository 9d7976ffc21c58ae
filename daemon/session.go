package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/peer"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/policy"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// session is a client's connection.
type session struct {
	daemon  *Daemon
	peer    *peer.Peer
	subject policy.Subject
	owner   arbiter.Owner
	user    *user
	// acknowledge is what Acknowledge is to call, nil for nothing. One call of a
	// connection is handled at a time.
	acknowledge arbiter.Acknowledge
	// refused is what was denied or in conflict last, and when that was told.
	refused struct {
		what string
		told time.Time
	}
}

// connected finds out who connected.
func (d *Daemon) connected(conn *net.UnixConn) (any, error) {
	p, err := peer.Of(conn)
	if err != nil {
		return nil, err
	}
	u, err := d.users.enter(p.UID)
	if err != nil {
		p.Close()
		return nil, err
	}
	s := &session{daemon: d, peer: p, user: u}
	s.owner = arbiter.Owner{UID: p.UID, GID: p.GID, Process: p.Process, Exe: p.Exe, Comm: p.Comm, Cgroup: p.Cgroup}
	s.subject = policy.Subject{
		UID: p.UID, GID: p.GID, Groups: p.Groups, Unit: peer.Unit(p.Cgroup), Cgroup: p.Cgroup, Contained: p.Contained,
	}
	if p.Vouched {
		s.subject.Exe = p.Exe
	}
	return s, nil
}

// Close ends the session. What the client holds it holds by descriptors: if it has
// ended with the connection, they have.
func (s *session) Close() error {
	s.daemon.users.leave(s.user)
	return s.peer.Close()
}

// users counts the connections of each user.
type users struct {
	mutex sync.Mutex
	byUID map[int]*user
}

type user struct {
	uid         int
	connections int
	// changing is held while something is changed for the user where quotas are in
	// force, because two changes at once could go beyond them.
	changing sync.Mutex
	// objects are bytes of them.
	objects *budget
}

func (u *users) enter(uid int) (*user, error) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	if u.byUID == nil {
		u.byUID = map[int]*user{}
	}
	one := u.byUID[uid]
	if one == nil {
		one = &user{uid: uid, objects: newBudget(maxObject)}
		u.byUID[uid] = one
	}
	if one.connections >= maxPerUser {
		return nil, fmt.Errorf("user %d has %d connections already", uid, one.connections)
	}
	one.connections++
	return one, nil
}

func (u *users) leave(one *user) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	if one.connections--; one.connections == 0 {
		delete(u.byUID, one.uid)
	}
}

// count is how many connections there are, and how many users have them.
func (u *users) count() (connections, users int) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	for _, one := range u.byUID {
		connections += one.connections
	}
	return connections, len(u.byUID)
}

// arbiter is one that acts for the client.
func (s *session) arbiter() *arbiter.Arbiter {
	return s.daemon.arbiter.OnBehalf(arbiter.Behalf{Owner: s.owner, Permit: s.permit})
}

// errorOf makes a reply of an error.
func (d *Daemon) errorOf(err error) *varlink.Error {
	name, parameters := wire.Encode(err)
	if name == wire.Interface+"."+conflict {
		d.metrics.Conflict(parameters.Kind)
	}
	b, jsonErr := json.Marshal(parameters)
	if jsonErr != nil {
		b, _ = json.Marshal(wire.ErrorParameters{Message: err.Error()})
	}
	return &varlink.Error{Name: name, Parameters: b}
}

// namespace opens the network namespace that a call is about: that of the descriptor,
// or the client's own.
func (s *session) namespace(c *varlink.Call, number *int) (*xdp.Namespace, error) {
	var f *os.File
	var err error
	if number != nil {
		f, err = c.Files.Take(*number)
		if err != nil {
			return nil, varlink.InvalidParameter("netns: " + err.Error())
		}
	} else if f, err = s.peer.Namespace(); err != nil {
		return nil, err
	}
	defer f.Close()
	return xdp.NamespaceOf(f, "") // who asks knows which it is
}

// hook finds the hook that a call is about. The caller closes its namespace.
func (s *session) hook(c *varlink.Call, h wire.Hook) (*xdp.Hook, error) {
	mode := xdp.Auto
	if h.Mode != nil {
		mode = *h.Mode
	}
	ns, err := s.namespace(c, h.Netns)
	if err != nil {
		return nil, err
	}
	hook, err := findHook(ns, h, mode)
	if err != nil {
		ns.Close()
	}
	return hook, err
}

func findHook(ns *xdp.Namespace, h wire.Hook, mode xdp.Mode) (*xdp.Hook, error) {
	if h.Ifindex == 0 {
		return ns.Hook(h.Interface, mode)
	}
	return ns.HookAt(h.Ifindex, mode)
}

// with calls f with the hook.
func (s *session) with(c *varlink.Call, h wire.Hook, f func(*xdp.Hook) error) error {
	hook, err := s.hook(c, h)
	if err != nil {
		return err
	}
	defer hook.Namespace().Close()
	err = f(hook)
	if errors.Is(err, xdp.ErrConflict) {
		s.tellRefused(wire.Event{Kind: wire.Conflict, Interface: hook.Name(), Netns: hook.Namespace().ID(), Message: err.Error()})
	}
	return err
}
