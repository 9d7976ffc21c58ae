package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/rates"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) topCommand() *cobra.Command {
	var namespace, order, filter string
	var all bool
	var interval time.Duration
	var count int
	c := &cobra.Command{
		Use:   "top [IF...]",
		Short: "Show live what programs do to packets, and what that takes",
		Long: `Show, once a second, each hook that has a program and each member of its chain:
packets a second, nanoseconds a packet, the share of a processor, the shares of
verdicts, and who holds it.

The kernel counts for whole hooks, and is told to only while this runs: all BPF
programs of the machine take some nanoseconds longer meanwhile. It can't count for
the members of a chain; where that was asked for (--stats of attach, or 'holdfast
set IF --stats on') the chain does. Of others there is a dash.

Not on a terminal, or with --count, it prints a table every time, and with -o json
a line. On a terminal these keys do something:

  s        sort by the next column, and p by place in the chain again
  /        show only what contains a text, until Esc
  space    pause
  arrows   go up and down
  q        end`,
		Example: `  holdfast top
  holdfast top eth0 --interval 5s
  holdfast top --count 1 --sort cpu
  holdfast top -o json --all-netns`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return completeInterfaces(0)
		},
		RunE: func(c *cobra.Command, args []string) error {
			o := topOptions{filter: filter, interval: interval, netns: all}
			var err error
			switch {
			case interval < 100*time.Millisecond:
				err = usagef("--interval %s: a tenth of a second is the shortest", interval)
			case count < 0:
				err = usagef("--count %d: it is how many tables are printed, or 0 for no end", count)
			default:
				o.order, err = parseTopOrder(order)
			}
			if err != nil {
				return err
			}
			state, namespaces, err := a.lookInto(c.Context(), namespace, all, args)
			if err != nil {
				return err
			}
			defer state.Close()
			// Each look opens them anew: one that is open outlives what it is for.
			closeAll(namespaces)
			stop, err := xdp.CountRuns()
			if err != nil {
				a.log.Warn("the kernel does not count, so only what chains count is shown", "why", err)
			} else {
				defer stop.Close()
			}
			l := &looker{app: a, state: state, spec: namespace, names: args, netns: all, runs: err == nil}
			if in, out, ok := a.terminal(); ok && count == 0 && !a.json() {
				return liveTop(c.Context(), in, out, l.look, o)
			}
			ctx, cancel := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer cancel()
			return a.plainTop(ctx, l.look, o, count)
		},
	}
	flags := c.Flags()
	flags.StringVar(&namespace, "netns", "", "network namespace to look into: a name, a path or a pid")
	flags.BoolVar(&all, "all-netns", false, "look into all network namespaces that can be found")
	flags.DurationVar(&interval, "interval", time.Second, "how long to wait from one look to the next")
	flags.IntVar(&count, "count", 0, "print so many tables and end")
	flags.StringVar(&order, "sort", "place", "what comes first: place, packets, ns, cpu or drop")
	flags.StringVar(&filter, "filter", "", "show only what contains this")
	completeFlag(c, "sort", topOrders...)
	return c
}

// terminal is where the command was called on one.
func (a *app) terminal() (in, out *os.File, ok bool) {
	out, ok = a.env.Stdout.(*os.File)
	if !ok || a.env.Stdin == nil {
		return nil, nil, false
	}
	for _, f := range []*os.File{a.env.Stdin, out} {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
			return nil, nil, false
		}
	}
	return a.env.Stdin, out, true
}

// plainTop prints what happens from one look to the next, until it was so often, or
// somebody ends it.
func (a *app) plainTop(ctx context.Context, look func(context.Context) (rates.Sample, error), o topOptions, count int) error {
	before, err := look(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := look(ctx)
		if err != nil {
			return err
		}
		if err := a.printTop(now.Time, o.rows(rates.Between(before, now)), o); err != nil {
			return err
		}
		if n == count {
			return nil
		}
		before = now
	}
}

func (a *app) printTop(at time.Time, rows []rates.Row, o topOptions) error {
	if a.json() {
		b, err := json.Marshal(envelope{envelopeVersion, "top", struct {
			Time time.Time   `json:"time"`
			Rows []rates.Row `json:"rows"`
		}{at, append([]rates.Row{}, rows...)}})
		if err == nil {
			_, err = fmt.Fprintf(a.env.Stdout, "%s\n", b)
		}
		return err
	}
	fmt.Fprintln(a.env.Stdout, at.Local().Format(time.DateTime))
	for _, line := range o.lines(rows, terminalWidth(a.env.Stdout)) {
		fmt.Fprintln(a.env.Stdout, line)
	}
	_, err := io.WriteString(a.env.Stdout, "\n")
	return err
}

