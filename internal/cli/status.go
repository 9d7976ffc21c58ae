package cli

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) statusCommand() *cobra.Command {
	var namespace string
	var all bool
	c := &cobra.Command{
		Use:   "status [IF...]",
		Short: "Show what is attached, and who holds it",
		Long: `Show every interface that has an XDP program: mode, program, how it is held, by
whom, since when and until when. It changes nothing.

Below a hook that has a chain are its members, whoever added them, in the order
that they run in.

Attachments that have ended although nobody detached them with Holdfast, because
their interface is gone or another root took the link away, are shown as defunct
until 'holdfast gc' or a new attachment.`,
		Example: `  holdfast status
  holdfast status eth0 -o json
  holdfast status --all-netns`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return completeInterfaces(0)
		},
		RunE: func(c *cobra.Command, args []string) error {
			state, namespaces, err := a.lookInto(c.Context(), namespace, all, args)
			if err != nil {
				return err
			}
			defer state.Close()
			defer closeAll(namespaces)
			found, err := statusOf(state, namespaces, args)
			if err != nil {
				return err
			}
			hooks, err := a.withChains(namespaces, found)
			if err != nil {
				return err
			}
			return a.printStatus(hooks, all)
		},
	}
	c.Flags().StringVar(&namespace, "netns", "", "network namespace to look into: a name, a path or a pid")
	c.Flags().BoolVar(&all, "all-netns", false, "look into all network namespaces that can be found")
	return c
}

// lookInto opens what it takes to look at the interfaces of that name, which must be
// there, or at all of them, in one network namespace or in all. The caller closes both.
func (a *app) lookInto(ctx context.Context, netns string, all bool, names []string) (arbiter.Service, []*xdp.Namespace, error) {
	if all && netns != "" {
		return nil, nil, usagef("--all-netns and --netns exclude each other")
	}
	state, err := a.look(ctx)
	if err != nil {
		return nil, nil, err
	}
	namespaces, err := a.namespaces(netns, all)
	if err == nil {
		err = exist(namespaces, names)
	}
	if err != nil {
		closeAll(namespaces)
		state.Close()
		return nil, nil, err
	}
	return state, namespaces, nil
}

func closeAll(namespaces []*xdp.Namespace) {
	for _, ns := range namespaces {
		ns.Close()
	}
}

// statusOf is what is attached to the interfaces of that name, or to any, in order.
func statusOf(state arbiter.Service, namespaces []*xdp.Namespace, names []string) ([]arbiter.Status, error) {
	found, err := state.Status(namespaces)
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		found = slices.DeleteFunc(found, func(s arbiter.Status) bool { return !slices.Contains(names, s.Interface) })
	}
	slices.SortStableFunc(found, func(x, y arbiter.Status) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Interface, y.Interface))
	})
	return found, nil
}

func (a *app) namespaces(spec string, all bool) ([]*xdp.Namespace, error) {
	if !all {
		ns, err := xdp.OpenNamespace(spec)
		if err != nil {
			return nil, err
		}
		return []*xdp.Namespace{ns}, nil
	}
	var namespaces []*xdp.Namespace
	for ns, err := range xdp.Namespaces() {
		if err != nil {
			a.log.Warn("a network namespace can't be looked into", "error", err)
			continue
		}
		namespaces = append(namespaces, ns)
	}
	return namespaces, nil
}

