package peertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/cli"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

const (
	contenders = 4 // of each kind; together they fit into one chain
	rounds     = 3
)

// priorityOf tells whose member it is, and of which round.
func priorityOf(contender, round int) uint32 { return uint32(100*(contender+1) + round) }

// In each round a contender adds a member and takes it out again, the last one
// but for the odd contenders, whose last member stays.
func stays(contender, round int) bool { return round == rounds-1 && contender%2 == 1 }

// changeOneHookAtOnce: Holdfast's processes and those of xdp-loader do. What a
// process was told is done is done, whoever won: a member that was added is
// there until who added it takes it out.
func changeOneHookAtOnce(t *testing.T) {
	needChains(t)
	for name, peers := range map[string][]string{
		"version 2": {"1.3", "1.5", "1.3", "1.5"},
		"version 3": {"1.6", "1.6", "1.6", "1.6"},
	} {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			var want []uint32
			if name == "version 3" {
				// Whoever comes first decides on the version: it must not be
				// Holdfast, nor anybody in between.
				first := loaderTool{"libxdp 1.6", kerneltest.OpenPeer(t, "1.6")}
				if err := first.load(t, s, batch{1, 1, onPass, ""}); err != nil {
					t.Fatal(err)
				}
				want = append(want, 1)
			}
			var c contest
			filter := kerneltest.ObjectFile(t, "filter")
			for i := range contenders {
				peer := kerneltest.OpenPeer(t, peers[i])
				c.run(func() error { return c.holdfast(s, i) })
				c.run(func() error { return c.loader(s, peer, filter, contenders+i) })
			}
			c.wait(t)
			want = append(want, c.left...)
			slices.Sort(want)
			var got []uint32
			for _, m := range s.chain(t).members {
				got = append(got, uint32(m.priority))
			}
			if !slices.Equal(got, want) {
				t.Errorf("members %d are there, want %d", got, want)
			}
			t.Logf("COUNT contested changes %d", 2*rounds*2*contenders-len(c.left))
			t.Logf("xdp-loader gave up %d times", c.gaveUp)
			if err := (library{}).removeAll(t, s); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// contest is what its processes have told so far.
type contest struct {
	sync.WaitGroup
	mu     sync.Mutex
	errs   []error
	left   []uint32 // the priorities of the members that stay
	gaveUp int      // how often an xdp-loader did nothing, because others were faster
}

func (c *contest) run(f func() error) {
	c.Go(func() {
		if err := f(); err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.errs = append(c.errs, err)
		}
	})
}

func (c *contest) wait(t *testing.T) {
	t.Helper()
	c.Wait()
	if err := errors.Join(c.errs...); err != nil {
		t.Error(err)
	}
}

func (c *contest) stays(priority uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = append(c.left, priority)
}

// holdfast is one contender, a process with the library.
func (c *contest) holdfast(s *site, contender int) error {
	cmd := kerneltest.Command("contend", s.bpffs, s.Near.Path(), s.NearName, strconv.Itoa(contender))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("contender %d: %w\n%s", contender, err, out)
	}
	if stays(contender, rounds-1) {
		c.stays(priorityOf(contender, rounds-1))
	}
	return nil
}

var commands = kerneltest.Commands{
	// bpffs, namespace, interface, number of the contender
	"contend": func(args []string) int { return command(args, contend) },
	// bpffs, namespace, interface, priority
	"add":      func(args []string) int { return command(args, add) },
	"holdfast": func([]string) int { return cli.Main(cli.SystemEnv()) },
}

