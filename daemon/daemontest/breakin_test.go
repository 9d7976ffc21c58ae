package daemontest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// asked is what a process of another user asks of the daemon: a call with the files of
// those paths, and then those whose numbers it inherited.
type asked struct {
	Socket, Method string
	Parameters     json.RawMessage
	Files          []string
	Inherited      int
	More           bool
}

// answered is what came of it.
type answered struct {
	Error      string
	Parameters json.RawMessage
	Reply      json.RawMessage
}

// ask makes a call, and says what came of it. With more it holds what it got until its
// input ends.
func ask(args []string) int {
	var a asked
	if err := json.Unmarshal([]byte(args[0]), &a); err != nil {
		panic(err)
	}
	say := func(r answered) int {
		b, _ := json.Marshal(r)
		fmt.Println(string(b))
		return 0
	}
	conn, err := varlink.Dial(context.Background(), a.Socket, varlink.Limits{Files: 500})
	if err != nil {
		return say(answered{Error: err.Error()})
	}
	defer conn.Close()
	var files []*os.File
	for _, path := range a.Files {
		f, err := os.Open(path)
		if err != nil {
			return say(answered{Error: err.Error()})
		}
		files = append(files, f)
	}
	for i := range a.Inherited {
		files = append(files, os.NewFile(uintptr(3+i), "inherited"))
	}
	var r answered
	var got *varlink.Files
	if a.More {
		var s *varlink.Stream
		if s, err = conn.Stream(context.Background(), wire.Interface+"."+a.Method, a.Parameters, files...); err == nil {
			got, err = s.Next(context.Background(), &r.Reply)
		}
	} else {
		got, err = conn.Call(context.Background(), wire.Interface+"."+a.Method, a.Parameters, &r.Reply, files...)
	}
	var e *varlink.Error
	switch {
	case errors.As(err, &e):
		r.Error, r.Parameters = e.Name, e.Parameters
	case err != nil:
		r.Error = err.Error()
	}
	say(r)
	if err == nil && a.More {
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	got.Close()
	return 0
}

// ask has a process of another user make a call from the near end's namespace, and
// returns what came of it; the process holds what it got until the test ends.
func (p *place) ask(uid uint32, a asked, parameters any, inherited ...*os.File) (answered, *kerneltest.Process) {
	p.Helper()
	cmd := p.asking(a, parameters, inherited...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return p.answer(p.veth.Near.Start(p, cmd))
}

func (p *place) asking(a asked, parameters any, inherited ...*os.File) *exec.Cmd {
	p.Helper()
	a.Socket, a.Inherited = p.socket, len(inherited)
	var err error
	if a.Parameters, err = json.Marshal(parameters); err != nil {
		p.Fatal(err)
	}
	b, err := json.Marshal(a)
	if err != nil {
		p.Fatal(err)
	}
	cmd := kerneltest.Command("ask", string(b))
	cmd.ExtraFiles = inherited
	return cmd
}

func (p *place) answer(process *kerneltest.Process) (answered, *kerneltest.Process) {
	p.Helper()
	if !process.Lines.Scan() {
		p.Fatal("it said nothing")
	}
	var r answered
	if err := json.Unmarshal(process.Lines.Bytes(), &r); err != nil {
		p.Fatal(err)
	}
	return r, process
}

// readable is an object that every user can open.
func (p *place) readable(name string) string {
	p.Helper()
	path := filepath.Join(p.etc, name+".o")
	if err := os.WriteFile(path, bpfprog.ELF(name), 0o644); err != nil {
		p.Fatal(err)
	}
	return path
}

func (p *place) own() wire.Hook { return wire.Hook{Interface: p.veth.NearName} }

func attaching(p *place, name string, lifetime owned.Lifetime) wire.Attach {
	return wire.Attach{Hook: p.own(), Object: &wire.Object{}, Name: name, Lifetime: lifetime}
}

func (r answered) is(kind string) bool { return r.Error == wire.Interface+"."+kind }

const apps = `version: 1
rules:
- name: apps
  match: {uid: [1001, 1002]}
  allow:
    verbs: [attach, detach, replace, set]
    priority: 40-60
    quota: {members: 2, map-memory: 100000, instructions: 100, object-size: 100000}
- name: strict
  match: {uid: [1003]}
  allow: {verbs: [attach], objects: ["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}
- name: root
  match: {uid: [0]}
  allow: {verbs: [attach, detach, replace, set, lock, unlock, adopt, reload], exclusive: true, others: true}
`

func newGuarded(t *testing.T) *place {
	t.Helper()
	p := newPlace(t)
	p.write("policy.yaml", apps)
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAnotherUserMayDoWhatThePolicySaysAndNoMore(t *testing.T) {
	p := newGuarded(t)
	pass := []string{p.readable("pass")}
	fifty, five := uint32(50), uint32(5)
	ordinary := attaching(p, "a", owned.Permanent)
	if r, _ := p.ask(1001, asked{Method: "Attach", Files: pass}, ordinary); r.Error != "" {
		t.Fatalf("what is allowed: %s %s", r.Error, r.Parameters)
	}
	early := attaching(p, "b", owned.Permanent)
	early.Priority = &five
	alone := attaching(p, "b", owned.Permanent)
	alone.Exclusive = new(bool)
	*alone.Exclusive = true
	beside := attaching(p, "b", owned.Permanent)
	beside.Before = "a"
	set := wire.Set{Hook: p.own(), Name: "a"}
	set.Priority = &fifty
	for what, c := range map[string]struct {
		uid        uint32
		method     string
		parameters any
		files      []string
		rule       string
	}{
		"a user whom no rule names":    {1004, "Attach", attaching(p, "b", owned.Permanent), pass, ""},
		"a priority that is too low":   {1001, "Attach", early, pass, "apps"},
		"the hook to itself":           {1001, "Attach", alone, pass, "apps"},
		"a place before another":       {1001, "Attach", beside, pass, "apps"},
		"another's member, out":        {1002, "Detach", wire.Detach{Hook: p.own(), Name: "a", Foreign: true}, nil, "apps"},
		"another's member, replaced":   {1002, "Replace", wire.Replace{Hook: p.own(), Object: &wire.Object{}, Name: "a"}, pass, "apps"},
		"another's member, moved":      {1002, "Set", set, nil, "apps"},
		"a lock":                       {1001, "Lock", wire.Lock{Hook: p.own()}, nil, "apps"},
		"a reload":                     {1001, "Reload", wire.Empty{}, nil, "apps"},
		"an object that is not listed": {1003, "Attach", attaching(p, "b", owned.Permanent), pass, "strict"},
	} {
		r, _ := p.ask(c.uid, asked{Method: c.method, Files: c.files}, c.parameters)
		var e wire.ErrorParameters
		_ = json.Unmarshal(r.Parameters, &e)
		if !r.is("NotPermitted") || e.Rule != c.rule {
			t.Errorf("%s: %s %s, want rule %q", what, r.Error, r.Parameters, c.rule)
		}
	}
	for _, method := range []string{"List", "Collect"} {
		if r, _ := p.ask(1001, asked{Method: method}, map[string]bool{map[string]string{"List": "all", "Collect": "dry_run"}[method]: method == "List"}); !r.is("NotPermitted") {
			t.Errorf("%s: %s", method, r.Error)
		}
	}
	if got := p.chain(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the chain is %v", got)
	}
	if r, _ := p.ask(1001, asked{Method: "Detach"}, wire.Detach{Hook: p.own(), Name: "a"}); r.Error != "" {
		t.Errorf("its own: %s %s", r.Error, r.Parameters)
	}
	p.empty()
}

func TestQuotasHoldAlsoForTwoAtOnce(t *testing.T) {
	p := newGuarded(t)
	pass := []string{p.readable("pass")}
	var all sync.WaitGroup
	var mutex sync.Mutex
	made, denied := 0, 0
	for i := range 6 {
		cmd := p.asking(asked{Method: "Attach", Files: pass}, attaching(p, fmt.Sprintf("m%d", i), owned.Permanent))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1001, Gid: 1001}}
		process := p.veth.Near.Start(p, cmd)
		all.Go(func() {
			if !process.Lines.Scan() {
				return
			}
			var r answered
			_ = json.Unmarshal(process.Lines.Bytes(), &r)
			mutex.Lock()
			defer mutex.Unlock()
			switch {
			case r.Error == "":
				made++
			case r.is("NotPermitted"):
				denied++
			}
		})
	}
	all.Wait()
	if made != 2 || denied != 4 {
		t.Errorf("of six %d were made, and %d denied; the quota is 2", made, denied)
	}
	for _, name := range p.chain() {
		if r, _ := p.ask(1001, asked{Method: "Detach"}, wire.Detach{Hook: p.own(), Name: name}); r.Error != "" {
			t.Error(r.Error)
		}
	}
	p.empty()
}

func TestWhatAClientSaysOfItselfCountsForNothing(t *testing.T) {
	p := newGuarded(t)
	pass := []string{p.readable("pass")}
	for _, forged := range []string{"uid", "owner", "pid", "unit"} {
		parameters := map[string]any{"hook": p.own(), "object": wire.Object{}, "name": "a", forged: 0}
		if r, _ := p.ask(1004, asked{Method: "Attach", Files: pass}, parameters); r.Error != "org.varlink.service.InvalidParameter" {
			t.Errorf("with %q: %s %s", forged, r.Error, r.Parameters)
		}
	}
	if got := p.chain(); got != nil {
		t.Errorf("the chain is %v", got)
	}
}

// A claim finds its hook by the descriptor only, so its namespace is not known when the
// policy is asked.
func TestARuleThatDeniesANamespaceDeniesAClaim(t *testing.T) {
	p := newGuarded(t)
	r, holder := p.ask(1001, asked{Method: "Attach", Files: []string{p.readable("pass")}, More: true}, attaching(p, "a", owned.Held))
	if r.Error != "" {
		t.Fatalf("%s %s", r.Error, r.Parameters)
	}
	token := p.tokenOf(holder)
	defer token.Close()
	const heir = "- name: heir\n  match: {uid: [1002]}\n  allow: {verbs: [claim], others: true}\n"
	for _, c := range []struct{ rules, denied string }{
		{"- name: not the host\n  match: {netns: host}\n  deny: true\n" + heir, "not the host"},
		{"- name: not its own\n  match: {netns: own}\n  deny: true\n" + heir, "not its own"},
		{"- name: any\n  match: {netns: any, interface: [nothing]}\n  deny: true\n" + heir, ""},
	} {
		p.write("policy.yaml", "version: 1\nrules:\n"+c.rules)
		if err := p.daemon.Reload(); err != nil {
			t.Fatal(err)
		}
		r, _ := p.ask(1002, asked{Method: "Claim"}, wire.Claim{}, token)
		var e wire.ErrorParameters
		_ = json.Unmarshal(r.Parameters, &e)
		if r.is("NotPermitted") != (c.denied != "") || e.Rule != c.denied {
			t.Errorf("%s: %s %s", c.denied, r.Error, r.Parameters)
		}
	}
	holder.Kill()
	token.Close()
	p.empty()
}

func TestAReplayedDescriptorProvesNothing(t *testing.T) {
	p := newGuarded(t)
	pass := []string{p.readable("pass")}
	r, holder := p.ask(1001, asked{Method: "Attach", Files: pass, More: true}, attaching(p, "a", owned.Held))
	if r.Error != "" {
		t.Fatalf("%s %s", r.Error, r.Parameters)
	}
	// Root can take a copy of the token out of the holder.
	token := p.tokenOf(holder)
	defer token.Close()
	if r, _ := p.ask(1002, asked{Method: "Claim"}, wire.Claim{}, token); !r.is("NotPermitted") {
		t.Errorf("another user's claim: %s %s", r.Error, r.Parameters)
	}
	if r, _ := p.ask(1001, asked{Method: "Claim"}, wire.Claim{}, token); r.Error != "" {
		t.Errorf("the user's own claim: %s %s", r.Error, r.Parameters)
	}
	applied := wire.Detach{Hook: p.own(), Name: "a", Foreign: true}
	hook, ns := p.hook()
	applied.Hook = hook
	if err := p.connect().call("Detach", applied, nil, ns); err != nil {
		t.Fatal(err)
	}
	if r, _ := p.ask(1001, asked{Method: "Claim"}, wire.Claim{}, token); !r.is("NotFound") {
		t.Errorf("the token of what is gone: %s %s", r.Error, r.Parameters)
	}
	holder.Kill()
	token.Close()
	p.empty()
}

// tokenOf copies the token out of a process that holds a lease.
func (p *place) tokenOf(process *kerneltest.Process) *os.File {
	p.Helper()
	pidfd, err := unix.PidfdOpen(process.PID(), 0)
	if err != nil {
		p.Fatal(err)
	}
	defer unix.Close(pidfd)
	for n := range 64 {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		info, _ := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		if kernel.IsMap(kernel.FD(fd)) && strings.Contains(string(info), "frozen:\t1") && strings.Contains(string(info), "value_size:\t4\n") && strings.Contains(string(info), "max_entries:\t1\n") {
			return os.NewFile(uintptr(fd), "token")
		}
		unix.Close(fd)
	}
	p.Fatal("it has no token")
	return nil
}

// wrong are descriptors of all kinds of things, each fit for none of the places where
// one is taken.
func (p *place) wrong() map[string]*os.File {
	p.Helper()
	all := map[string]*os.File{}
	add := func(what string, f *os.File, err error) {
		p.Helper()
		if err != nil {
			p.Fatalf("%s: %v", what, err)
		}
		p.Cleanup(func() { f.Close() })
		all[what] = f
	}
	open := func(what, path string, flags int) {
		f, err := os.OpenFile(path, flags, 0)
		add(what, f, err)
	}
	r, w, err := os.Pipe()
	add("a pipe", r, err)
	add("the end of a pipe that is written to", w, err)
	open("a directory", p.etc, os.O_RDONLY)
	open("/dev/null", os.DevNull, os.O_RDWR)
	open("/dev/zero", "/dev/zero", os.O_RDONLY)
	open("a mount namespace", "/proc/self/ns/mnt", os.O_RDONLY)
	open("a file without rights", p.readable("pass"), unix.O_PATH)
	fifo := filepath.Join(p.etc, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		p.Fatal(err)
	}
	open("a fifo", fifo, os.O_RDWR)
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.Fatal(err)
	}
	add("a socket", os.NewFile(uintptr(sockets[0]), "socket"), nil)
	unix.Close(sockets[1])
	program := kerneltest.Pass(p, "wrong", nil)
	f, err := duplicate(program.FD())
	add("a program", f, err)
	link := p.foreignLink()
	f, err = duplicate(link.FD())
	add("an XDP link", f, err)
	counts := kerneltest.Load(p, "count", nil)
	f, err = duplicate(counts.Maps["packets"].FD())
	add("a map", f, err)
	counts.Close()
	return all
}

