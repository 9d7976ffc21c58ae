// Command vmtest runs Holdfast's tests in several environments and sums them
// up: the kernel tests in virtual machines with Debian's kernels and on the
// machine's own kernel, and the tests that need no particular kernel.
//
//	go run ./internal/vm/vmtest -kernel 6.1 -run TestX ./xdp
//	go run ./internal/vm/vmtest -kernel all
//	go run ./internal/vm/vmtest -kernel pure,host,all
//
// It prints what "go test" prints, with the environment before each test's
// name: "--- PASS: 6.1/TestX (0.01s)". The last line holds the totals.
//
// A package has kernel tests if its tests import internal/kerneltest. They
// are built once, as static binaries, and the same binaries run everywhere,
// as root, each package in its own directory, with HOLDFAST_TEST_KERNEL
// naming the environment. A test may skip only where skips.txt expects it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/vm"
)

// Environments beside the kernels of the matrix.
const (
	hostKernel = "host" // the machine's own kernel, in private namespaces
	pureTests  = "pure" // packages without kernel tests, as "go test" runs them
)

type options struct {
	kernels        []string
	patterns       []string
	run            string
	verbose        bool
	short          bool
	timeout        time.Duration
	machineTimeout time.Duration
	icount         bool
	console        bool
	sysctls        map[string]string
	report         string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	opts, err := parseOptions(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "vmtest: %v\n", err)
		os.Exit(2)
	}
	ok, err := run(ctx, opts, os.Stdout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "vmtest: %v\n", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func environments() []string { return append([]string{pureTests, hostKernel}, vm.Kernels()...) }

func parseOptions(args []string, errOut io.Writer) (options, error) {
	o := options{sysctls: map[string]string{}}
	var kernels string
	flags := flag.NewFlagSet("vmtest", flag.ContinueOnError)
	flags.SetOutput(errOut)
	flags.Usage = func() {
		fmt.Fprint(errOut, "usage: vmtest [flags] [packages]    (packages: ./... unless given)\n\n")
		flags.PrintDefaults()
	}
	flags.StringVar(&kernels, "kernel", "all", "environments, separated by commas: "+strings.Join(environments(), ", ")+"; \"all\" is the kernels")
	flags.StringVar(&o.run, "run", "", "run only the tests that match, as go test does")
	flags.BoolVar(&o.verbose, "v", false, "print the output of tests that pass, too")
	flags.BoolVar(&o.short, "short", false, "tell tests to take less time, as go test does")
	flags.DurationVar(&o.timeout, "timeout", 15*time.Minute, "for one package")
	flags.DurationVar(&o.machineTimeout, "machine-timeout", 40*time.Minute, "for one virtual machine with all its packages")
	flags.BoolVar(&o.icount, "icount", false, "let the machines' clocks count instructions")
	flags.BoolVar(&o.console, "console", false, "print the kernel's console as it comes, on standard error")
	flags.StringVar(&o.report, "report", "", "write the summary to this file as JSON, too")
	flags.Func("sysctl", "NAME=VALUE to set in the machines; may be repeated", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("%q is not NAME=VALUE", s)
		}
		o.sysctls[name] = value
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for _, k := range strings.Split(kernels, ",") {
		add := []string{k}
		if k == "all" {
			add = vm.Kernels()
		} else if !slices.Contains(environments(), k) {
			return o, fmt.Errorf("no kernel %q: there are %s, and \"all\" for the virtual machines", k, strings.Join(environments(), ", "))
		}
		for _, k := range add {
			if !slices.Contains(o.kernels, k) {
				o.kernels = append(o.kernels, k)
			}
		}
	}
	o.patterns = flags.Args()
	if len(o.patterns) == 0 {
		o.patterns = []string{"./..."}
	}
	return o, nil
}
