package cli

import (
	"context"
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/xdp"
)

// completionCommand is instead of cobra's own, which takes a wrong word for a
// request for help.
func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print the completion script for a shell: bash, zsh or fish",
		Example: `  source <(holdfast completion bash)
  holdfast completion fish > ~/.config/fish/completions/holdfast.fish`,
		Args:      exactly("SHELL"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(c *cobra.Command, args []string) error {
			root, out := c.Root(), a.env.Stdout
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			}
			return usagef("there are no completions for the shell %q: there are for bash, zsh and fish", args[0])
		},
	}
}

// helpCommand is instead of cobra's own, which ends with 0 when there is no such
// command.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Show what a command does, and its flags",
		Example: "  holdfast help attach",
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			about, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("there is no command %q%s", args[0], suggest(root, args[0]))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// completeHook completes IF and leaves OBJ to the shell, which knows files.
func completeHook(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return completeInterfaces(len(args))
}

// completeMembers completes IF, and after it the members of its chain.
func (a *app) completeMembers(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return completeInterfaces(0)
	}
	f := hookFlags{mode: "auto"}
	ns, h, err := f.open(args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer ns.Close()
	chains, found, err := a.readChain(h)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer chains.Close()
	var names []string
	if isChain(found) {
		for _, m := range found.Members {
			names = append(names, m.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	state, err := a.look(context.Background())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer state.Close()
	if s, err := state.At(h); err == nil && s != nil && s.Chain != nil {
		for _, m := range s.Chain.Members {
			names = append(names, m.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeReplace completes IF, and after it the members and files.
func (a *app) completeReplace(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return completeInterfaces(0)
	case 1:
		names, _ := a.completeMembers(c, args, word)
		return names, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// completeInterface completes IF, and nothing after it.
func completeInterface(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return completeInterfaces(len(args))
}

func completeInterfaces(position int) ([]string, cobra.ShellCompDirective) {
	if position > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer ns.Close()
	interfaces, err := ns.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeFlag makes a flag complete to one of a few words.
func completeFlag(c *cobra.Command, flag string, words ...string) {
	// It fails for a flag that there is not, and for one done twice.
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}
