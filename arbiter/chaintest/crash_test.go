package chaintest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// request is a transaction for another process to make.
type request struct {
	Dir, Netns, Interface string
	Engine                arbiter.Engine
	Stats                 *bool
	Steps                 []step
}

// step is one change. What is loaded leaves the mark.
type step struct {
	Op            owned.Op
	Name          string
	Mark          byte
	Priority      *uint32
	Before, After string
	ProceedOn     *chain.Actions
	Lifetime      owned.Lifetime
	// Frags chooses a program that copes with packets of several buffers.
	Frags bool
}

func (s step) change() (arbiter.Change, error) {
	c := arbiter.Change{Change: owned.Change{
		Op: s.Op, Name: s.Name, Priority: s.Priority, Before: s.Before, After: s.After, ProceedOn: s.ProceedOn, Lifetime: s.Lifetime,
	}}
	if s.Mark == 0 {
		return c, nil
	}
	var err error
	c.Load = markOptions(s.Frags)
	c.Object, err = markObject(s.Mark)
	return c, err
}

// transact makes a transaction, says so, and holds what it got until its input
// ends.
func transact(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var r request
	if err := json.Unmarshal([]byte(args[0]), &r); err != nil {
		return fail(err)
	}
	a, err := arbiter.Open(arbiter.Options{Dir: r.Dir})
	if err != nil {
		return fail(err)
	}
	defer a.Close()
	applied, err := r.apply(a)
	if err != nil {
		return fail(err)
	}
	fmt.Println("done")
	if applied.Acknowledge != nil {
		if err := applied.Acknowledge(); err != nil {
			return fail(err)
		}
	}
	if len(applied.Held) > 0 {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	}
	return 0
}

func (r request) apply(a *arbiter.Arbiter) (*arbiter.Applied, error) {
	ns, err := xdp.OpenNamespace(r.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	h, err := ns.Hook(r.Interface, xdp.Auto)
	if err != nil {
		return nil, err
	}
	t := arbiter.Transaction{Hook: h, Engine: r.Engine, Stats: r.Stats}
	for _, s := range r.Steps {
		c, err := s.change()
		if err != nil {
			return nil, err
		}
		t.Changes = append(t.Changes, c)
	}
	return a.Apply(context.Background(), t)
}

func (p *place) request(engine arbiter.Engine, steps ...step) request {
	return request{Dir: p.dir, Netns: p.veth.Near.Path(), Interface: p.veth.NearName, Engine: engine, Steps: steps}
}

// make makes the transaction here.
func (p *place) make(r request) error {
	applied, err := r.apply(p.arbiter)
	if err != nil || applied.Acknowledge == nil {
		return err
	}
	return applied.Acknowledge()
}

// hold has another process make the transaction and hold what it adds.
func (p *place) hold(r request) *kerneltest.Process {
	p.Helper()
	cmd := exec.Command("/proc/self/exe", r.encode())
	cmd.Env = append(os.Environ(), kerneltest.CommandEnv("transact"))
	h := kerneltest.Start(p, cmd)
	if !h.Lines.Scan() || h.Lines.Text() != "done" {
		p.Fatalf("the holder said %q", h.Lines.Text())
	}
	return h
}

func (r request) encode() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// markPacket is a packet that the members leave their marks in.
func markPacket() []byte {
	b := make([]byte, 14+20+8+8+1+16)
	b[12], b[13] = 0x08, 0x00 // IPv4
	b[14] = 4<<4 | 5
	b[14+9] = 17 // UDP
	b[14+20+2], b[14+20+3] = kerneltest.MarkPort>>8, kerneltest.MarkPort&0xff
	return b
}

// run runs the hook's program on a packet, and returns what came out; false where
// nothing is attached.
func (p *place) run() (verdict uint32, out []byte, ok bool) {
	p.Helper()
	s, err := p.hook.Query()
	if err != nil {
		p.Fatal(err)
	}
	at := s.At(xdp.Auto)
	if at == nil {
		return 0, nil, false
	}
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(at.Program.ID))
	if err != nil {
		p.Fatal(err)
	}
	defer program.Close()
	o := ebpf.RunOptions{Data: markPacket(), DataOut: make([]byte, 256)}
	if verdict, err = program.Run(&o); err != nil {
		p.Fatal(err)
	}
	return verdict, o.DataOut, true
}

// met are the marks that a packet gets at the hook, nil where nothing is
// attached.
func (p *place) met() []byte {
	p.Helper()
	_, out, ok := p.run()
	if !ok {
		return nil
	}
	const count = 14 + 20 + 8 + 8
	return slices.Clone(out[count+1 : count+1+int(out[count])])
}

// verdict is what becomes of a packet.
func (p *place) verdict() uint32 {
	p.Helper()
	verdict, _, ok := p.run()
	if !ok {
		p.Fatal("nothing is attached")
	}
	return verdict
}

