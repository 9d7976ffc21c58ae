package daemontest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/internal/wire"
)

const capBPF = 39

// target is what an actor tries to break: a hook with the link that holds it, the
// link's pin, and a process that holds a member.
type target struct {
	Interface string
	Link      uint32
	Pin       string
	Socket    string
	Holder    int
	// Keep are the only capabilities that it keeps, if there are any.
	Keep []int
}

// The ways that it tries, in their order. After the last there is nothing to try.
var ways = []string{"link by id", "update by id", "pin", "pidfd_getfd", "netlink off", "netlink attach", "LINK_CREATE", deleteInterface}

const deleteInterface = "delete the interface"

// inherited is the number of the program's descriptor.
const inherited = 3

// captive is act in a network namespace of its own, which the interface comes to.
func captive(args []string) int {
	fmt.Println("here")
	bufio.NewScanner(os.Stdin).Scan()
	return act(args)
}

// act tries each of the ways that are named, with a program that it inherited, and says
// which succeeded.
func act(args []string) int {
	var t target
	if err := json.Unmarshal([]byte(args[0]), &t); err != nil {
		panic(err)
	}
	conn, err := rtnl.Dial(-1)
	if err != nil {
		panic(err)
	}
	device, err := conn.Device(t.Interface)
	if err != nil {
		panic(err)
	}
	if len(t.Keep) > 0 {
		var drop []int
		for c := range 41 {
			keep := false
			for _, k := range t.Keep {
				keep = keep || c == k
			}
			if !keep {
				drop = append(drop, c)
			}
		}
		if err := kerneltest.Drop(drop...); err != nil {
			panic(err)
		}
	}
	detach := func(fd kernel.FD, err error) error {
		if err != nil {
			return err
		}
		defer fd.Close()
		return kernel.LinkDetach(fd)
	}
	tries := map[string]func() error{
		"link by id": func() error { return detach(kernel.LinkByID(t.Link)) },
		"update by id": func() error {
			fd, err := kernel.LinkByID(t.Link)
			if err != nil {
				return err
			}
			defer fd.Close()
			return kernel.LinkUpdateAny(fd, inherited)
		},
		"pin": func() error { return detach(kernel.OpenPin(t.Pin)) },
		"pidfd_getfd": func() error {
			pidfd, err := unix.PidfdOpen(t.Holder, 0)
			if err != nil {
				return err
			}
			defer unix.Close(pidfd)
			for n := range 64 {
				if fd, getErr := unix.PidfdGetfd(pidfd, n, 0); getErr == nil {
					if kernel.IsLink(kernel.FD(fd)) {
						if _, isXDP := kernel.XDPLinkInfo(kernel.FD(fd)); isXDP == nil {
							return detach(kernel.FD(fd), nil)
						}
					}
					unix.Close(fd)
				} else if getErr == unix.EPERM {
					err = getErr
				}
			}
			if err == nil {
				err = unix.ENOENT // the holder has no link of the hook
			}
			return err
		},
		"netlink off":    func() error { return conn.SetXDP(device.Index, -1, 0) },
		"netlink attach": func() error { return conn.SetXDP(device.Index, inherited, 0) },
		deleteInterface:  func() error { return conn.Delete(device.Index) },

		"remove the pin":              func() error { return os.Remove(t.Pin) },
		"plant a link in the state":   func() error { return os.Symlink("/", filepath.Join(filepath.Dir(t.Pin), "planted")) },
		"plant a hook in the state":   func() error { return os.Mkdir(filepath.Join(filepath.Dir(filepath.Dir(t.Pin)), "planted"), 0o700) },
		"remove the socket":           func() error { return os.Remove(t.Socket) },
		"plant a link for the socket": func() error { return os.Symlink("/dev/null", t.Socket+".lock2") },
		"hold the socket's lock": func() error {
			f, err := os.Open(t.Socket + ".lock")
			if err == nil {
				f.Close()
			}
			return err
		},
		"LINK_CREATE": func() error {
			fd, err := kernel.LinkCreateXDP(inherited, device.Index, 0)
			if err == nil {
				fd.Close()
			}
			return err
		},
	}
	for _, way := range args[1:] {
		if err := tries[way](); err != nil {
			fmt.Printf("refused: %s: %v\n", way, err)
			continue
		}
		fmt.Println("done: " + way)
	}
	return 0
}

