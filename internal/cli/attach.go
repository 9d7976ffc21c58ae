package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// attachFlags are those of `holdfast attach`.
type attachFlags struct {
	hook   hookFlags
	object objectFlags
	member memberFlags

	name, expect, persistAs string
	shared, single, adopt   bool
	whilePID                int
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

With --shared the hook is one that others use as well. The programs, of one or
more objects, become members of its chain, all at once: what is there goes on
running, and xdp-loader and other tools of libxdp see and change the same chain.
Members run by priority, and by name where that is equal; --set and the flags
about the program are for each object. Everybody with CAP_NET_ADMIN can change
what is at a shared hook. --single attaches one program by netlink without a
chain, as kernels without freplace and tools that know no chains need it.`,
		Example: `  holdfast attach eth0 filter.o
  holdfast attach eth0 filter.o --set drop_port=53 --mode native
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
			e, place, err := f.check(c)
			if err != nil {
				return err
			}
			ns, h, err := f.hook.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			var without error // why there is no chain
			if f.shared && !f.single {
				without, err = a.attachMembers(c, h, &f, place, args[1:])
				if err != nil || without == nil {
					return err
				}
			}
			loaded, err := f.object.load(a, args[1], h)
			if err != nil {
				return err
			}
			defer loaded.Close()
			if f.name == "" {
				f.name = loaded.Info.Name
			}
			if f.whilePID != 0 {
				return a.attachWhile(h, loaded, f.name, f.whilePID)
			}
			err = a.attach(c, arbiter.AttachRequest{
				Hook: h, Program: loaded, Name: f.name, Shared: f.shared, Expect: e, PersistAs: f.persistAs,
			})
			if err == nil && without != nil {
				a.log.Warn("the program is attached alone, by netlink, as with --single", "why", without)
			}
			return err
		},
	}
	f.hook.add(c)
	f.object.add(c)
	f.member.add(c)
	flags := c.Flags()
	flags.StringVar(&f.name, "name", "", "what to call the attachment (default: the program's name, which is that of a chain's member always)")
	flags.StringVar(&f.expect, "expect", "", "what must be attached now: a program's id, empty or any (default empty)")
	flags.BoolVar(&f.shared, "shared", false, "add to the chain of a hook that others use as well, instead of owning the hook")
	flags.BoolVar(&f.single, "single", false, "with --shared: attach one program alone, by netlink and without a chain")
	flags.BoolVar(&f.adopt, "adopt", false, "with --shared: take the single program that is there into the chain; its object is among those given")
	flags.StringVar(&f.persistAs, "persist-as", "", "a path in a bpffs for a second pin of the link, for whoever else shall hold it")
	flags.IntVar(&f.whilePID, "while-pid", 0, "detach when this process ends")
	return c
}

// check refuses flags that contradict each other, and reads the others.
func (f *attachFlags) check(c *cobra.Command) (xdp.Expectation, libxdp.Settings, error) {
	e, err := parseExpect(f.expect)
	if err == nil {
		err = checkName(f.name)
	}
	var place libxdp.Settings
	if err == nil {
		place, err = f.member.settings(c)
	}
	placed := place != libxdp.Settings{}
	chained := f.shared && !f.single
	switch {
	case err != nil:
	case f.single && !f.shared:
		err = usagef("--single is about shared hooks: give --shared as well")
	case f.adopt && !chained:
		err = usagef("--adopt takes a program into the chain of a shared hook: give --shared, without --single")
	case placed && !chained:
		err = usagef("--priority, --proceed-on, --before and --after are for the chain of a shared hook: give --shared, without --single")
	case f.shared && f.persistAs != "":
		err = usagef("--persist-as pins a link, and with --shared there is none")
	case !f.shared && f.expect != "" && f.expect != "empty":
		err = usagef("--expect %s: an owned hook can only be taken empty; detach what is there first, or use --shared --single", f.expect)
	case chained && f.expect != "":
		err = usagef("--expect: a chain keeps what others have in it; --single attaches one program in place of what is expected")
	case chained && f.name != "":
		err = usagef("--name: a member of a shared chain is called what its program is called; --single takes a name")
	case f.whilePID != 0 && f.shared:
		err = usagef("--while-pid needs an owned hook: what netlink attaches does not end with a process")
	case f.whilePID != 0 && f.persistAs != "":
		err = usagef("--persist-as makes it permanent, and --while-pid does not")
	case f.whilePID < 0:
		err = usagef("--while-pid %d is no process", f.whilePID)
	}
	return e, place, err
}

func (a *app) attach(c *cobra.Command, r arbiter.AttachRequest) error {
	state, err := arbiter.Open(a.stateOptions())
	if err != nil {
		return err
	}
	defer state.Close()
	ack, err := state.Attach(c.Context(), r)
	if err != nil {
		return err
	}
	if err := a.printAt(state, r.Hook, r.Program, "attached", r.Expect.IsZero() || r.Expect == xdp.Empty); err != nil {
		return err
	}
	a.acknowledge(ack)
	return nil
}

// attachHeld attaches for as long as the link is held.
func (a *app) attachHeld(h *xdp.Hook, p *object.Loaded) (*xdp.Link, error) {
	link, err := h.AttachLink(p.Program)
	if err != nil {
		return nil, a.withRecord(h, err)
	}
	return link, nil
}