func pointer[T any](v T) *T { return &v }

// crashes are the transactions that are killed at every call: what is there
// before, and what packets meet before and after.
var crashes = []struct {
	name          string
	there         []step // made by the test, one by one
	steps         []step
	engine        arbiter.Engine // of the transaction, where it is not that of the chain
	before, after []byte
	// held has another process hold the first member.
	held bool
	// live has it swept in a virtual machine, where it takes a live chain to
	// learn something, and everywhere in all of them.
	live, everywhere bool
	// stats has the chain count from then on.
	stats bool
	// frags needs packets of several buffers, which are of Linux 5.18.
	frags bool
}{
	{name: "the first member", steps: []step{{Op: owned.Add, Name: "a", Mark: 1}}, after: []byte{1}},
	{
		name: "the second member", live: true, there: []step{{Op: owned.Add, Name: "a", Mark: 1}},
		steps:  []step{{Op: owned.Add, Name: "b", Mark: 2}},
		before: []byte{1}, after: []byte{1, 2},
	},
	{
		name: "a member between two", there: two,
		steps:  []step{{Op: owned.Add, Name: "c", Mark: 3, Before: "b"}},
		before: []byte{1, 2}, after: []byte{1, 3, 2},
	},
	{name: "a member leaves", there: two, steps: []step{{Op: owned.Remove, Name: "a"}}, before: []byte{1, 2}, after: []byte{2}},
	{
		name: "the last members leave", live: true, there: two,
		steps:  []step{{Op: owned.Remove, Name: "a"}, {Op: owned.Remove, Name: "b"}},
		before: []byte{1, 2},
	},
	{
		name: "a replace of the only member", there: two[:1],
		steps:  []step{{Op: owned.Replace, Name: "a", Mark: 4}},
		before: []byte{1}, after: []byte{4},
	},
	{
		name: "several changes", there: append(two[:2:2], step{Op: owned.Add, Name: "c", Mark: 3}),
		steps: []step{
			{Op: owned.Replace, Name: "a", Mark: 4},
			{Op: owned.Remove, Name: "b"},
			{Op: owned.Add, Name: "d", Mark: 5, Priority: pointer[uint32](10)},
			{Op: owned.Set, Name: "c", ProceedOn: pointer(chain.Set(chain.Drop))},
		},
		before: []byte{1, 2, 3}, after: []byte{5, 4, 3}, everywhere: true,
	},
	{
		name: "the chain begins to count", there: two, stats: true,
		steps:  []step{{Op: owned.Add, Name: "c", Mark: 3}},
		before: []byte{1, 2}, after: []byte{1, 2, 3},
	},
	{
		name: "a move", there: append(two[:2:2], step{Op: owned.Add, Name: "c", Mark: 3}),
		steps:  []step{{Op: owned.Set, Name: "c", Before: "a"}},
		before: []byte{1, 2, 3}, after: []byte{3, 1, 2},
	},
	{
		name: "another dispatcher, with a member that is held", live: true, held: true, frags: true,
		there:  []step{{Op: owned.Add, Name: "a", Mark: 1, Frags: true}, {Op: owned.Add, Name: "b", Mark: 2, Frags: true}},
		steps:  []step{{Op: owned.Add, Name: "c", Mark: 3}},
		before: []byte{1, 2}, after: []byte{1, 2, 3},
	},
	{
		name: "a fused chain becomes live, with a member that is held", there: two, held: true,
		engine: arbiter.Live, steps: []step{{Op: owned.Add, Name: "c", Mark: 3}},
		before: []byte{1, 2}, after: []byte{1, 2, 3}, everywhere: true,
	},
}

var two = []step{{Op: owned.Add, Name: "a", Mark: 1}, {Op: owned.Add, Name: "b", Mark: 2}}