// command opens what a command works on and runs it with the number that is its
// last argument.
func command(args []string, run func(context.Context, *libxdp.Chains, *xdp.Hook, int) error) int {
	err := func() error {
		number, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		chains, err := libxdp.Open(libxdp.Options{BPFFS: args[0], LockTimeout: time.Minute})
		if err != nil {
			return err
		}
		defer chains.Close()
		ns, err := xdp.OpenNamespace(args[1])
		if err != nil {
			return err
		}
		defer ns.Close()
		hook, err := ns.Hook(args[2], xdp.Native)
		if err != nil {
			return err
		}
		return run(ctx, chains, hook, number)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// add adds the filter with that priority.
func add(ctx context.Context, chains *libxdp.Chains, hook *xdp.Hook, priority int) error {
	o, err := object.Read("filter.o", bytes.NewReader(bpfprog.ELF("filter")))
	if err != nil {
		return err
	}
	p, actions := uint32(priority), chain.Set(chain.Pass, chain.Drop)
	_, err = chains.Add(ctx, hook, libxdp.Addition{Object: o, Priority: &p, ProceedOn: &actions})
	return err
}

func contend(ctx context.Context, chains *libxdp.Chains, hook *xdp.Hook, contender int) error {
	for round := range rounds {
		priority := priorityOf(contender, round)
		if err := add(ctx, chains, hook, int(priority)); err != nil {
			return fmt.Errorf("add %d: %w", priority, err)
		}
		id, err := find(chains, hook, priority)
		if err != nil {
			return err
		}
		if id == 0 {
			return fmt.Errorf("the member with priority %d was added and is not there", priority)
		}
		if stays(contender, round) {
			return nil
		}
		if _, err := chains.Remove(ctx, hook, libxdp.Target{ID: id}); err != nil {
			return fmt.Errorf("remove %d: %w", priority, err)
		}
		if id, err = find(chains, hook, priority); err != nil {
			return err
		}
		if id != 0 {
			return fmt.Errorf("the member with priority %d was removed and is there", priority)
		}
	}
	return nil
}

// find returns the program's id of the member with that priority, 0 if there is
// none.
func find(chains *libxdp.Chains, hook *xdp.Hook, priority uint32) (uint32, error) {
	c, err := chains.Read(hook)
	if err != nil {
		return 0, err
	}
	if c.Problem != "" {
		return 0, fmt.Errorf("look for the member with priority %d: %s", priority, c.Problem)
	}
	for _, m := range c.Members {
		if m.Priority == priority {
			return m.Program.ID, nil
		}
	}
	return 0, nil
}

// loader is one contender that runs an xdp-loader for each change. xdp-loader
// gives up where others are faster; then it is run again.
func (c *contest) loader(s *site, l loader, filter string, contender int) error {
	chains, err := libxdp.Open(libxdp.Options{BPFFS: s.bpffs, LockTimeout: time.Minute})
	if err != nil {
		return err
	}
	defer chains.Close()
	ns, err := xdp.OpenNamespace(s.Near.Path())
	if err != nil {
		return err
	}
	defer ns.Close()
	hook, err := ns.Hook(s.NearName, xdp.Native)
	if err != nil {
		return err
	}
	for round := range rounds {
		priority := priorityOf(contender, round)
		load := []string{"load", s.NearName, filter, "-P", fmt.Sprint(priority), "-A", onDropAndPass}
		if err := c.insist(s, l, load, chains, hook, priority, true); err != nil {
			return err
		}
		if stays(contender, round) {
			c.stays(priority)
			continue
		}
		id, err := find(chains, hook, priority)
		if err != nil {
			return err
		}
		unload := []string{"unload", s.NearName, "-i", fmt.Sprint(id)}
		if err := c.insist(s, l, unload, chains, hook, priority, false); err != nil {
			return err
		}
	}
	return nil
}

const insistence = 100

// insist runs an xdp-loader until it does what it is told. Whatever it returns,
// the member is there afterwards, or not, as it says.
func (c *contest) insist(s *site, l loader, args []string, chains *libxdp.Chains, hook *xdp.Hook, priority uint32, want bool) error {
	for range insistence {
		cmd := l.Command(s.bpffs, args...)
		var out []byte
		err := s.Near.Do(func() (err error) {
			out, err = cmd.CombinedOutput()
			return err
		})
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return err
		}
		id, findErr := find(chains, hook, priority)
		if findErr != nil {
			return findErr
		}
		told := want
		if exit != nil {
			told = !want
			c.mu.Lock()
			c.gaveUp++
			c.mu.Unlock()
		}
		if there := id != 0; there != told {
			return fmt.Errorf("after %v the member with priority %d is there: %t\n%s", args, priority, there, out)
		}
		if exit == nil {
			return nil
		}
	}
	return fmt.Errorf("%v: gave up %d times", args, insistence)
}