// Who can break in: what the kernel lets each do to a hook that is held. What it lets
// full root do, or who may open root's pins, or has the interface, is told as drift.
func TestWhoCanBreakInIsRefusedOrTold(t *testing.T) {
	root := []int(nil)
	for _, actor := range []struct {
		name    string
		uid     uint32
		keep    []int
		ambient []uintptr
		// apart tells that it is root of a user namespace, with the interface in its
		// network namespace.
		apart bool
		// may are the ways that the kernel allows.
		may []string
	}{
		{"full root", 0, root, nil, false, []string{"link by id", "update by id", "pin", deleteInterface}},
		{"uid 0 with only NET_ADMIN and BPF", 0, []int{unix.CAP_NET_ADMIN, capBPF}, nil, false, []string{"pin", deleteInterface}},
		{"another uid with NET_ADMIN and BPF", 1500, nil, []uintptr{unix.CAP_NET_ADMIN, capBPF}, false, []string{deleteInterface}},
		{"another uid with SYS_ADMIN", 1500, nil, []uintptr{unix.CAP_SYS_ADMIN}, false, []string{"link by id", "update by id"}},
		{"another uid without a capability, with a program", 1500, nil, nil, false, nil},
		{"root of a user namespace that has the interface", 1500, nil, nil, true, []string{deleteInterface}},
	} {
		t.Run(actor.name, func(t *testing.T) {
			p := newPlace(t)
			c := p.connect()
			if err := c.attach("a", "pass"); err != nil {
				t.Fatal(err)
			}
			_, holder := p.ask(0, asked{Method: "Attach", Files: []string{p.readable("pass")}, More: true}, attaching(p, "held", owned.Held))
			file, err := duplicate(kerneltest.Pass(t, "intruder", nil).FD())
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			try := func(ways ...string) []string {
				t.Helper()
				cmd := kerneltest.Command("actor", append([]string{p.target(c, holder, actor.keep)}, ways...)...)
				cmd.ExtraFiles = []*os.File{file}
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: actor.uid, Gid: actor.uid}, AmbientCaps: actor.ambient}
				if !actor.apart {
					return p.results(p.veth.Near.Start(t, cmd), len(ways))
				}
				cmd.Env = append(os.Environ(), kerneltest.CommandEnv("captive"))
				own := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(actor.uid), Size: 1}}
				cmd.SysProcAttr = &syscall.SysProcAttr{
					Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: own, GidMappings: own, Credential: &syscall.Credential{NoSetGroups: true},
				}
				process := kerneltest.Start(t, cmd)
				if !process.Lines.Scan() {
					t.Fatal("it said nothing")
				}
				ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", process.PID()))
				if err != nil {
					t.Fatal(err)
				}
				defer ns.Close()
				if err := p.veth.Near.Conn.Move(p.veth.Near.Device(t, p.veth.NearName).Index, int(ns.Fd())); err != nil {
					t.Fatal(err)
				}
				if _, err := fmt.Fprintln(process.Input); err != nil {
					t.Fatal(err)
				}
				return p.results(process, len(ways))
			}
			gone := slices.Contains(actor.may, deleteInterface)
			var refused []string
			for _, way := range ways {
				if !slices.Contains(actor.may, way) {
					refused = append(refused, way)
				}
			}
			since := time.Now()
			if actor.apart { // one process has the interface, and takes it with it
				refused = append(refused, deleteInterface)
			}
			results := try(refused...)
			if actor.apart {
				if last := results[len(results)-1]; last != "done: "+deleteInterface {
					t.Error(last)
				}
				results = results[:len(results)-1]
			}
			for _, r := range results {
				if !strings.HasPrefix(r, "refused") {
					t.Error(r)
				}
			}
			if !actor.apart {
				if got := strings.Join(p.chain(), ","); got != "a,held" {
					t.Errorf("the chain is %s", got)
				}
				for _, way := range actor.may {
					since = time.Now()
					if got := try(way); got[0] != "done: "+way {
						t.Errorf("%s, which the kernel does not do", got[0])
						continue
					}
					if way == deleteInterface {
						break
					}
					p.wantDrift(since, "")
					p.attachAnew(c)
				}
			}
			if gone {
				p.wantDrift(since, "is gone")
			}
			holder.Kill()
			if gone {
				eventually(t, "what is left to be collected", func() bool {
					if err := c.call("Collect", wire.Collect{}, nil); err != nil {
						t.Fatal(err)
					}
					names, err := filepath.Glob(filepath.Join(p.bpffs, "*", "*"))
					return err == nil && len(names) == 0
				})
				p.empty()
				return
			}
			eventually(t, "only a to be left", func() bool { return strings.Join(p.chain(), ",") == "a" })
			if err := c.detach("a"); err != nil {
				t.Error(err)
			}
			p.empty()
		})
	}
}