func TestATransactionThatIsKilledWasMadeWhollyOrNotAtAll(t *testing.T) {
	kinds := engines(t)
	for _, engine := range kinds {
		for _, c := range crashes {
			wanted := engine
			if c.engine != "" {
				if engine == c.engine || !slices.Contains(kinds, c.engine) {
					continue // there is nothing to change
				}
				wanted = c.engine
			}
			if c.frags && engine != arbiter.Live {
				continue // there is no dispatcher
			}
			if kerneltest.InMachine() {
				// The machine's own kernel sweeps all of them.
				if wanted != arbiter.Live || !c.everywhere && (!c.live || kerneltest.Rounds(4) < 4) {
					continue
				}
			}
			t.Run(fmt.Sprintf("%s/%s", engine, c.name), func(t *testing.T) {
				kerneltest.NoLeaks(t)
				kerneltest.FillDispatcher(t)
				var p *place
				var r request
				crash.Sweep{
					Sample:     kerneltest.OneOfElsewhere(3),
					BeforeOnly: kerneltest.InMachine(),
					Setup: func(t *testing.T) crash.Command {
						p = placeIn(t)
						for i, s := range c.there {
							if c.held && i == 0 {
								s.Lifetime = owned.Held
								p.hold(p.request(engine, s))
								continue
							}
							if err := p.make(p.request(engine, s)); err != nil {
								t.Fatal(err)
							}
						}
						if got := p.met(); !slices.Equal(got, c.before) {
							t.Fatalf("before, packets met %v, want %v", got, c.before)
						}
						r = p.request(wanted, c.steps...)
						if c.stats {
							r.Stats = &c.stats
						}
						return crash.Command{
							Path: "/proc/self/exe", Args: []string{r.encode()}, Counts: visible,
							Env: append(os.Environ(), kerneltest.CommandEnv("transact")),
						}
					},
					Check: func(t *testing.T, run crash.Run) {
						check := crashed{place: p, request: r, before: c.before, after: c.after}
						check.check(strings.Contains(run.Stdout, "done"), run)
					},
				}.Run(t)
			})
		}
	}
}

// crashed is what a killed process left.
type crashed struct {
	*place
	request       request
	before, after []byte
}

func (c crashed) check(acknowledged bool, run crash.Run) {
	c.Helper()
	if !run.Reached && !acknowledged {
		c.Errorf("undisturbed it was not acknowledged: %v", run)
	}
	got := c.met()
	made := slices.Equal(got, c.after)
	if !made && (acknowledged || !slices.Equal(got, c.before)) {
		c.Errorf("packets meet %v, want %v or, if it was not acknowledged (%v), %v", got, c.after, acknowledged, c.before)
	}
	// Half of the time the next one to come is gc.
	if run.Reached && len(run.Points)%2 == 0 {
		if _, err := c.arbiter.GC(context.Background(), false); err != nil {
			c.Errorf("gc: %v", err)
		}
		if after := c.met(); !slices.Equal(got, after) {
			c.Errorf("after gc packets meet %v, before %v", after, got)
		}
	}
	// The same again succeeds, or is refused because it is made already.
	err := c.make(c.request)
	switch {
	case err == nil:
	case made && (errors.Is(err, owned.ErrExists) || errors.Is(err, owned.ErrNoMember) || errors.Is(err, xdp.ErrNotAttached)):
	default:
		c.Errorf("again: %v", err)
	}
	if got := c.met(); !slices.Equal(got, c.after) {
		c.Errorf("again: packets meet %v, want %v", got, c.after)
	}
	c.removeAll()
}

// removeAll takes everything off, after which nothing is left.
func (p *place) removeAll() {
	p.Helper()
	var all []step
	for _, name := range p.names() {
		all = append(all, step{Op: owned.Remove, Name: name})
	}
	if len(all) > 0 {
		r := p.request("", all...)
		ns, err := xdp.OpenNamespace(r.Netns)
		if err != nil {
			p.Fatal(err)
		}
		defer ns.Close()
		t := arbiter.Transaction{Hook: p.hook, Foreign: true}
		for _, s := range all {
			c, _ := s.change()
			t.Changes = append(t.Changes, c)
		}
		applied, err := p.arbiter.Apply(context.Background(), t)
		if err != nil {
			p.Fatal(err)
		}
		if err := applied.Acknowledge(); err != nil {
			p.Fatal(err)
		}
	}
	p.gone()
}

// gone checks that nothing is attached, and that nothing is left of what was.
func (p *place) gone() {
	p.Helper()
	if _, err := p.arbiter.GC(context.Background(), false); err != nil {
		p.Error(err)
	}
	if got := p.met(); got != nil {
		p.Errorf("packets still meet %v", got)
	}
	names, err := os.ReadDir(p.dir)
	if err != nil {
		p.Fatal(err)
	}
	for _, n := range names {
		if n.IsDir() {
			p.Errorf("%s is left", n.Name())
		}
	}
}

// visible leaves out the calls that leave nothing for others.
func visible(p crash.Point) bool {
	if !crash.Changes(p) {
		return false
	}
	switch p.Op {
	case "BPF_TOKEN_CREATE", "BPF_MAP_CREATE", "BPF_BTF_LOAD", "BPF_PROG_LOAD", "BPF_PROG_TEST_RUN":
		return false
	}
	switch p.Call {
	case "flock", "setns", "close", "exit_group":
		return false
	}
	return true
}

// markOptions choose one of the object's programs.
func markOptions(frags bool) object.LoadOptions {
	name := "xdp_mark"
	if frags {
		name += "_frags"
	}
	return object.LoadOptions{Program: object.Choice{Name: name}}
}

func markObject(mark byte) (*object.Object, error) {
	o, err := readObject("mark")
	if err != nil {
		return nil, err
	}
	return o, o.Set(fmt.Sprintf("mark=%d", mark))
}