// exist fails with the error of the first interface that is nowhere.
func exist(namespaces []*xdp.Namespace, names []string) error {
	for _, name := range names {
		var err error
		for _, ns := range namespaces {
			if _, err = ns.Hook(name, xdp.Auto); err == nil {
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// withChains adds the chains of those that are dispatchers.
func (a *app) withChains(namespaces []*xdp.Namespace, found []arbiter.Status) ([]hookStatus, error) {
	hooks := make([]hookStatus, len(found))
	var chains *libxdp.Chains
	for i, s := range found {
		hooks[i] = newHook(s)
		// Who may not read a program's name may not open the bpffs either.
		if s.Program.Name != libxdp.DispatcherName || s.Lifetime == arbiter.Defunct {
			continue
		}
		if chains == nil {
			opened, err := a.chains()
			if err != nil {
				return nil, err
			}
			defer opened.Close()
			chains = opened
		}
		c, err := chainOf(chains, namespaces, s)
		if err != nil {
			hooks[i].Chain = newChainStatus(&libxdp.Chain{Problem: err.Error()})
		} else if isChain(c) {
			hooks[i].Chain = newChainStatus(c)
		}
	}
	return hooks, nil
}

func chainOf(chains *libxdp.Chains, namespaces []*xdp.Namespace, s arbiter.Status) (*libxdp.Chain, error) {
	for _, ns := range namespaces {
		if ns.ID() != s.NamespaceID {
			continue
		}
		h, err := ns.HookAt(s.Index, s.Mode)
		if err != nil {
			return nil, err
		}
		return chains.Read(h)
	}
	return nil, nil
}

func (a *app) printStatus(found []hookStatus, netns bool) error {
	if a.json() {
		return a.printJSON("status", found)
	}
	if len(found) == 0 {
		a.log.Info("no XDP program is attached here")
		return nil
	}
	head := []string{"INTERFACE", "MODE", "PROGRAM", "ID", "HELD", "LIFETIME", "SINCE", "NAME", "BY"}
	if netns {
		head = append([]string{"NETNS"}, head...)
	}
	var rows [][]string
	for _, s := range found {
		row := []string{
			s.Interface, mode(s.Status), cmp.Or(s.Program.Name, "-"), strconv.FormatUint(uint64(s.Program.ID), 10),
			held(s.Status), string(s.Lifetime), since(s.Status), name(s), by(s),
		}
		if netns {
			row = append([]string{cmp.Or(s.Namespace, "-")}, row...)
		}
		rows = append(rows, row)
	}
	width := terminalWidth(a.env.Stdout)
	for i, line := range tableLines(head, rows, width) {
		fmt.Fprintln(a.env.Stdout, line)
		if i > 0 && found[i-1].Chain != nil {
			a.printMembers(found[i-1].Chain)
		}
	}
	return nil
}

func ownerText(o arbiter.Owner) string {
	return fmt.Sprintf("uid %d %s", o.UID, cmp.Or(o.Comm, filepath.Base(o.Exe)))
}

func mode(s arbiter.Status) string {
	if s.Lifetime == arbiter.Defunct {
		return "-"
	}
	return s.Mode.String()
}

func held(s arbiter.Status) string {
	if s.LinkID != 0 {
		return fmt.Sprintf("link %d", s.LinkID)
	}
	return string(s.Held)
}

func since(s arbiter.Status) string {
	if s.Since.IsZero() {
		return "-"
	}
	t := s.Since.Local().Format(time.DateTime)
	if s.SinceLoad {
		return "≥ " + t // not before the program was loaded
	}
	return t
}

// name is what the owner calls the only member; several are told one by one.
func name(s hookStatus) string {
	if c, ok := s.Chain.(ownedChain); ok && !c.alone() {
		return "-"
	}
	return cmp.Or(s.Name, "-")
}

// by names the owner that Holdfast knows, and then whoever keeps the link
// alive; of a chain it says how it runs, or which tools made it.
func by(s hookStatus) string {
	var who []string
	if s.Chain != nil && s.Chain.String() != "" {
		who = append(who, s.Chain.String())
	}
	if c, ok := s.Chain.(ownedChain); s.Owner != nil && (!ok || c.alone() && !c.Locked) {
		who = append(who, ownerText(*s.Owner))
	}
	for _, h := range s.Holders {
		who = append(who, fmt.Sprintf("%s[%d]", h.Comm, h.PID))
	}
	for _, pin := range s.Pins {
		if s.Entry == "" || !strings.HasSuffix(pin, s.Entry+"/link") {
			who = append(who, pin)
		}
	}
	if len(who) == 0 {
		return "-"
	}
	return strings.Join(who, ", ")
}
