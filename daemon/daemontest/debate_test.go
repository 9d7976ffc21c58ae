package daemontest

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// TestDebate shows what the kernel's developers argued about in March 2020, each claim
// that takes a daemon.
func TestDebate(t *testing.T) {
	t.Run("a central agent keeps the link of the root program to itself, and applications plug in", applicationsPlugIn)
	t.Run("whether an application may lock others out is the administrator's decision", exclusiveIsPolicy)
	t.Run("what was acknowledged is never lost without its owner being told", ownersAreTold)
	t.Run("who has a descriptor proves by it what is theirs, after a restart too", claimedAfterRestart)
}

const plugIn = `version: 1
rules:
- name: apps
  match: {uid: [1001]}
  allow: {verbs: [attach, detach]}
- name: alone
  match: {uid: [1002]}
  allow: {verbs: [attach, detach], exclusive: true}
- name: root
  match: {uid: [0]}
  allow: {verbs: [attach, detach], exclusive: true, others: true}
`

func newAgent(t *testing.T) *place {
	t.Helper()
	p := newPlace(t)
	p.write("policy.yaml", plugIn)
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	return p
}

func applicationsPlugIn(t *testing.T) {
	p := newAgent(t)
	pass := []string{p.readable("pass")}
	attach := attaching(p, "a", owned.Held)
	r, holder := p.ask(1001, asked{Method: "Attach", More: true, Files: pass}, attach)
	if r.Error != "" {
		t.Fatalf("%s %s", r.Error, r.Parameters)
	}
	if err := p.connect().attach("b", "pass"); err != nil {
		t.Fatal(err)
	}
	if got := p.chain(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("the chain is %v", got)
	}
	at := p.attachment()
	if at.LinkID == 0 {
		t.Fatalf("no link holds %+v", at)
	}
	open, err := procfs.Scan()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range open.Links[at.LinkID] {
		if h.PID == holder.PID() {
			t.Errorf("the application has the link of the hook: %+v", h)
		}
	}
	holder.Kill()
	eventually(t, "what it held to be gone", func() bool { return slices.Equal(p.chain(), []string{"b"}) })
	if now := p.attachment(); now.LinkID != at.LinkID {
		t.Errorf("link %d holds the hook, want %d", now.LinkID, at.LinkID)
	}
	if err := p.connect().detach("b"); err != nil {
		t.Error(err)
	}
	p.empty()
}

// attachment is what the kernel has at the near end.
func (p *place) attachment() *xdp.Attachment {
	p.Helper()
	state, err := find(p.T, p.veth).Query()
	if err != nil {
		p.Fatal(err)
	}
	at := state.At(xdp.Auto)
	if at == nil {
		p.Fatal("nothing is attached")
	}
	return at
}

func exclusiveIsPolicy(t *testing.T) {
	p := newAgent(t)
	pass := []string{p.readable("pass")}
	alone := attaching(p, "a", owned.Permanent)
	alone.Exclusive = new(bool)
	*alone.Exclusive = true
	r, _ := p.ask(1001, asked{Method: "Attach", Files: pass}, alone)
	var e wire.ErrorParameters
	_ = json.Unmarshal(r.Parameters, &e)
	if !r.is("NotPermitted") || e.Rule != "apps" {
		t.Errorf("refused with %s %s, want the name of the rule", r.Error, r.Parameters)
	}
	if r, _ := p.ask(1002, asked{Method: "Attach", Files: pass}, alone); r.Error != "" {
		t.Fatalf("what is granted: %s %s", r.Error, r.Parameters)
	}
	// Granted, it binds others, and not only by word: the kernel refuses those who
	// do not ask.
	if r, _ := p.ask(1001, asked{Method: "Attach", Files: pass}, attaching(p, "b", owned.Permanent)); !r.is("Conflict") {
		t.Errorf("beside it: %s %s", r.Error, r.Parameters)
	}
	if err := find(t, p.veth).Attach(kerneltest.Pass(t, "rival", nil), xdp.Any); !errors.Is(err, xdp.ErrConflict) {
		t.Errorf("by netlink: %v", err)
	}
	if r, _ := p.ask(1002, asked{Method: "Detach"}, wire.Detach{Hook: p.own(), Name: "a"}); r.Error != "" {
		t.Errorf("%s %s", r.Error, r.Parameters)
	}
	p.empty()
}

// ownersAreTold: full root can end what anybody holds, by force or with the interface.
// Who held it is told, and not only the log.
func ownersAreTold(t *testing.T) {
	for what, end := range map[string]func(p *place){
		"by force": (*place).detachByForce,
		"with the interface": func(p *place) {
			if err := p.veth.Near.Conn.Delete(p.veth.NearIndex); err != nil {
				p.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			p := newPlace(t)
			h := p.app().hold("a")
			end(p)
			<-h.Done()
			if !errors.Is(h.Err(), xdp.ErrGone) {
				t.Errorf("told %v", h.Err())
			}
			h.Close()
			if err := p.connect().call("Collect", wire.Collect{}, nil); err != nil {
				t.Error(err)
			}
			p.empty()
		})
	}
}

func claimedAfterRestart(t *testing.T) {
	p := newPlace(t)
	c := p.connect()
	l, err := c.hold("a", "pass")
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	if got := p.chain(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("without the daemon the chain is %v", got)
	}
	if _, _, err := l.next(t); errors.Is(err, io.EOF) {
		t.Error("the lease has ended with the daemon")
	}
	p.start()
	c = p.connect()
	s, err := c.conn.Stream(t.Context(), wire.Interface+".Claim", wire.Claim{}, l.token)
	if err != nil {
		t.Fatal(err)
	}
	var r wire.ClaimReply
	files, err := s.Next(t.Context(), &r)
	if err != nil || r.Lease == nil || r.Lease.Member != "a" || r.Lease.ID != l.ID {
		t.Fatalf("claimed %+v, error %v", r.Lease, decode(err))
	}
	files.Close()
	defer s.Close()
	// Somebody takes it out, and the holder is told.
	hook, ns := p.hook()
	if err := p.connect().call("Detach", wire.Detach{Hook: hook, Name: "a", Foreign: true}, nil, ns); err != nil {
		t.Fatal(err)
	}
	r = wire.ClaimReply{}
	if _, err := s.Next(t.Context(), &r); err != nil || r.Event == nil || r.Event.Kind != wire.Ended {
		t.Errorf("got %+v, error %v", r.Event, err)
	}
	if _, err := s.Next(t.Context(), nil); !errors.Is(err, io.EOF) {
		t.Errorf("the stream goes on: %v", err)
	}
	p.empty()
}
