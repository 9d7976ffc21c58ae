package cli

import (
	"cmp"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// attachFlags are those of `holdfast attach`.
type attachFlags struct {
	hook   hookFlags
	object objectFlags
	member memberFlags
	owned  ownedFlags

	expect, persistAs     string
	shared, single, adopt bool
	whilePID              int
}

func (f *attachFlags) add(c *cobra.Command) {
	f.hook.add(c)
	f.object.add(c)
	f.member.add(c)
	f.owned.add(c)
	flags := c.Flags()
	flags.StringVar(&f.expect, "expect", "", "what must be attached now: empty; with --shared --single also a program's id, or any")
	flags.BoolVar(&f.shared, "shared", false, "add to the chain of a hook that others use as well, instead of owning the hook")
	flags.BoolVar(&f.single, "single", false, "with --shared: attach one program alone, by netlink and without a chain")
	flags.BoolVar(&f.adopt, "adopt", false, "with --shared: take the single program that is there into the chain; its object is among those given")
	flags.StringVar(&f.persistAs, "persist-as", "", "a path in a bpffs for a second pin of the link, for whoever else shall hold it")
	flags.IntVar(&f.whilePID, "while-pid", 0, "detach when this process ends")
}

func (a *app) attachCommand() *cobra.Command {
	var f attachFlags
	c := &cobra.Command{
		Use:   "attach IF OBJ...",
		Short: "Attach an object's XDP program to an interface, permanently",
		Long: `Attach the XDP program of an ELF object to an interface.

The hook becomes owned: a bpf_link holds it, and the kernel refuses every other
attach, replace and detach, until 'holdfast detach'. The attachment is permanent,
unless --while-pid ties it to a process.

Further programs become members of the hook's chain, each with a name of its own.
They run by priority, the lowest first, and those of the same priority in the
order that they came in, unless --before or --after places them. The chain goes on
to the next after the results that --proceed-on names. A program alone runs as
itself; with --exclusive it stays alone. Several run in a dispatcher that calls
each in a slot of its own (live), or where the kernel can't replace functions as
one program that is linked of them (fused).

With --shared the hook is one that others use as well. The programs, of one or
more objects, become members of its chain, all at once: what is there goes on
running, and xdp-loader and other tools of libxdp see and change the same chain.
Members run by priority, and by name where that is equal; --set and the flags
about the program are for each object. Everybody with CAP_NET_ADMIN can change
what is at a shared hook. --single attaches one program by netlink without a
chain, as kernels without freplace and tools that know no chains need it.`,
		Example: `  holdfast attach eth0 filter.o
  holdfast attach eth0 filter.o --set drop_port=53 --mode native
  holdfast attach eth0 log.o --priority 10 --proceed-on pass,drop
  holdfast attach eth0 filter.o --stats
  holdfast attach eth0 filter.o --while-pid $$
  holdfast attach eth0 filter.o sample.o --shared
  holdfast attach eth0 filter.o --shared --before sample --proceed-on pass,tx
  holdfast attach eth0 filter.o --shared --single --expect 42`,
		Args: func(c *cobra.Command, args []string) error {
			if f.shared && !f.single && len(args) > 2 {
				return nil
			}
			return exactly("IF", "OBJ")(c, args)
		},
		ValidArgsFunction: completeHook,
		RunE: func(c *cobra.Command, args []string) error {
			r, err := f.check(c)
			if err != nil {
				return err
			}
			if f.whilePID != 0 {
				return a.attachWhile(c, &f, args)
			}
			ns, h, err := f.hook.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			if !f.shared {
				return a.attachOwned(c, h, &f, r, args[1])
			}
			var without error // why there is no chain
			if !f.single {
				without, err = a.attachMembers(c, h, &f, r.place, args[1:])
				if err != nil || without == nil {
					return err
				}
			}
			err = a.attachSingle(c, h, &f, r.expect, args[1])
			if err == nil && without != nil {
				a.log.Warn("the program is attached alone, by netlink, as with --single", "why", without)
			}
			return err
		},
	}
	f.add(c)
	return c
}

// attachRequest is what was read of attachFlags.
type attachRequest struct {
	expect xdp.Expectation
	place  libxdp.Settings
	engine arbiter.Engine
}

// check refuses flags that contradict each other, and reads the others.
func (f *attachFlags) check(c *cobra.Command) (r attachRequest, err error) {
	if r.expect, err = parseExpect(f.expect); err != nil {
		return r, err
	}
	if r.engine, err = f.owned.check(); err != nil {
		return r, err
	}
	if r.place, err = f.member.settings(c); err != nil {
		return r, err
	}
	placed := r.place != libxdp.Settings{}
	chained := f.shared && !f.single
	switch {
	case f.single && !f.shared:
		err = usagef("--single is about shared hooks: give --shared as well")
	case f.adopt && !chained:
		err = usagef("--adopt takes a program into the chain of a shared hook: give --shared, without --single")
	case placed && f.single:
		err = usagef("--priority, --proceed-on, --before and --after are for the members of a chain: leave out --single")
	case f.shared && (f.owned.exclusive || c.Flags().Changed("engine")):
		err = usagef("--exclusive and --engine are for owned hooks: leave out --shared")
	case f.shared && f.owned.stats:
		err = usagef("--stats: the protocol of shared chains has no counters; `holdfast top` shows what the kernel counts of them, or own the hook")
	case f.shared && f.persistAs != "":
		err = usagef("--persist-as pins a link, and with --shared there is none")
	case !f.shared && f.expect != "" && f.expect != "empty":
		err = usagef("--expect %s: at an owned hook what is attached stays; use replace, or --shared --single", f.expect)
	case chained && f.expect != "":
		err = usagef("--expect: a chain keeps what others have in it; --single attaches one program in place of what is expected")
	case chained && f.owned.name != "":
		err = usagef("--name: a member of a shared chain is called what its program is called; --single takes a name")
	case f.whilePID != 0 && f.shared:
		err = usagef("--while-pid needs an owned hook: what netlink attaches does not end with a process")
	case f.whilePID != 0 && f.persistAs != "":
		err = usagef("--persist-as makes it permanent, and --while-pid does not")
	case f.whilePID < 0:
		err = usagef("--while-pid %d is no process", f.whilePID)
	}
	return r, err
}

// transaction adds the object's program to the chain of an owned hook.
func (f *attachFlags) transaction(h *xdp.Hook, r attachRequest, path string, lifetime owned.Lifetime) (arbiter.Transaction, error) {
	change, err := f.owned.addition(h, &f.object, r.place, path, lifetime)
	change.PersistAs = f.persistAs
	t := arbiter.Transaction{Hook: h, Changes: []arbiter.Change{change}, Engine: r.engine, Stats: f.owned.counting()}
	if r.expect == xdp.Empty {
		t.Expect = new(uint64) // the generation of what has never been changed
	}
	return t, err
}

// attachOwned adds a member to an owned hook.
func (a *app) attachOwned(c *cobra.Command, h *xdp.Hook, f *attachFlags, r attachRequest, path string) error {
	t, err := f.transaction(h, r, path, owned.Permanent)
	if err != nil {
		return err
	}
	state, err := a.service(c.Context())
	if err != nil {
		return err
	}
	defer state.Close()
	applied, err := a.apply(c.Context(), state, t, &f.object)
	if err != nil {
		return err
	}
	if err := a.printOwned(state, h, "attached", len(applied.Before.Members) == 0); err != nil {
		return err
	}
	a.acknowledged(applied)
	return nil
}

// attachSingle attaches one program to a shared hook, by netlink.
func (a *app) attachSingle(c *cobra.Command, h *xdp.Hook, f *attachFlags, e xdp.Expectation, path string) error {
	loaded, err := f.object.load(a, path, h)
	if err != nil {
		return err
	}
	defer loaded.Close()
	state, err := arbiter.Open(a.stateOptions())
	if err != nil {
		return err
	}
	defer state.Close()
	ack, err := state.Attach(c.Context(), arbiter.AttachRequest{
		Hook: h, Program: loaded, Name: cmp.Or(f.owned.name, loaded.Info.Name), Expect: e,
	})
	if err != nil {
		return err
	}
	if err := a.printAt(state, h, loaded, "attached", e.IsZero() || e == xdp.Empty); err != nil {
		return err
	}
	a.acknowledge(ack)
	return nil
}