// Whoever is not root changes nothing in the directories of the state and the socket.
func TestAnotherUserPlantsNothingInTheDaemonsDirectories(t *testing.T) {
	p := newPlace(t)
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	file, err := duplicate(kerneltest.Pass(t, "intruder", nil).FD())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	_, holder := p.ask(0, asked{Method: "Get"}, wire.Get{Hook: p.own()})
	ways := []string{
		"remove the pin", "plant a link in the state", "plant a hook in the state",
		"remove the socket", "plant a link for the socket", "hold the socket's lock",
	}
	cmd := kerneltest.Command("actor", append([]string{p.target(c, holder, nil)}, ways...)...)
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1500, Gid: 1500}, AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, capBPF}}
	for _, r := range p.results(p.veth.Near.Start(t, cmd), len(ways)) {
		if !strings.HasPrefix(r, "refused") {
			t.Error(r)
		}
	}
	if err := c.detach("a"); err != nil {
		t.Error(err)
	}
	p.empty()
}

// target is what an actor is told of the hook.
func (p *place) target(c *client, holder *kerneltest.Process, keep []int) string {
	p.Helper()
	hook, ns := p.hook()
	var got wire.GetReply
	if err := c.call("Get", wire.Get{Hook: hook}, &got, ns); err != nil {
		p.Fatal(err)
	}
	pins, _ := filepath.Glob(filepath.Join(p.bpffs, "*", "link"))
	if got.Attachment == nil || len(pins) != 1 {
		p.Fatalf("attached is %v, pinned %v", got.Attachment, pins)
	}
	b, err := json.Marshal(target{p.veth.NearName, got.Attachment.LinkID, pins[0], p.socket, holder.PID(), keep})
	if err != nil {
		p.Fatal(err)
	}
	return string(b)
}

// results are what an actor says of so many ways.
func (p *place) results(actor *kerneltest.Process, n int) []string {
	p.Helper()
	var all []string
	for range n {
		if !actor.Lines.Scan() {
			p.Fatalf("it said no more than %q", all)
		}
		all = append(all, actor.Lines.Text())
	}
	return all
}

// attachAnew attaches a where what was attached has been broken.
func (p *place) attachAnew(c *client) {
	p.Helper()
	if err := c.call("Collect", wire.Collect{}, nil); err != nil {
		p.Error(err)
	}
	if p.chain() != nil { // its link is there still, and runs something else
		if err := c.detach("a"); err != nil {
			p.Error(err)
		}
	}
	if err := c.attach("a", "pass"); err != nil {
		p.Fatalf("attached anew: %v", err)
	}
}

// wantDrift waits until the daemon has told of drift at the near end, in such words.
func (p *place) wantDrift(since time.Time, words string) {
	p.Helper()
	p.wantEvent(since, wire.Drift, words)
}

// wantEvent waits until the daemon has told of something at the near end, in such words.
func (p *place) wantEvent(since time.Time, kind wire.EventKind, words string) wire.Event {
	p.Helper()
	s, err := p.connect().conn.Stream(p.Context(), wire.Interface+".Watch", wire.Watch{Since: &since, Interface: p.veth.NearName})
	if err != nil {
		p.Fatal(err)
	}
	defer s.Close()
	for {
		var r wire.WatchReply
		if _, err := s.Next(p.Context(), &r); err != nil {
			p.Fatal(err)
		}
		if r.Event.Kind == kind && strings.Contains(r.Event.Message, words) {
			return r.Event
		}
	}
}
