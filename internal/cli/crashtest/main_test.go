package crashtest

import (
	"fmt"
	"os"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/cli"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{
		commandProcess: func(args []string) int {
			env := cli.SystemEnv()
			env.Args = args
			return cli.Main(env)
		},
		libraryProcess: func(args []string) int {
			if err := performJSON(args[0]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return 0
		},
		"wait": func([]string) int {
			os.Stdin.Read(make([]byte, 1)) // to the end of the test, or its own
			return 0
		},
	})
}

// The processes that are killed.
const (
	commandProcess = "holdfast"
	libraryProcess = "library"
)
