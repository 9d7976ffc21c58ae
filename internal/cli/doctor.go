package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/internal/doctor"
	"github.com/holdfast-bpf/holdfast/policy"
)

func (a *app) doctorCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong on this host, and how to mend it",
		Long: `Look at all that Holdfast needs of this host: the kernel, capabilities, the state,
the daemon's socket, the policy, and what is attached to the interfaces of all
network namespaces. Nothing is changed, but to ask at the socket starts a daemon
that systemd starts on demand.

What it finds is ok, a note, with which Holdfast works, or a problem. Where there
is a problem the exit code is 3.`,
		Example: `  holdfast doctor
  holdfast doctor -o json`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			named := cmp.Or(a.socket, a.env.Getenv("HOLDFAST_SOCKET"))
			o := a.stateOptions()
			host, err := doctor.Look(c.Context(), doctor.Places{
				State: cmp.Or(o.Dir, arbiter.DefaultDir), Pins: a.chainsDir(),
				Socket: cmp.Or(named, client.DefaultSocket), Policy: dir,
			})
			if err != nil {
				return err
			}
			host.Named = named != ""
			a.examineState(c.Context(), &host)
			return a.printChecks(host.Checks())
		},
	}
	c.Flags().StringVar(&dir, "config", policy.Dir, "directory of the policy")
	return c
}

// examineState adds what the state and the interfaces tell.
func (a *app) examineState(ctx context.Context, host *doctor.Host) {
	state, err := arbiter.OpenReadOnly(a.stateOptions())
	if err != nil {
		host.StateErr, host.AttachedErr = err, err
		return
	}
	defer state.Close()
	if host.Stale, err = state.GC(ctx, true); err != nil {
		host.AttachedErr = err
		return
	}
	if host.Left, err = a.leftPins(ctx, true); err != nil {
		host.AttachedErr = err
		return
	}
	host.Foreign, host.AttachedErr = a.foreign(state)
}

// foreign are the attachments that are neither in the state nor chains of shared
// hooks.
func (a *app) foreign(state *arbiter.Arbiter) ([]arbiter.Status, error) {
	namespaces, err := a.namespaces("", true)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, ns := range namespaces {
			ns.Close()
		}
	}()
	found, err := state.Status(namespaces)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(s arbiter.Status) bool {
		return s.Entry != "" || s.Program.Name == libxdp.DispatcherName || s.Lifetime == arbiter.Defunct
	}), nil
}

func (a *app) printChecks(checks []doctor.Check) error {
	if a.json() {
		if err := a.printJSON("doctor", map[string]any{"checks": checks}); err != nil {
			return err
		}
	} else {
		// Sentences make no table.
		for _, c := range checks {
			fmt.Fprintf(a.env.Stdout, "%-8s %s: %s\n", c.Result, c.Name, c.What)
			if c.Mend != "" {
				fmt.Fprintf(a.env.Stdout, "%-8s to mend it: %s\n", "", c.Mend)
			}
		}
	}
	if doctor.Wrong(checks) {
		return &statusError{exitDrift}
	}
	return nil
}
