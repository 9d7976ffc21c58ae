package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/chain/declared"
	"github.com/holdfast-bpf/holdfast/internal/realize"
)

func (a *app) applyCommand() *cobra.Command {
	var path, netns string
	var dryRun, prune bool
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make the chains of owned hooks what a file declares",
		Long: `Make the chains of owned hooks what a file declares: add the members that are
missing, replace those whose object is another, and set what else differs. What is
as declared is not touched. For each hook all of it happens in one step, or
nothing does.

Members that are not declared stay, unless --prune takes them out. Those that a
process holds stay always. Each hook is a transaction of its own: the hooks before
one that fails are as declared, and those behind it as they were.

The file is YAML, with paths relative to it:

  version: 1
  hooks:
  - interface: eth0
    members:                # in the order that they run in
    - name: filter
      object: filter.o
      priority: 10          # 50 if it is not given
      proceed-on: [XDP_PASS]
      set: {drop_port: "53"}
    - name: sample
      object: sample.o

A hook can also have netns, mode (native, generic), engine (live, fused) and
exclusive, and a member program or section. 'holdfast export' writes such a file.`,
		Example: `  holdfast apply -f chains.yaml --dry-run
  holdfast apply -f chains.yaml --prune`,
		Args: exactly(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if path == "" {
				return usagef("-f is missing: the file that declares the chains")
			}
			file, err := a.readDeclared(path)
			if err != nil {
				return err
			}
			open := a.service
			if dryRun {
				open = a.look
			}
			state, err := open(c.Context())
			if err != nil {
				return err
			}
			defer state.Close()
			if !dryRun {
				a.raiseMemlock()
			}
			// What is wrong in the last hook is told before the first is changed.
			var hooks []*realize.Hook
			for _, h := range file.Hooks {
				d, err := realize.Open(h, netns)
				if err != nil {
					return err
				}
				defer d.Close()
				hooks = append(hooks, d)
			}
			var results []realize.Result
			for _, d := range hooks {
				result, ack, err := d.Apply(c.Context(), state, prune, dryRun)
				if err != nil {
					return errors.Join(a.printApplied(results), err)
				}
				results = append(results, *result)
				if ack != nil {
					defer a.acknowledge(ack) // once it is printed
				}
			}
			return a.printApplied(results)
		},
	}
	flags := c.Flags()
	flags.StringVarP(&path, "file", "f", "", "the file that declares the chains, or - for standard input")
	flags.StringVar(&netns, "netns", "", "network namespace of the interfaces for which the file names none: a name, a path or a pid")
	flags.BoolVar(&dryRun, "dry-run", false, "tell what would change, and change nothing")
	flags.BoolVar(&prune, "prune", false, "take out members that are not declared")
	return c
}

func (a *app) readDeclared(path string) (*declared.File, error) {
	if path == "-" {
		return declared.Decode("standard input", a.env.Stdin)
	}
	return declared.Read(path)
}

func (a *app) printApplied(results []realize.Result) error {
	if a.output == "json" {
		return a.printJSON("applied", results)
	}
	for _, r := range results {
		what := "is as declared"
		switch {
		case r.Changed && r.DryRun:
			what = "would change"
		case r.Changed:
			what = "changed"
		}
		if _, err := fmt.Fprintf(a.env.Stdout, "%s %s\n%s", r.Interface, what, r.Diff); err != nil {
			return err
		}
	}
	return nil
}
