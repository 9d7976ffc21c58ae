package daemontest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/xdp"
)

const capBPF = 39

// target is what an actor tries to break: a hook with the link that holds it, the
// link's pin, and a process that holds a member.
type target struct {
	Interface string
	Link      uint32
	Pin       string
	Holder    int
	// Keep are the only capabilities that it keeps, if there are any.
	Keep []int
}

// The ways that it tries, in their order.
var ways = []string{"link by id", "pin", "pidfd_getfd", "netlink off", "netlink attach", "LINK_CREATE"}

// act tries each of the ways that are named, with a program that it inherited, and says
// which succeeded.
func act(args []string) int {
	var t target
	if err := json.Unmarshal([]byte(args[0]), &t); err != nil {
		panic(err)
	}
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		panic(err)
	}
	hook, err := ns.Hook(t.Interface, xdp.Auto)
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
	program, err := ebpf.NewProgramFromFD(3)
	if err != nil {
		// Who may not look at a program can use its descriptor all the same.
		program = nil
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
		"pin":        func() error { return detach(kernel.OpenPin(t.Pin)) },
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
		"netlink off": func() error { return hook.Detach(xdp.Any) },
		"netlink attach": func() error {
			if program == nil {
				return unix.EPERM
			}
			return hook.Attach(program, xdp.Any)
		},
		"LINK_CREATE": func() error {
			fd, err := kernel.LinkCreateXDP(3, hook.Index(), 0)
			if err == nil {
				fd.Close()
			}
			return err
		},
	}
	for _, way := range args[1:] {
		result := "done"
		if err := tries[way](); err != nil {
			result = "refused"
		}
		fmt.Println(way + ": " + result)
	}
	return 0
}

// Who can break in: what the kernel lets each do to a hook that is held. What it lets
// full root do, or who may open root's pins, is told as drift.
func TestWhoCanBreakInIsRefusedOrTold(t *testing.T) {
	root := []int(nil)
	for _, actor := range []struct {
		name    string
		uid     uint32
		keep    []int
		ambient []uintptr
		// may are the ways that the kernel allows.
		may []string
	}{
		{"full root", 0, root, nil, []string{"link by id", "pin"}},
		{"uid 0 with only NET_ADMIN and BPF", 0, []int{unix.CAP_NET_ADMIN, capBPF}, nil, []string{"pin"}},
		{"another uid with NET_ADMIN and BPF", 1500, nil, []uintptr{unix.CAP_NET_ADMIN, capBPF}, nil},
		{"another uid with SYS_ADMIN", 1500, nil, []uintptr{unix.CAP_SYS_ADMIN}, []string{"link by id"}},
		{"another uid without a capability, with a program", 1500, nil, nil, nil},
	} {
		t.Run(actor.name, func(t *testing.T) {
			p := newPlace(t)
			c := p.connect()
			if err := c.attach("a", "pass"); err != nil {
				t.Fatal(err)
			}
			_, holder := p.ask(0, asked{Method: "Attach", Files: []string{p.readable("pass")}, More: true}, attaching(p, "held", owned.Held))
			program := kerneltest.Pass(t, "intruder", nil)
			file, err := duplicate(program.FD())
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			try := func(way string) bool {
				t.Helper()
				hook, ns := p.hook()
				var got wire.GetReply
				if err := c.call("Get", wire.Get{Hook: hook}, &got, ns); err != nil {
					t.Fatal(err)
				}
				pins, _ := filepath.Glob(filepath.Join(p.bpffs, "*", "link"))
				if got.Attachment == nil || len(pins) != 1 {
					t.Fatalf("attached is %v, pinned %v", got.Attachment, pins)
				}
				b, err := json.Marshal(target{p.veth.NearName, got.Attachment.LinkID, pins[0], holder.PID(), actor.keep})
				if err != nil {
					t.Fatal(err)
				}
				cmd := kerneltest.Command("actor", string(b), way)
				cmd.ExtraFiles = []*os.File{file}
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: actor.uid, Gid: actor.uid}, AmbientCaps: actor.ambient}
				process := p.veth.Near.Start(t, cmd)
				if !process.Lines.Scan() {
					t.Fatal("it said nothing")
				}
				return strings.HasSuffix(process.Lines.Text(), "done")
			}
			allowed := map[string]bool{}
			for _, way := range actor.may {
				allowed[way] = true
			}
			for _, way := range ways {
				if allowed[way] {
					continue
				}
				if try(way) {
					t.Errorf("%s succeeded", way)
				}
			}
			if got := strings.Join(p.chain(), ","); got != "a,held" {
				t.Errorf("the chain is %s", got)
			}
			for _, way := range ways {
				if !allowed[way] {
					continue
				}
				since := time.Now()
				if !try(way) {
					t.Errorf("%s was refused, which the kernel does not do", way)
					continue
				}
				p.wantDrift(since)
				if err := c.call("Collect", wire.Collect{}, nil); err != nil {
					t.Error(err)
				}
				if err := c.attach("a", "pass"); err != nil {
					t.Fatalf("attached anew: %v", err)
				}
			}
			holder.Kill()
			eventually(t, "only a to be left", func() bool { return strings.Join(p.chain(), ",") == "a" })
			if err := c.detach("a"); err != nil {
				t.Error(err)
			}
			p.empty()
		})
	}
}

// wantDrift waits until the daemon has told of drift at the near end.
func (p *place) wantDrift(since time.Time) {
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
		if r.Event.Kind == wire.Drift {
			return
		}
	}
}
