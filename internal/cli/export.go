package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/declared"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) exportCommand() *cobra.Command {
	var hf hookFlags
	c := &cobra.Command{
		Use:   "export IF",
		Short: "Write the chain of an owned hook as a file that 'apply' reads",
		Long: `Write the chain of an owned hook as a file that 'holdfast apply' reads: its
permanent members, with the objects by the paths that they were attached from.
Members that a process holds are left out, and told on standard error.`,
		Example: `  holdfast export eth0 > chains.yaml`,
		Args:    exactly("IF"), ValidArgsFunction: completeHook,
		RunE: func(c *cobra.Command, args []string) error {
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			state, err := a.look(c.Context())
			if err != nil {
				return err
			}
			defer state.Close()
			s, err := state.At(h)
			switch {
			case err != nil:
				return err
			case s == nil:
				return &xdp.Error{Op: "export", Hook: h.String(), Err: xdp.ErrNotAttached, Detail: "there is no program", Hint: "attach one first"}
			case s.Chain == nil:
				return state.Explain(h, &xdp.Error{
					Op: "export", Hook: h.String(), Err: xdp.ErrConflict, Rival: &s.Attachment,
					Detail: "the hook is not owned by Holdfast", Hint: "only what Holdfast owns can be declared",
				})
			}
			hook := a.declare(s)
			hook.Interface = h.Name()
			if hf.mode != "auto" {
				hook.Mode = h.Mode()
			}
			b, err := declared.Encode(&declared.File{Hooks: []declared.Hook{hook}})
			if err != nil {
				return err
			}
			_, err = a.env.Stdout.Write(b)
			return err
		},
	}
	hf.add(c)
	return c
}

// declare is the hook as a file declares it.
func (a *app) declare(s *arbiter.Status) declared.Hook {
	h := declared.Hook{Namespace: s.Namespace, Engine: declared.Auto, Exclusive: s.Chain.Exclusive}
	if s.Chain.Stats {
		h.Stats = &s.Chain.Stats
	}
	for _, m := range s.Chain.Members {
		if m.Lifetime == owned.Held {
			a.log.Warn("left out: a process holds it", "member", m.Name, "pid", m.Owner.PID, "comm", m.Owner.Comm)
			continue
		}
		d := declared.Member{
			Name: m.Name, Object: m.Object, Program: m.Function, Priority: m.Priority, ProceedOn: m.ProceedOn,
		}
		for _, v := range m.Variables {
			name, value, _ := strings.Cut(v, "=")
			if d.Variables == nil {
				d.Variables = map[string]string{}
			}
			d.Variables[name] = value
		}
		h.Members = append(h.Members, d)
	}
	return h
}
