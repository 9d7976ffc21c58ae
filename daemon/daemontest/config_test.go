package daemontest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/daemon"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/xdp"
)

const nobody = "version: 1\nrules:\n- name: nobody\n  deny: true\n"

func TestThePolicyIsReadAnew(t *testing.T) {
	p := newPlace(t)
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	p.write("policy.yaml", "version: 1\nrules:\n- name: all\n  match: {user: []}\n")
	if err := c.call("Reload", nil, nil); err == nil || !strings.Contains(err.Error(), "policy.yaml:4:11: ") {
		t.Errorf("a bad policy: %v", err)
	}
	if err := c.attach("b", "pass"); err != nil {
		t.Errorf("with the policy that was: %v", err)
	}
	p.write("policy.yaml", nobody)
	if err := c.call("Reload", nil, nil); err != nil {
		t.Fatal(err)
	}
	err := c.attach("c", "pass")
	var e *wire.Error
	if !errors.Is(err, xdp.ErrPermission) || !errors.As(err, &e) || e.Rule != "nobody" {
		t.Errorf("denied: %v", err)
	}
	if err := c.detach("a"); !errors.Is(err, xdp.ErrPermission) {
		t.Errorf("detach: %v", err)
	}
	if err := c.call("Reload", nil, nil); !errors.Is(err, xdp.ErrPermission) {
		t.Errorf("reload: %v", err)
	}
	if err := os.Remove(filepath.Join(p.etc, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if err := c.detach(name); err != nil {
			t.Error(err)
		}
	}
	p.empty()
}

// declare writes a declaration of members at the near end.
func (p *place) declare(iface string, members ...string) {
	p.Helper()
	text := fmt.Sprintf("version: 1\nhooks:\n- interface: %s\n  netns: %s\n  members:\n", iface, p.veth.Near.Path())
	for _, m := range members {
		text += fmt.Sprintf("  - {name: %s, object: %s}\n", m, kerneltest.ObjectFile(p, "pass"))
	}
	p.write("attachments.d/a.yaml", text)
}

func TestWhatIsDeclaredIsAttachedAndRestored(t *testing.T) {
	p := newPlace(t)
	p.declare(p.veth.NearName, "a", "b")
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	there := func() bool { return slices.Equal(p.chain(), []string{"a", "b"}) }
	eventually(t, "what is declared", there)
	// Another root detaches it by force.
	ns, err := xdp.OpenNamespace(p.veth.Near.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := ns.Hook(p.veth.NearName, xdp.Auto)
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.Query()
	if err != nil {
		t.Fatal(err)
	}
	link, err := xdp.OpenID(s.At(xdp.Auto).LinkID)
	if err != nil {
		t.Fatal(err)
	}
	if err := link.Detach(); err != nil {
		t.Fatal(err)
	}
	link.Close()
	eventually(t, "it to be restored", there)
	if err := os.Remove(filepath.Join(p.etc, "attachments.d/a.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	c := p.connect()
	for _, name := range []string{"a", "b"} {
		if err := c.detach(name); err != nil {
			t.Error(err)
		}
	}
	p.empty()
}

func TestWhatIsDeclaredIsAttachedWhenItsInterfaceComes(t *testing.T) {
	p := newPlace(t)
	p.declare("later", "a")
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := p.veth.Near.Conn.AddVeth("later", "later2", -1); err != nil {
		t.Fatal(err)
	}
	index := p.veth.Near.Device(t, "later").Index
	p.veth.NearName = "later"
	eventually(t, "it to be attached", func() bool { return slices.Equal(p.chain(), []string{"a"}) })
	if err := p.veth.Near.Conn.Delete(index); err != nil {
		t.Fatal(err)
	}
	// What is left of it goes with the next look of whoever collects.
	if err := p.connect().call("Collect", wire.Collect{}, nil); err != nil {
		t.Error(err)
	}
	p.empty()
}

func TestDriftIsTold(t *testing.T) {
	p := newPlace(t)
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	s, err := p.connect().conn.Stream(t.Context(), wire.Interface+".Watch", wire.Watch{Since: &since})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var hook wire.GetReply
	h, ns := c.hook()
	if err := c.call("Get", wire.Get{Hook: h}, &hook, ns); err != nil {
		t.Fatal(err)
	}
	link, err := xdp.OpenID(hook.Attachment.LinkID)
	if err != nil {
		t.Fatal(err)
	}
	if err := link.Detach(); err != nil {
		t.Fatal(err)
	}
	link.Close()
	for {
		var r wire.WatchReply
		if _, err := s.Next(t.Context(), &r); err != nil {
			t.Fatal(err)
		}
		if r.Event.Kind == wire.Drift {
			if r.Event.Interface != p.veth.NearName || !strings.Contains(r.Event.Message, "by force") {
				t.Errorf("got %+v", r.Event)
			}
			break
		}
	}
	if err := c.call("Collect", wire.Collect{}, nil); err != nil {
		t.Error(err)
	}
	p.empty()
}

func TestAPinThatWasRemovedIsMadeAgain(t *testing.T) {
	p := newPlace(t)
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	pins, err := filepath.Glob(filepath.Join(p.bpffs, "*", "link"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("the pins are %v (%v)", pins, err)
	}
	// Somebody else keeps the link, as the store does.
	link, err := xdp.OpenPinned(pins[0])
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	if err := os.Remove(pins[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pin to be there again", func() bool {
		_, err := os.Stat(pins[0])
		return err == nil
	})
	if err := c.detach("a"); err != nil {
		t.Error(err)
	}
	p.empty()
}

func TestLinksAreStoredAndDropped(t *testing.T) {
	p := newPlace(t)
	p.stop()
	var mutex sync.Mutex
	stored := map[string]*os.File{}
	p.change = func(config *daemon.Config) {
		config.Store = func(name string, f *os.File) error {
			mutex.Lock()
			defer mutex.Unlock()
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			stored[name] = os.NewFile(uintptr(fd), name)
			return err
		}
		config.Drop = func(name string) error {
			mutex.Lock()
			defer mutex.Unlock()
			stored[name].Close()
			delete(stored, name)
			return nil
		}
	}
	p.start()
	count := func(n int) func() bool {
		return func() bool {
			mutex.Lock()
			defer mutex.Unlock()
			return len(stored) == n
		}
	}
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the link to be stored", count(1))
	// Without its pin it goes on.
	pins, err := filepath.Glob(filepath.Join(p.bpffs, "*", "link"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("the pins are %v (%v)", pins, err)
	}
	if err := os.Remove(pins[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pin to be there again", func() bool {
		_, err := os.Stat(pins[0])
		return err == nil
	})
	if err := c.detach("a"); err != nil {
		t.Error(err)
	}
	eventually(t, "the link to be dropped", count(0))
	p.empty()
}

func TestAnInterfaceThatMovesIsTold(t *testing.T) {
	p := newPlace(t)
	if err := p.connect().attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	s, err := p.connect().conn.Stream(t.Context(), wire.Interface+".Watch", wire.Watch{Since: &since})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	elsewhere := kerneltest.NewNetNS(t)
	if err := p.veth.Near.Conn.Move(p.veth.Near.Device(t, p.veth.NearName).Index, elsewhere.FD()); err != nil {
		t.Fatal(err)
	}
	for told := false; !told; {
		var r wire.WatchReply
		if _, err := s.Next(t.Context(), &r); err != nil {
			t.Fatal(err)
		}
		told = r.Event.Kind == wire.Drift && strings.Contains(r.Event.Message, "has moved") && r.Event.Interface == p.veth.NearName
	}
	if err := elsewhere.Conn.Move(elsewhere.Device(t, p.veth.NearName).Index, p.veth.Near.FD()); err != nil {
		t.Fatal(err)
	}
	if err := p.connect().detach("a"); err != nil {
		t.Error(err)
	}
	p.empty()
}