func duplicate(fd int) (*os.File, error) {
	own, err := kernel.FD(fd).Dup()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), "descriptor"), nil
}

// foreignLink attaches somebody else's program to another interface.
func (p *place) foreignLink() *xdp.Link {
	p.Helper()
	v := kerneltest.NewVeth(p)
	ns, err := xdp.OpenNamespace(v.Near.Path())
	if err != nil {
		p.Fatal(err)
	}
	defer ns.Close()
	h, err := ns.Hook(v.NearName, xdp.Auto)
	if err != nil {
		p.Fatal(err)
	}
	l, err := h.AttachLink(kerneltest.Pass(p, "foreign", nil))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { l.Close() })
	return l
}

func TestADescriptorOfTheWrongKindIsRefusedWhereverOneIsTaken(t *testing.T) {
	p := newPlace(t)
	wrong := p.wrong()
	hook, ns := p.hook()
	object := p.object("pass")
	for what, f := range wrong {
		c := p.connect() // each its own, so that none is to blame for another
		err := c.call("Attach", wire.Attach{Hook: hook, Name: "a", Object: &wire.Object{File: 1}}, nil, ns, f)
		if err == nil {
			t.Errorf("%s was taken for an object", what)
		}
		err = c.call("Attach", wire.Attach{Hook: hook, Name: "a", Object: &wire.Object{File: 1}}, nil, f, object)
		if !errors.Is(err, xdp.ErrNotFound) {
			t.Errorf("%s as a network namespace: %v", what, err)
		}
		if err = c.call("Claim", wire.Claim{}, nil, f); !errors.Is(err, xdp.ErrNotFound) {
			t.Errorf("%s as proof: %v", what, err)
		}
		stream, err := c.conn.Stream(t.Context(), wire.Interface+".Attach", wire.Attach{Hook: hook, Name: "a", Lifetime: owned.Held, Extension: new(1)}, ns, f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Next(t.Context(), nil); !errors.Is(decode(err), xdp.ErrInvalid) && !errors.Is(decode(err), owned.ErrInvalid) {
			t.Errorf("%s as a program that was loaded already: %v", what, err)
		}
		stream.Close()
		c = p.connect()
		for _, n := range []int{-1, 2, 1 << 40} {
			if err := c.call("Attach", wire.Attach{Hook: hook, Object: &wire.Object{File: n}}, nil, ns, f); err == nil {
				t.Errorf("descriptor %d was found", n)
			}
		}
		// The same number twice is not the same descriptor twice.
		if err := c.call("Attach", wire.Attach{Hook: hook, Object: &wire.Object{File: 0}}, nil, ns, f); err == nil {
			t.Error("a namespace was taken for an object")
		}
	}
	if got := p.chain(); got != nil {
		t.Errorf("the chain is %v", got)
	}
}

func TestAHostileObjectIsRefusedAndTheDaemonLives(t *testing.T) {
	p := newPlace(t)
	c := p.connect()
	hook, ns := p.hook()
	send := func(f *os.File) error {
		return c.call("Attach", wire.Attach{Hook: hook, Name: "a", Object: &wire.Object{File: 1, Name: "\x1b[2J" + strings.Repeat("x", 5000)}}, nil, ns, f)
	}
	file := func(b []byte) *os.File {
		f, err := os.CreateTemp(p.etc, "object")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		return f
	}
	huge := file(nil)
	if err := huge.Truncate(1 << 40); err != nil {
		t.Fatal(err)
	}
	if err := send(huge); !errors.Is(err, xdp.ErrInvalid) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("a terabyte of nothing: %v", err)
	}
	huge.Close()
	elf := bpfprog.ELF("count")
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		b := slices.Clone(elf)
		switch random.IntN(3) {
		case 0:
			b = b[:random.IntN(len(b))]
		case 1:
			for range 1 + random.IntN(20) {
				b[random.IntN(len(b))] = byte(random.Uint32())
			}
		default:
			for i := range b[:random.IntN(64)] {
				b[i] ^= byte(random.Uint32())
			}
		}
		f := file(b)
		if err := send(f); err == nil {
			if err := c.detach("a"); err != nil { // no harm was done to it
				t.Fatal(err)
			}
		}
		f.Close()
	}
	// One that is written to while it is read.
	f := file(elf)
	stop := make(chan bool)
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = f.Truncate(i % int64(len(elf)))
			_, _ = f.WriteAt(elf, 0)
		}
	})
	for range 50 {
		if send(f) == nil {
			if err := c.detach("a"); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	writer.Wait()
	f.Close()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatalf("afterwards: %v", err)
	}
	if err := c.detach("a"); err != nil {
		t.Fatal(err)
	}
	p.empty()
}

