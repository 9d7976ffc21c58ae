package cli

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/internal/cli/xdploader"
)

// xdpLoaderCommand is the command xdp-loader of xdp-tools. All that follows the
// word is its own, flags too.
func (a *app) xdpLoaderCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "xdp-loader COMMAND [ARG...]",
		Short: "Do what the command xdp-loader of xdp-tools does",
		Long: `Do what the command xdp-loader of xdp-tools does, with its options, output and
exit codes, so that scripts written for it keep working. So does a link of that
name to holdfast. What follows the word xdp-loader is in xdp-loader's terms:
holdfast's own flags and exit codes do not apply.

Where it is not the same: a hook that a bpf_link holds is left to its holder,
clean leaves the pins of other network namespaces, and a number that is none or a
program that is not for XDP is refused.`,
		Example: `  holdfast xdp-loader load eth0 filter.o sample.o
  holdfast xdp-loader load -m skb eth0 filter.o -P 10 -A XDP_PASS,XDP_DROP
  holdfast xdp-loader status
  holdfast xdp-loader unload eth0 --all`,
		DisableFlagParsing: true, DisableFlagsInUseLine: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if code := xdploader.Main(xdpLoaderEnv(a.env, args)); code != exitDone {
				return &statusError{code}
			}
			return nil
		},
	}
	// Without holdfast's own flags, of which it takes none.
	c.SetUsageTemplate("Usage:\n  {{.UseLine}}\n\nExamples:\n{{.Example}}\n")
	return c
}

func xdpLoaderEnv(env Env, args []string) xdploader.Env {
	return xdploader.Env{
		Args: args, Stdout: env.Stdout, Stderr: env.Stderr, Getenv: env.Getenv, Version: ownVersion(),
	}
}
