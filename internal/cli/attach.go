package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) attachCommand() *cobra.Command {
	var hf hookFlags
	var of objectFlags
	var name, expect, persistAs string
	var shared bool
	var whilePID int
	c := &cobra.Command{
		Use:   "attach IF OBJ",
		Short: "Attach an object's XDP program to an interface, permanently",
		Long: `Attach the XDP program of an ELF object to an interface.

The hook becomes owned: a bpf_link holds it, and the kernel refuses every other
attach, replace and detach, until 'holdfast detach'. With --shared the program is
attached by netlink, where everybody with CAP_NET_ADMIN can replace it.

The attachment is permanent, unless --while-pid ties it to a process.`,
		Example: `  holdfast attach eth0 filter.o
  holdfast attach eth0 filter.o --set drop_port=53 --mode native
  holdfast attach eth0 filter.o --while-pid $$
  holdfast attach eth0 filter.o --shared --expect 42`,
		Args: exactly("IF", "OBJ"), ValidArgsFunction: completeHook,
		RunE: func(c *cobra.Command, args []string) error {
			e, err := parseExpect(expect)
			if err == nil {
				err = checkName(name)
			}
			switch {
			case err != nil:
				return err
			case shared && persistAs != "":
				return usagef("--persist-as pins a link, and with --shared there is none")
			case !shared && expect != "" && expect != "empty":
				return usagef("--expect %s: an owned hook can only be taken empty; detach what is there first, or use --shared", expect)
			case whilePID != 0 && shared:
				return usagef("--while-pid needs an owned hook: what netlink attaches does not end with a process")
			case whilePID != 0 && persistAs != "":
				return usagef("--persist-as makes it permanent, and --while-pid does not")
			case whilePID < 0:
				return usagef("--while-pid %d is no process", whilePID)
			}
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			loaded, err := of.load(a, args[1], h)
			if err != nil {
				return err
			}
			defer loaded.Close()
			if name == "" {
				name = loaded.Info.Name
			}
			if whilePID != 0 {
				return a.attachWhile(h, loaded, name, whilePID)
			}
			return a.attach(c, arbiter.AttachRequest{
				Hook: h, Program: loaded, Name: name, Shared: shared, Expect: e, PersistAs: persistAs,
			})
		},
	}
	hf.add(c)
	of.add(c)
	c.Flags().StringVar(&name, "name", "", "what to call the attachment (default: the program's name)")
	c.Flags().StringVar(&expect, "expect", "", "what must be attached now: a program's id, empty or any (default empty)")
	c.Flags().BoolVar(&shared, "shared", false, "attach by netlink instead of owning the hook")
	c.Flags().StringVar(&persistAs, "persist-as", "", "a path in a bpffs for a second pin of the link, for whoever else shall hold it")
	c.Flags().IntVar(&whilePID, "while-pid", 0, "detach when this process ends")
	return c
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