// A container has namespaces of its own, and what it takes to attach.
func TestAContainerCanNeitherTakeNorClaimTheHostsHook(t *testing.T) {
	p := newGuarded(t)
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	// The interface is in the container's network namespace, and it is root there.
	container := kerneltest.Command("breakout", p.veth.NearName)
	container.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	process := p.veth.Near.Start(p, container)
	var got []string
	for process.Lines.Scan() {
		got = append(got, process.Lines.Text())
	}
	if len(got) != 4 || slices.ContainsFunc(got, func(s string) bool { return !strings.Contains(s, "refused") }) {
		t.Errorf("the container's tries: %q", got)
	}
	// It asks as user 0, but from a container: the rule for root is not about it.
	p.write("policy.yaml", strings.Replace(apps, "match: {uid: [0]}", "match: {uid: [0], contained: false}", 1))
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	cmd := p.asking(asked{Method: "Detach"}, wire.Detach{Hook: p.own(), Name: "a", Foreign: true})
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if r, _ := p.answer(p.veth.Near.Start(p, cmd)); !r.is("NotPermitted") {
		t.Errorf("root of a container: %s %s", r.Error, r.Parameters)
	}
	if got := p.chain(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the chain is %v", got)
	}
	if err := c.detach("a"); err != nil {
		t.Error(err)
	}
	p.empty()
}

