package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/trace"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) traceCommand() *cobra.Command {
	var t tracing
	var namespace, file string
	c := &cobra.Command{
		Use:   "trace IF [FILTER]",
		Short: "Tell which programs packets meet, and what each returns",
		Long: `Tell of a number of packets which members of the interface's chain each met, what
each returned, and which of them dropped it. It works on the hooks of others, too,
and changes nothing: the kernel calls programs for looking beside what is looked
at, until the command ends, however it ends.

FILTER is made of these, joined by and, or, not and parentheses:

  ip  ip6  arp  tcp  udp  sctp  icmp  icmp6  vlan [ID]  proto N  ether proto N
  [src|dst] host ADDRESS   [src|dst] net NET   [src|dst] port N[-M]   src|dst NET

The members of a fused chain are one program. What this returned is told, and which
of them can have returned it.`,
		Example: `  holdfast trace eth0
  holdfast trace eth0 udp and dst port 53 and src 10.0.0.0/8
  holdfast trace eth0 --count 100 --write dropped.pcapng 'tcp port 443'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("IF is missing")
			}
			return nil
		},
		ValidArgsFunction: completeInterface,
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			if t.filter, err = trace.ParseFilter(strings.Join(args[1:], " ")); err != nil {
				return &usageError{err}
			}
			switch {
			case t.count == 0:
				return usagef("--count 0: it must be a packet at least")
			case t.duration <= 0:
				return usagef("--duration %s: it must be longer than nothing", t.duration)
			case t.snap > trace.MaxSnap:
				return usagef("--snap %d: it is %d at most", t.snap, trace.MaxSnap)
			}
			ns, err := xdp.OpenNamespace(namespace)
			if err != nil {
				return err
			}
			defer ns.Close()
			if t.hook, err = ns.Hook(args[0], xdp.Auto); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			if t.state, err = a.look(ctx); err != nil {
				return err
			}
			defer t.state.Close()
			t.app, t.print = a, a.printPacket
			if file == "" {
				return t.run(ctx)
			}
			return t.intoFile(ctx, file)
		},
	}
	flags := c.Flags()
	flags.Uint32VarP(&t.count, "count", "c", 10, "after how many packets it ends")
	flags.DurationVar(&t.duration, "duration", 30*time.Second, "after which time it ends")
	flags.Uint32Var(&t.snap, "snap", 256, "how many bytes of each packet are kept")
	flags.StringVarP(&file, "write", "w", "", "write the packets to this file as well, in the format pcapng; only its owner can read it then")
	flags.StringVar(&namespace, "netns", "", "network namespace of the interface: a name, a path or a pid")
	return c
}

// tracing is a trace of a hook, whose chain may change meanwhile.
type tracing struct {
	*app
	state    arbiter.Service
	hook     *xdp.Hook
	filter   *trace.Filter
	count    uint32
	snap     uint32
	duration time.Duration
	print    func(*trace.Packet, []trace.Member) error

	told uint32
	lost uint64
	// problems are those of the chain that were warned of.
	problems []string
}

// intoFile writes the packets to a file as well. What a packet holds is nobody's
// business but who asked for it.
func (t *tracing) intoFile(ctx context.Context, name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// A file that was there has kept its mode. A pipe or a terminal is left as it is.
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		if err := f.Chmod(0o600); err != nil {
			return err
		}
	}
	buffer := bufio.NewWriter(f)
	w, err := trace.NewWriter(buffer, t.hook.Name())
	if err != nil {
		return err
	}
	t.print = func(p *trace.Packet, members []trace.Member) error {
		if err := w.Write(p, members); err != nil {
			return err
		}
		return t.printPacket(p, members)
	}
	err = t.run(ctx)
	return errors.Join(err, buffer.Flush(), f.Close())
}

// lookAgain is how often the chain is compared with what is traced.
const lookAgain = time.Second

func (t *tracing) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, t.duration)
	defer cancel()
	what, err := t.target()
	for err == nil && t.told < t.count && ctx.Err() == nil {
		what, err = t.follow(ctx, what)
	}
	if err != nil {
		return err
	}
	if t.lost > 0 {
		t.log.Warn("more packets came than could be told: ask for less with a filter", "left out", t.lost)
	}
	if t.told < t.count {
		t.log.Info("that was all in this time", "packets", t.told)
	}
	return nil
}

// follow traces what runs at the hook until that is another; then it returns
// what runs instead.
func (t *tracing) follow(ctx context.Context, what trace.Options) (next trace.Options, err error) {
	tr, err := t.open(&what)
	if err != nil {
		return what, err
	}
	defer tr.Close()
	defer func() {
		lost, lostErr := tr.Lost()
		t.lost += lost
		err = errors.Join(err, lostErr)
	}()
	t.log.Info("tracing "+t.hook.Name(), "program", what.Program, "members", len(what.Members), "packets", what.Count, "for", t.duration)
	t.warn(tr)
	look := time.Now().Add(lookAgain)
	// Where packets never end, Next does not tell that the context has.
	for ctx.Err() == nil {
		until, cancel := context.WithDeadline(ctx, look)
		p, err := tr.Next(until)
		cancel()
		switch {
		case err == nil:
			t.told++
			if err := t.print(p, tr.Members()); err != nil {
				return what, err
			}
		case errors.Is(err, io.EOF), ctx.Err() != nil:
			return what, nil
		case !errors.Is(err, context.DeadlineExceeded):
			return what, err
		}
		// All may have been told: then nothing is looked at anew.
		if t.told == t.count || time.Now().Before(look) {
			continue
		}
		now, err := t.target()
		if err != nil {
			return what, err
		}
		if now.Program != what.Program || !slices.Equal(now.Members, what.Members) {
			t.log.Info("the chain has changed, and is looked at anew")
			return now, nil
		}
		look = time.Now().Add(lookAgain)
	}
	return what, nil
}

// openAttempts is how often what runs is read, while others replace it.
const openAttempts = 5

// open begins to trace. What has been replaced since it was read is read again.
func (t *tracing) open(what *trace.Options) (*trace.Trace, error) {
	for attempt := 1; ; attempt++ {
		what.Count = t.count - t.told
		tr, err := trace.Open(*what)
		if !errors.Is(err, xdp.ErrNotFound) || attempt == openAttempts {
			return tr, err
		}
		if *what, err = t.target(); err != nil {
			return nil, err
		}
	}
}

// warn says which members can't be watched.
func (t *tracing) warn(tr *trace.Trace) {
	members := tr.Members()
	for i, m := range members {
		why := tr.Unseen(i)
		switch {
		case errors.Is(why, trace.ErrFused):
			t.log.Warn("the members are fused into one program: what each returned can't be told, and who ended the chain not always")
			return
		case why != nil:
			t.log.Warn("what a member returns can't be told", "member", m.Name, "error", why)
		}
	}
}

// target reads what runs at the hook.
func (t *tracing) target() (trace.Options, error) {
	o := trace.Options{Hook: t.hook, Filter: t.filter, Snap: t.snap}
	s, err := t.state.At(t.hook)
	if err != nil {
		return o, err
	}
	if s == nil {
		return o, &xdp.Error{Op: "trace", Hook: t.hook.String(), Err: xdp.ErrNotAttached, Detail: "no packet meets a program there", Hint: "look with `holdfast status`"}
	}
	o.Program = s.Program.ID
	switch {
	case s.Chain != nil:
		for _, m := range s.Chain.Members {
			if !m.Ended {
				o.Members = append(o.Members, trace.Member{Name: m.Name, ProgramID: m.Program.ID, ProceedOn: m.ProceedOn})
			}
		}
		return o, nil
	case s.Program.Name == libxdp.DispatcherName:
		chains, err := t.chains()
		if err != nil {
			return o, err
		}
		defer chains.Close()
		c, err := chains.Read(t.hook)
		if err != nil {
			return o, err
		}
		if c.Problem != "" && !slices.Contains(t.problems, c.Problem) {
			t.problems = append(t.problems, c.Problem)
			t.log.Warn("the members of the chain can't be told, so only its result is", "problem", c.Problem)
		}
		if isChain(c) {
			for _, m := range c.Members {
				o.Members = append(o.Members, trace.Member{Name: m.Name, ProgramID: m.Program.ID, ProceedOn: m.ProceedOn})
			}
			return o, nil
		}
	}
	name := s.Name
	if name == "" {
		name = s.Program.Name
	}
	o.Members = []trace.Member{{Name: name, ProgramID: o.Program}}
	return o, nil
}

// packetView is a packet as JSON has it.
type packetView struct {
	Time    time.Time     `json:"time"`
	Summary string        `json:"summary"`
	Length  int           `json:"length"`
	Verdict trace.Verdict `json:"verdict"`
	Result  string        `json:"result"`
	// EndedBy are the members that the chain can have ended with, one where that
	// is known.
	EndedBy []string   `json:"ended_by"`
	Met     []stepView `json:"met"`
	Members int        `json:"members"`
	Data    []byte     `json:"data"`
}

type stepView struct {
	Number   int           `json:"number"`
	Member   string        `json:"member"`
	Returned trace.Verdict `json:"returned"`
}

func (a *app) printPacket(p *trace.Packet, members []trace.Member) error {
	if a.json() {
		v := packetView{
			Time: p.Time.UTC(), Summary: p.Summary(), Length: p.Length, Verdict: p.Verdict, Result: p.Explain(members),
			EndedBy: []string{}, Met: []stepView{}, Members: len(members), Data: p.Data,
		}
		for _, i := range p.Enders {
			v.EndedBy = append(v.EndedBy, members[i].Name)
		}
		for _, s := range p.Met {
			v.Met = append(v.Met, stepView{s.Member + 1, members[s.Member].Name, s.Returned})
		}
		e := json.NewEncoder(a.env.Stdout)
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	const clock = "15:04:05.000000"
	_, err := fmt.Fprintf(a.env.Stdout, "%s %s, %d bytes: %s\n", p.Time.Local().Format(clock), p.Summary(), p.Length, p.Explain(members))
	if path := p.Path(members); err == nil && path != "" && len(members) > 1 {
		_, err = fmt.Fprintf(a.env.Stdout, "%*s %s\n", len(clock), "", path)
	}
	return err
}