// looker looks at hooks again and again.
type looker struct {
	*app
	state arbiter.Service
	// spec is the namespace to look into, and netns tells that it is all of them.
	spec  string
	netns bool
	names []string
	// namespaces are open during a look.
	namespaces []*xdp.Namespace
	// runs tells that the kernel counts.
	runs bool

	// known is what was found where, until something is otherwise there, and looks how
	// often that was looked at: who holds what is found anew once in a while, because
	// it takes all processes to tell.
	known map[place]hookStatus
	order []place
	looks int
}

// place is a hook, and what ran there.
type place struct {
	namespace string
	index     int
	mode      xdp.Mode
	program   uint32
}

const looksBetween = 30

// look is how things are now.
func (l *looker) look(context.Context) (_ rates.Sample, err error) {
	if l.namespaces, err = l.app.namespaces(l.spec, l.netns); err != nil {
		return rates.Sample{}, err
	}
	defer closeAll(l.namespaces)
	changed := l.known == nil || l.looks >= looksBetween
	for _, ns := range l.namespaces {
		if changed {
			break
		}
		same, err := l.same(ns)
		if err != nil {
			return rates.Sample{}, err
		}
		changed = !same
	}
	if changed {
		if err := l.find(); err != nil {
			return rates.Sample{}, err
		}
	}
	l.looks++
	s := rates.Sample{Time: time.Now()}
	for _, p := range l.order {
		h, ok, err := l.read(p)
		if err != nil {
			return s, err
		}
		if ok {
			s.Hooks = append(s.Hooks, h)
		}
	}
	return s, nil
}

// find finds out what there is, and who holds it.
func (l *looker) find() error {
	found, err := statusOf(l.state, l.namespaces, l.names)
	if err != nil {
		return err
	}
	hooks, err := l.withChains(l.namespaces, found)
	if err != nil {
		return err
	}
	l.known, l.order, l.looks = map[place]hookStatus{}, nil, 0
	for _, h := range hooks {
		if h.Lifetime == arbiter.Defunct {
			continue
		}
		p := place{h.NamespaceID, h.Index, h.Mode, h.Program.ID}
		l.known[p] = h
		l.order = append(l.order, p)
	}
	return nil
}

// same tells whether the namespace has the programs that were found there.
func (l *looker) same(ns *xdp.Namespace) (bool, error) {
	interfaces, err := ns.Interfaces()
	if err != nil {
		return false, err
	}
	there := 0
	for _, i := range interfaces {
		if !l.wants(i.Name) {
			continue
		}
		for _, m := range []xdp.Mode{xdp.Native, xdp.Generic, xdp.Offload} {
			id := i.Programs.At(m)
			if id == 0 {
				continue
			}
			if _, ok := l.known[place{ns.ID(), i.Index, m, id}]; !ok {
				return false, nil
			}
			there++
		}
	}
	for p := range l.known {
		if p.namespace == ns.ID() {
			there--
		}
	}
	return there == 0, nil
}

func (l *looker) wants(name string) bool {
	for _, n := range l.names {
		if n == name {
			return true
		}
	}
	return len(l.names) == 0
}

// read reads what was counted at a hook; false where it has just gone.
func (l *looker) read(p place) (rates.Hook, bool, error) {
	s := l.known[p]
	if s.Status.Chain != nil {
		now, err := l.at(p)
		if err != nil {
			return rates.Hook{}, false, err
		}
		if now == nil || now.Chain == nil {
			return rates.Hook{}, false, nil
		}
		now.Holders, now.Pins, now.Lifetime, now.Namespace = s.Holders, s.Pins, s.Lifetime, s.Namespace
		s = newHook(*now)
	}
	h := rates.Hook{
		Namespace: p.namespace, Index: p.index, Interface: s.Interface, Mode: mode(s.Status), By: by(s),
		ProgramID: s.Program.ID, Program: s.Program.Name, LoadedAt: s.Program.LoadedAt,
	}
	if l.netns {
		h.NamespaceName = s.Namespace
	}
	if l.runs {
		if run, err := xdp.ReadRun(s.Program.ID); err == nil {
			h.Run = &run
		}
	}
	switch c := s.Chain.(type) {
	case ownedChain:
		h.Packets = c.Packets
		if c.alone() {
			break
		}
		for _, m := range c.Members {
			h.Members = append(h.Members, rates.Member{ID: m.ID, Name: m.Name, By: ownerText(m.Owner), Counters: m.Counters})
		}
	case *chainStatus:
		for _, m := range c.Members {
			h.Members = append(h.Members, rates.Member{ID: m.Program.ID, Name: m.Name, By: "-"})
		}
	}
	return h, true, nil
}

// at asks for what is at the hook now, nil for nothing.
func (l *looker) at(p place) (*arbiter.Status, error) {
	for _, ns := range l.namespaces {
		if ns.ID() != p.namespace {
			continue
		}
		h, err := ns.HookAt(p.index, p.mode)
		if err != nil {
			return nil, nil // the interface has gone, which the next look finds
		}
		s, err := l.state.At(h)
		if errors.Is(err, xdp.ErrNotFound) {
			return nil, nil
		}
		return s, err
	}
	return nil, nil
}
