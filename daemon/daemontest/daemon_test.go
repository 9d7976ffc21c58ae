package daemontest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestAPermanentMemberComesAndGoes(t *testing.T) {
	p := newPlace(t)
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	if err := c.attach("b", "drop"); err != nil {
		t.Fatal(err)
	}
	if got := p.chain(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("the chain is %v", got)
	}
	if err := c.attach("a", "pass"); !errors.Is(err, owned.ErrExists) || !strings.Contains(err.Error(), "uid 0") {
		t.Errorf("a second a: %v", err)
	}
	hook, ns := c.hook()
	var got wire.GetReply
	if err := c.call("Get", wire.Get{Hook: hook}, &got, ns); err != nil || got.Attachment == nil || len(got.Attachment.Chain.Members) != 2 {
		t.Errorf("got %+v, error %v", got.Attachment, err)
	}
	p.stop() // nothing changes with the daemon
	if got := p.chain(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("without the daemon the chain is %v", got)
	}
	p.start()
	c = p.connect()
	for _, name := range []string{"a", "b"} {
		if err := c.detach(name); err != nil {
			t.Error(err)
		}
	}
	if err := c.detach("a"); !errors.Is(err, xdp.ErrNotAttached) {
		t.Errorf("detached again: %v", err)
	}
	p.empty()
}

func TestAHeldMemberEndsWithItsHolder(t *testing.T) {
	p := newPlace(t)
	l, err := p.connect().hold("a", "pass")
	if err != nil {
		t.Fatal(err)
	}
	other, err := p.connect().hold("b", "pass")
	if err != nil {
		t.Fatal(err)
	}
	if got := p.chain(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("the chain is %v", got)
	}
	l.close()
	eventually(t, "a to be gone", func() bool { return slices.Equal(p.chain(), []string{"b"}) })
	other.close()
	p.empty()
}

func TestOneReplyIsNotEnoughForAHeldMember(t *testing.T) {
	p := newPlace(t)
	c := p.connect()
	hook, ns := c.hook()
	err := c.call("Attach", wire.Attach{Hook: hook, Lifetime: owned.Held, Object: &wire.Object{File: 1}}, nil, ns, c.object("pass"))
	if err == nil || !strings.Contains(err.Error(), "ExpectedMore") {
		t.Errorf("got %v", err)
	}
	if got := p.chain(); got != nil {
		t.Errorf("the chain is %v", got)
	}
}
