package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// version is set when the command is built by the Makefile.
var version = ""

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of Holdfast, Go and the kernel",
		Args:  exactly(),
		RunE: func(*cobra.Command, []string) error {
			return a.printVersions(versions{Holdfast: ownVersion(), Go: runtime.Version(), Kernel: kernelRelease()})
		},
	}
}

func (a *app) printVersions(v versions) error {
	if a.json() {
		return a.printJSON("version", v)
	}
	_, err := fmt.Fprintf(a.env.Stdout, "holdfast %s (%s, Linux %s)\n", v.Holdfast, v.Go, v.Kernel)
	return err
}

type versions struct {
	Holdfast string `json:"holdfast"`
	Go       string `json:"go"`
	Kernel   string `json:"kernel"`
}

func ownVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