// breakout tries with no more than CAP_NET_ADMIN and CAP_BPF what a container can, and
// says of each whether it was refused.
func breakout(args []string) int {
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	h, err := ns.Hook(args[0], xdp.Auto)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	o, err := object.Read("drop.o", strings.NewReader(string(bpfprog.ELF("drop"))))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	loaded, err := o.Load(object.LoadOptions{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	all := []int{}
	for c := range 41 {
		if c != unix.CAP_NET_ADMIN && c != capBPF {
			all = append(all, c)
		}
	}
	if err := kerneltest.Drop(all...); err != nil {
		fmt.Println(err)
		return 1
	}
	say := func(what string, err error) {
		if err != nil {
			what += " was refused"
		}
		fmt.Println(what)
	}
	_, err = h.AttachLink(loaded.Program)
	say("attaching by link", err)
	say("attaching by netlink", h.Attach(loaded.Program, xdp.Any))
	say("detaching by netlink", h.Detach(xdp.Any))
	_, err = kernel.NextLinkID(0)
	say("looking for links", err)
	return 0
}

func TestASocketPathThatIsSomethingElseIsNotReplaced(t *testing.T) {
	p := newPlace(t)
	p.stop()
	precious := filepath.Join(p.etc, "precious")
	if err := os.WriteFile(precious, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, prepare := range map[string]func(string) error{
		"a file":      func(path string) error { return os.WriteFile(path, []byte("x"), 0o644) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"a link":      func(path string) error { return os.Symlink(precious, path) },
		"a link of the lock": func(path string) error {
			return os.Symlink(precious, path+".lock")
		},
	} {
		path := filepath.Join(p.etc, strings.ReplaceAll(what, " ", "-"))
		if err := prepare(path); err != nil {
			t.Fatal(err)
		}
		d := kerneltest.Command("serve", path, p.etc, p.bpffs)
		out := make(chan string, 1)
		process := kerneltest.Start(t, d)
		go func() {
			process.Lines.Scan()
			out <- process.Lines.Text()
		}()
		select {
		case said := <-out:
			if said == "ready" {
				t.Errorf("%s was replaced", what)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: no answer", what)
		}
		process.Kill()
	}
	if b, err := os.ReadFile(precious); err != nil || string(b) != "precious" {
		t.Errorf("a file that a link leads to is %q (%v)", b, err)
	}
	p.start()
	// A second daemon leaves the first one's socket alone.
	second := kerneltest.Start(t, kerneltest.Command("serve", p.socket, p.etc, p.bpffs))
	if second.Lines.Scan() && second.Lines.Text() == "ready" {
		t.Error("two daemons listen at one socket")
	}
	second.Kill()
	if _, err := net.Dial("unix", p.socket); err != nil {
		t.Errorf("the first one has lost its socket: %v", err)
	}
}

// A member that was denied does not come in by somebody else's change, which makes the
// whole program anew.
func TestAChangeOfAnotherBringsNothingInThatWasDenied(t *testing.T) {
	p := newGuarded(t)
	pass := []string{p.readable("pass")}
	if r, _ := p.ask(1001, asked{Method: "Attach", Files: pass}, attaching(p, "a", owned.Permanent)); r.Error != "" {
		t.Fatal(r.Error)
	}
	if r, _ := p.ask(1004, asked{Method: "Attach", Files: pass}, attaching(p, "denied", owned.Permanent)); !r.is("NotPermitted") {
		t.Fatal(r.Error)
	}
	// The object that a was loaded from is another one by now.
	if err := os.WriteFile(pass[0], bpfprog.ELF("drop"), 0o644); err != nil {
		t.Fatal(err)
	}
	other := p.readable("count")
	if r, _ := p.ask(1002, asked{Method: "Attach", Files: []string{other}}, attaching(p, "b", owned.Permanent)); r.Error != "" {
		t.Fatalf("%s %s", r.Error, r.Parameters)
	}
	hook, ns := p.hook()
	var got wire.GetReply
	c := p.connect()
	if err := c.call("Get", wire.Get{Hook: hook}, &got, ns); err != nil {
		t.Fatal(err)
	}
	var members []string
	for _, m := range got.Attachment.Chain.Members {
		members = append(members, fmt.Sprintf("%s by %d from %s", m.Name, m.Owner.UID, m.Function))
	}
	if fmt.Sprint(members) != "[a by 1001 from xdp_pass b by 1002 from count]" {
		t.Errorf("the members are %v", members)
	}
	for _, name := range []string{"a", "b"} {
		if err := c.detach(name); err != nil {
			t.Error(err)
		}
	}
	p.empty()
}
