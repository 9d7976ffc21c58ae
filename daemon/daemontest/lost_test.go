package daemontest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	holdfastclient "github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/daemon"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// serve is a daemon that is a process of its own.
func serve(args []string) int {
	d, err := daemon.Start(daemon.Config{
		Socket: args[0], Dir: args[1], State: arbiter.Options{Dir: args[2]}, Version: "test",
		Log:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Ready: func() { fmt.Println("ready") },
	})
	if err == nil {
		err = d.Serve(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// startDaemon starts one, which answers when this returns.
func (p *place) startDaemon() *kerneltest.Process {
	p.Helper()
	d := kerneltest.Start(p, kerneltest.Command("serve", p.socket, p.etc, p.bpffs))
	if !d.Lines.Scan() || d.Lines.Text() != "ready" {
		p.Fatalf("the daemon said %q", d.Lines.Text())
	}
	return d
}

// crowd is what a process with clients is told to do.
type crowd struct {
	Socket, Netns, Interface string
	// Name begins the names of its members, Clients are how many, and Mark is what
	// the first of them leaves in packets: each has two marks.
	Name    string
	Clients int
	Mark    byte
}

// report is what the clients have in the end.
type report struct {
	Permanent, Held []string
	Changes         int
	Problems        []string
}

// serving has clients attach and detach until its input ends, says what they have, and
// holds it until the input of a second line.
func serving(args []string) int {
	var c crowd
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var mutex sync.Mutex
	var r report
	clients := make([]*crowdClient, c.Clients)
	for i := range clients {
		one := &crowdClient{crowd: c, name: fmt.Sprintf("%s%d", c.Name, i), mark: c.Mark + byte(2*i)}
		clients[i] = one
		all.Go(func() {
			err := one.run(ctx)
			mutex.Lock()
			defer mutex.Unlock()
			if err != nil {
				r.Problems = append(r.Problems, fmt.Sprintf("%s: %v", one.name, err))
			}
			r.Permanent = append(r.Permanent, slices.Collect(maps.Keys(one.permanent))...)
			if one.handle != nil {
				r.Held = append(r.Held, one.handle.Name())
			}
			r.Changes += one.changes
		})
	}
	input := bufio.NewScanner(os.Stdin)
	fmt.Println("begun")
	input.Scan()
	cancel()
	all.Wait()
	b, _ := json.Marshal(r)
	fmt.Println(string(b))
	input.Scan()
	for _, one := range clients {
		if one.handle != nil && one.handle.Err() != nil {
			fmt.Fprintf(os.Stderr, "%s has ended: %v\n", one.name, one.handle.Err())
		}
	}
	return 0
}

// crowdClient has a pair of permanent members, which come and go together, and one
// that it holds.
type crowdClient struct {
	crowd
	name      string
	mark      byte
	permanent map[string]bool
	handle    arbiter.Handle
	changes   int
}

func (c *crowdClient) object(mark byte) (*object.Object, error) {
	o, err := object.Read("mark.o", bytes.NewReader(bpfprog.ELF("mark")))
	if err != nil {
		return nil, err
	}
	return o, o.Set(fmt.Sprintf("mark=%d", mark))
}

func (c *crowdClient) run(ctx context.Context) error {
	client, err := holdfastclient.Open(ctx, holdfastclient.Options{Socket: c.Socket, Patience: 2 * time.Minute})
	for errors.Is(err, holdfastclient.ErrNoDaemon) {
		time.Sleep(5 * time.Millisecond)
		client, err = holdfastclient.Open(ctx, holdfastclient.Options{Socket: c.Socket, Patience: 2 * time.Minute})
	}
	if err != nil {
		return err
	}
	ns, err := xdp.OpenNamespace(c.Netns)
	if err != nil {
		return err
	}
	hook, err := ns.Hook(c.Interface, xdp.Auto)
	if err != nil {
		return err
	}
	c.permanent = map[string]bool{}
	// What has begun is brought to its end, so that there is no doubt about it. On a
	// machine that is busy, others may be at it for longer than the daemon waits.
	insist := func(f func() error) error {
		for {
			if err := f(); !errors.Is(err, arbiter.ErrLockTimeout) {
				return err
			}
		}
	}
	apply := func(changes ...arbiter.Change) error {
		var applied *arbiter.Applied
		err := insist(func() (err error) {
			applied, err = client.Apply(context.Background(), arbiter.Transaction{Hook: hook, Changes: changes})
			return err
		})
		if err != nil {
			return err
		}
		c.changes++
		if len(applied.Held) > 0 {
			c.handle = applied.Held[0]
		}
		if applied.Acknowledge != nil {
			// If the daemon ends now, somebody may ask again. Nobody does.
			_ = applied.Acknowledge()
		}
		return nil
	}
	for ctx.Err() == nil {
		switch held := rand.IntN(2) == 0; {
		case held && c.handle == nil:
			o, err := c.object(200 + c.mark%50)
			if err != nil {
				return err
			}
			priority := uint32(60)
			err = apply(arbiter.Change{
				Change: owned.Change{Op: owned.Add, Name: c.name + "-held", Priority: &priority, Lifetime: owned.Held},
				Object: o, Load: markOptions,
			})
			if err != nil {
				return fmt.Errorf("hold: %w", err)
			}
		case held:
			if err := c.handle.Err(); err != nil {
				return fmt.Errorf("what is held has ended: %w", err)
			}
			err := insist(func() error { return c.handle.Remove(context.Background(), hook) })
			if err == nil {
				err = c.handle.Close()
			}
			if err != nil {
				return fmt.Errorf("let go: %w", err)
			}
			c.handle = nil
			c.changes++
		default:
			var changes []arbiter.Change
			names := []string{c.name + "-a", c.name + "-b"}
			for i, name := range names {
				change := arbiter.Change{Change: owned.Change{Op: owned.Remove, Name: name}}
				if !c.permanent[name] {
					o, err := c.object(c.mark + byte(i))
					if err != nil {
						return err
					}
					priority := uint32(50)
					change.Op, change.Priority, change.Object, change.Load = owned.Add, &priority, o, markOptions
				}
				changes = append(changes, change)
			}
			if err := apply(changes...); err != nil {
				return fmt.Errorf("%s: %w", changes[0].Op, err)
			}
			for _, name := range names {
				if c.permanent[name] {
					delete(c.permanent, name)
				} else {
					c.permanent[name] = true
				}
			}
		}
	}
	return nil
}

var markOptions = object.LoadOptions{Program: object.Choice{Name: "xdp_mark"}}

// start starts the clients.
func (c crowd) start(p *place) *kerneltest.Process {
	p.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		p.Fatal(err)
	}
	process := kerneltest.Start(p, kerneltest.Command("crowd", string(b)))
	if !process.Lines.Scan() {
		p.Fatal("the clients said nothing")
	}
	return process
}

// TestNothingIsLostHoweverOftenTheDaemonIsKilled has 50 clients attach and detach, at
// hooks of which one is flooded, while the daemon is killed and started again.
func TestNothingIsLostHoweverOftenTheDaemonIsKilled(t *testing.T) {
	p := newPlace(t)
	p.stop()
	d := p.startDaemon()

	// At the flooded hook the first member is always there, and one that drops nothing.
	guard, err := (&crowdClient{}).object(1)
	if err != nil {
		t.Fatal(err)
	}
	first := uint32(1)
	a := p.app()
	applied, err := a.client.Apply(t.Context(), arbiter.Transaction{Hook: a.hook, Changes: []arbiter.Change{{
		Change: owned.Change{Op: owned.Add, Name: "guard", Priority: &first}, Object: guard, Load: markOptions,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := applied.Acknowledge(); err != nil {
		t.Fatal(err)
	}
	const firstMark = 10
	crowds := []crowd{{Netns: p.veth.Near.Path(), Interface: p.veth.NearName, Name: "flooded", Clients: 4, Mark: firstMark}}
	others := []*kerneltest.Veth{}
	for i := range 5 {
		v := kerneltest.NewVeth(t)
		others = append(others, v)
		n := 9
		if i == 0 {
			n = 10
		}
		crowds = append(crowds, crowd{Netns: v.Near.Path(), Interface: v.NearName, Name: fmt.Sprintf("other%d-", i), Clients: n, Mark: firstMark})
	}
	var processes []*kerneltest.Process
	for _, c := range crowds {
		c.Socket = p.socket
		processes = append(processes, c.start(p))
	}
	traffic := kerneltest.StartMarked(t, p.veth)
	rounds := kerneltest.HostRounds(200)
	for round := range rounds {
		before := traffic.Arrived()
		// Between its start and its end it is caught at whatever it does.
		time.Sleep(rand.N(40 * time.Millisecond))
		d.Kill()
		if round%20 == 10 {
			// A holder dies while there is no daemon.
			mortal := crowd{Socket: p.socket, Netns: others[0].Near.Path(), Interface: others[0].NearName, Name: fmt.Sprintf("mortal%d-", round), Clients: 1, Mark: 100}
			d = p.startDaemon()
			m := mortal.start(p)
			time.Sleep(rand.N(30 * time.Millisecond))
			d.Kill()
			m.Kill()
		}
		d = p.startDaemon()
		traffic.AwaitArrived(before + 10)
	}
	packets := traffic.End()
	wrong := 0
	for _, packet := range packets {
		if why := notAState(packet.Marks, firstMark, 4); why != "" {
			if wrong++; wrong < 10 {
				t.Errorf("packet %d met %v: %s", packet.Number, packet.Marks, why)
			}
		}
	}
	t.Logf("%d packets, %d of them met a wrong chain", len(packets), wrong)
	if len(packets) < 10*rounds {
		t.Errorf("only %d packets arrived in %d rounds", len(packets), rounds)
	}
	t.Logf("COUNT daemon kills %d", rounds)

	changes := 0
	for i, process := range processes {
		fmt.Fprintln(process.Input)
		if !process.Lines.Scan() {
			t.Fatalf("the clients of %s said nothing", crowds[i].Name)
		}
		var r report
		if err := json.Unmarshal(process.Lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		for _, problem := range r.Problems {
			t.Error(problem)
		}
		changes += r.Changes
		want := slices.Sorted(slices.Values(append(r.Permanent, r.Held...)))
		if i == 0 {
			want = append(want, "guard")
		}
		// Mortals may have left permanent members: those are there, and theirs.
		there := func() []string {
			names := p.chainAt(crowds[i].Netns, crowds[i].Interface)
			return slices.DeleteFunc(names, func(s string) bool {
				return len(s) > 6 && s[:6] == "mortal" && s[len(s)-5:] != "-held"
			})
		}
		slices.Sort(want)
		deadline := time.Now().Add(20 * time.Second)
		for !slices.Equal(slices.Sorted(slices.Values(there())), want) {
			if time.Now().After(deadline) {
				t.Errorf("%s: the chain is %v, want %v", crowds[i].Name, there(), want)
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	t.Logf("%d changes", changes)
	for _, process := range processes {
		process.Kill()
	}
	for _, c := range crowds {
		eventually(t, "what the dead held to be gone", func() bool {
			return !slices.ContainsFunc(p.chainAt(c.Netns, c.Interface), func(s string) bool { return len(s) > 5 && s[len(s)-5:] == "-held" })
		})
		p.clear(c.Netns, c.Interface)
	}
	d.Kill()
	p.empty()
}

// notAState tells why no chain leaves such marks: the guard comes first, and of each
// pair there are both or none.
func notAState(marks []byte, first byte, clients int) string {
	if len(marks) == 0 || marks[0] != 1 {
		return "the guard was not there"
	}
	for i := range clients {
		a, b := first+byte(2*i), first+byte(2*i)+1
		if slices.Contains(marks, a) != slices.Contains(marks, b) {
			return fmt.Sprintf("of the pair of client %d one was there", i)
		}
	}
	return ""
}

// at calls f with a hook and an arbiter of its own.
func (p *place) at(netns, iface string, f func(*arbiter.Arbiter, *xdp.Hook)) {
	p.Helper()
	a, err := arbiter.Open(arbiter.Options{Dir: p.bpffs})
	if err != nil {
		p.Fatal(err)
	}
	defer a.Close()
	ns, err := xdp.OpenNamespace(netns)
	if err != nil {
		p.Fatal(err)
	}
	defer ns.Close()
	h, err := ns.Hook(iface, xdp.Auto)
	if err != nil {
		p.Fatal(err)
	}
	f(a, h)
}

// chainAt are the names of a chain's members that have not ended.
func (p *place) chainAt(netns, iface string) (names []string) {
	p.Helper()
	p.at(netns, iface, func(a *arbiter.Arbiter, h *xdp.Hook) {
		st, err := a.At(h)
		if err != nil {
			p.Fatal(err)
		}
		if st == nil || st.Chain == nil {
			return
		}
		for _, m := range st.Chain.Members {
			if !m.Ended {
				names = append(names, m.Name)
			}
		}
	})
	return names
}

// clear takes all members out.
func (p *place) clear(netns, iface string) {
	p.Helper()
	p.at(netns, iface, func(a *arbiter.Arbiter, h *xdp.Hook) {
		var changes []arbiter.Change
		for _, name := range p.chainAt(netns, iface) {
			changes = append(changes, arbiter.Change{Change: owned.Change{Op: owned.Remove, Name: name}})
		}
		applied, err := a.Apply(context.Background(), arbiter.Transaction{Hook: h, Changes: changes, Foreign: true})
		if err != nil {
			if errors.Is(err, xdp.ErrNotAttached) {
				return
			}
			p.Fatal(err)
		}
		if applied.Acknowledge != nil {
			if err := applied.Acknowledge(); err != nil {
				p.Fatal(err)
			}
		}
	})
}
