// Package daemontest runs the daemon on real kernels.
package daemontest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/daemon"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{"serve": serve, "crowd": serving, "ask": ask, "breakout": breakout, "actor": act, "captive": captive, "stall": stall})
}

// place is an interface in a namespace of its own, with a daemon.
type place struct {
	*testing.T
	bpffs, etc, socket string
	veth               *kerneltest.Veth
	daemon             *daemon.Daemon
	// change, if there is one, changes the configuration of the next daemon.
	change func(*daemon.Config)
	stop   func()
}

func newPlace(t *testing.T) *place {
	t.Helper()
	kerneltest.NoLeaks(t)
	dir, err := os.MkdirTemp("", "daemon")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &place{T: t, bpffs: kerneltest.BPFFS(t), etc: dir, socket: filepath.Join(dir, "holdfast.sock"), veth: kerneltest.NewVeth(t)}
	p.start()
	t.Cleanup(func() { p.stop() })
	return p
}

// write writes a file of the daemon's configuration.
func (p *place) write(name, text string) {
	p.Helper()
	path := filepath.Join(p.etc, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.Fatal(err)
	}
}

// start starts a daemon in this process.
func (p *place) start() {
	p.Helper()
	ready := make(chan bool, 1)
	config := daemon.Config{
		Socket: p.socket, Dir: p.etc, State: arbiter.Options{Dir: p.bpffs}, Version: "test",
		Log:   slog.New(slog.NewTextHandler(testWriter{p.T}, nil)),
		Ready: func() { ready <- true },
	}
	if p.change != nil {
		p.change(&config)
	}
	d, err := daemon.Start(config)
	if err != nil {
		p.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Serve(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		p.Fatal(err)
	}
	p.daemon = d
	p.stop = func() {
		cancel()
		if err := <-done; err != nil {
			p.Errorf("the daemon ended with %v", err)
		}
		d.Close()
		p.stop = func() {}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(b[:len(b)-1]))
	return len(b), nil
}

// client is a connection of this process.
type client struct {
	*place
	conn *varlink.Conn
}

func (p *place) connect() *client {
	p.Helper()
	conn, err := varlink.Dial(context.Background(), p.socket, varlink.Limits{Files: 1000})
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { conn.Close() })
	return &client{p, conn}
}

// call calls a method of the interface.
func (c *client) call(method string, in, out any, files ...*os.File) error {
	got, err := c.conn.Call(c.Context(), wire.Interface+"."+method, in, out, files...)
	if err != nil {
		return decode(err)
	}
	return got.Close()
}

// decode makes the daemon's errors what they were there.
func decode(err error) error {
	var e *varlink.Error
	if errors.As(err, &e) {
		return wire.Decode(e.Name, e.Parameters)
	}
	return err
}

// hook is the near end, in its own namespace, whose descriptor is the message's first.
func (p *place) hook() (wire.Hook, *os.File) {
	p.Helper()
	f, err := os.Open(p.veth.Near.Path())
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { f.Close() })
	return wire.Hook{Interface: p.veth.NearName, Netns: new(int)}, f
}

// object opens an object's file.
func (p *place) object(name string) *os.File {
	p.Helper()
	f, err := os.Open(kerneltest.ObjectFile(p, name))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { f.Close() })
	return f
}

// attach adds a permanent member.
func (c *client) attach(name, object string) error {
	hook, ns := c.hook()
	return c.call("Attach", wire.Attach{Hook: hook, Name: name, Object: &wire.Object{File: 1, Name: object + ".o"}}, nil, ns, c.object(object))
}

func (c *client) detach(name string) error {
	hook, ns := c.hook()
	return c.call("Detach", wire.Detach{Hook: hook, Name: name}, nil, ns)
}

// lease is a held member of a client.
type lease struct {
	wire.Lease
	stream *varlink.Stream
	files  *varlink.Files
	token  *os.File
	link   *os.File
}

// hold adds a held member.
func (c *client) hold(name, object string) (*lease, error) {
	c.Helper()
	hook, ns := c.hook()
	s, err := c.conn.Stream(c.Context(), wire.Interface+".Attach",
		wire.Attach{Hook: hook, Name: name, Lifetime: owned.Held, Object: &wire.Object{File: 1}}, ns, c.object(object))
	if err != nil {
		return nil, decode(err)
	}
	var r wire.Applied
	files, err := s.Next(c.Context(), &r)
	if err != nil {
		return nil, decode(err)
	}
	if len(r.Leases) != 1 {
		c.Fatalf("got the leases %+v", r.Leases)
	}
	l := &lease{Lease: r.Leases[0], stream: s, files: files}
	if l.token, err = files.Take(*l.Token); err != nil {
		c.Fatal(err)
	}
	if l.Link != nil {
		if l.link, err = files.Take(*l.Link); err != nil {
			c.Fatal(err)
		}
	}
	c.Cleanup(l.close)
	return l, nil
}

// close lets go, as the kernel does when a process ends.
func (l *lease) close() {
	l.files.Close()
	l.token.Close()
	if l.link != nil {
		l.link.Close()
	}
	l.stream.Close()
}

// next waits for the lease's next event.
func (l *lease) next(t *testing.T) (wire.Event, *os.File, error) {
	t.Helper()
	var r wire.Applied
	files, err := l.stream.Next(t.Context(), &r)
	if err != nil {
		return wire.Event{}, nil, err
	}
	defer files.Close()
	if r.Event == nil {
		t.Fatalf("got %+v, no event", r)
	}
	if r.Event.Link == nil {
		return *r.Event, nil, nil
	}
	f, err := files.Take(*r.Event.Link)
	if err != nil {
		t.Fatal(err)
	}
	return *r.Event, f, nil
}

// chain reads the chain, as root sees it without the daemon.
func (p *place) chain() []string {
	p.Helper()
	a, err := arbiter.OpenReadOnly(arbiter.Options{Dir: p.bpffs})
	if err != nil {
		p.Fatal(err)
	}
	defer a.Close()
	ns, err := xdp.OpenNamespace(p.veth.Near.Path())
	if err != nil {
		p.Fatal(err)
	}
	defer ns.Close()
	h, err := ns.Hook(p.veth.NearName, xdp.Auto)
	if err != nil {
		p.Fatal(err)
	}
	st, err := a.At(h)
	if err != nil {
		p.Fatal(err)
	}
	if st == nil || st.Chain == nil {
		return nil
	}
	var names []string
	for _, m := range st.Chain.Members {
		if !m.Ended {
			names = append(names, m.Name)
		}
	}
	return names
}

// empty checks that nothing is left of the hook's chain.
func (p *place) empty() {
	p.Helper()
	eventually(p.T, "the state to be empty", func() bool {
		names, err := os.ReadDir(p.bpffs)
		if err != nil {
			p.Fatal(err)
		}
		for _, n := range names {
			if n.IsDir() {
				return false
			}
		}
		return true
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
