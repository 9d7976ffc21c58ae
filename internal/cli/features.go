package cli

import (
	"cmp"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) featuresCommand() *cobra.Command {
	var namespace string
	var try bool
	c := &cobra.Command{
		Use:   "features [IF]",
		Short: "Find out what this kernel, or an interface, can do",
		Long: `Find out what this kernel can do, or an interface, by trying it: on a pair of
interfaces in a namespace that is made for it and thrown away, and on IF itself.

An attach that is tried on a network card can reset its link, so on a card, and on
interfaces above one, only its driver is asked, unless --try is given. Nothing is
tried on a hook that is in use.`,
		Example: `  holdfast features
  holdfast features eth0 -o json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%q is one argument too many", args[1])
			}
			return nil
		},
		ValidArgsFunction: completeInterface,
		RunE: func(c *cobra.Command, args []string) error {
			a.raiseMemlock()
			if len(args) == 0 {
				if namespace != "" || try {
					return usagef("--netns and --try are for an interface, and none is named")
				}
				found, err := features.Kernel(c.Context())
				if err != nil {
					return err
				}
				return a.printKernel(found)
			}
			ns, err := xdp.OpenNamespace(namespace)
			if err != nil {
				return err
			}
			defer ns.Close()
			d, err := features.Interface(c.Context(), ns, args[0], features.Options{Try: try})
			if err != nil {
				return err
			}
			return a.printDevice(d)
		},
	}
	c.Flags().StringVar(&namespace, "netns", "", "network namespace of the interface: a name, a path or a pid")
	c.Flags().BoolVar(&try, "try", false, "try it on a network card too, which may reset its link")
	return c
}

func (a *app) printKernel(found []features.Feature) error {
	if a.json() {
		return a.printJSON("features", map[string]any{"features": found})
	}
	a.printFeatures(found)
	return nil
}

func (a *app) printDevice(d features.Device) error {
	if a.json() {
		return a.printJSON("features", d)
	}
	a.printFeatures(d.Features)
	return nil
}

func (a *app) printFeatures(found []features.Feature) {
	var rows [][]string
	for _, f := range found {
		rows = append(rows, []string{f.Name, string(f.Supported), string(f.How), f.About, cmp.Or(f.Reason, "-")})
	}
	a.table([]string{"FEATURE", "SUPPORTED", "HOW", "WHAT", "WHY"}, rows)
}
