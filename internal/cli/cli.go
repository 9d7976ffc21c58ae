// Package cli is the command `holdfast`: it turns words into calls of the
// library, and results into tables or JSON. It decides nothing itself.
//
// One file is one command. Results go to Env.Stdout and everything else to
// Env.Stderr.
package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/declared"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/internal/cli/xdploader"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/trace"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Env is what the command touches of its process, so that tests can run it
// inside theirs.
type Env struct {
	// Name is what the command was called by; as xdploader.Name it is another.
	Name string
	// Args are the arguments after the command's name.
	Args   []string
	Stdin  *os.File
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
}

// SystemEnv is the environment of the process.
func SystemEnv() Env {
	return Env{Name: filepath.Base(os.Args[0]), Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}
}

// Exit codes, for scripts. They are part of the interface.
const (
	exitDone         = 0
	exitFailed       = 1
	exitUsage        = 2
	exitDrift        = 3
	exitConflict     = 4
	exitPermission   = 5
	exitNotSupported = 6
	exitNotFound     = 7
	exitLockTimeout  = 8
)

// exitCodes has the first that fits; the order matters only for an error of
// several kinds.
var exitCodes = []struct {
	err  error
	code int
}{
	{libxdp.ErrFull, exitNotSupported},
	{owned.ErrFull, exitNotSupported},
	{live.ErrFull, exitNotSupported},
	{fused.ErrLimit, exitNotSupported},
	{owned.ErrExists, exitConflict},
	{owned.ErrGeneration, exitConflict},
	{owned.ErrExclusive, exitConflict},
	{owned.ErrLocked, exitConflict},
	{owned.ErrNotEmpty, exitConflict},
	{xdp.ErrConflict, exitConflict},
	{xdp.ErrExists, exitConflict},
	{xdp.ErrPort, exitConflict},
	{xdp.ErrGone, exitDrift},
	{xdp.ErrPermission, exitPermission},
	{object.ErrPermission, exitPermission},
	{xdp.ErrNotSupported, exitNotSupported},
	{xdp.ErrMTU, exitNotSupported},
	{xdp.ErrAttachType, exitNotSupported},
	{xdp.ErrDeviceBound, exitNotSupported},
	{object.ErrNotSupported, exitNotSupported},
	{object.ErrBTF, exitNotSupported},
	{xdp.ErrNotFound, exitNotFound},
	{xdp.ErrNotAttached, exitNotFound},
	{object.ErrNoProgram, exitNotFound},
	{chain.ErrNoMember, exitNotFound},
	{client.ErrNoDaemon, exitNotFound},
	{arbiter.ErrLockTimeout, exitLockTimeout},
	{object.ErrVariable, exitUsage},
	{object.ErrAmbiguous, exitUsage},
	{chain.ErrAmbiguous, exitUsage},
	{chain.ErrOrder, exitUsage},
	{chain.ErrNoRoom, exitUsage},
	{owned.ErrInvalid, exitUsage},
	{declared.ErrInvalid, exitUsage},
	{trace.ErrFilter, exitUsage},
	{xdp.ErrInvalid, exitUsage},
	{xdp.ErrUnexpected, exitFailed},
	{object.ErrFormat, exitFailed},
	{object.ErrRunConfig, exitFailed},
	{object.ErrLicense, exitFailed},
	{object.ErrVerifier, exitFailed},
	{object.ErrMap, exitFailed},
	// Last, because errnos are these as well, and what is above says what an
	// errno meant.
	{os.ErrNotExist, exitNotFound},
	{exec.ErrNotFound, exitNotFound},
	{os.ErrPermission, exitPermission},
}

// ExitCode is the code that the command ends with after the error.
func ExitCode(err error) int {
	var usage *usageError
	var status *statusError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &status):
		return status.code
	case errors.As(err, &usage):
		return exitUsage
	}
	for _, c := range exitCodes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return exitFailed
}

// usageError says that the command was called wrongly.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// statusError is an exit code without a message: another command's, or that of a
// result which says what is wrong.
type statusError struct{ code int }

func (e *statusError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// Main runs the command and returns its exit code.
func Main(env Env) int {
	if env.Name == xdploader.Name {
		return xdploader.Main(xdpLoaderEnv(env, env.Args))
	}
	called, err := New(env).ExecuteC()
	var status *statusError
	var usage *usageError
	switch {
	case err == nil || errors.As(err, &status):
	case errors.As(err, &usage):
		fmt.Fprintf(env.Stderr, "holdfast: %s; see `%s --help`\n", printableLines(err), called.CommandPath())
	default:
		fmt.Fprintf(env.Stderr, "holdfast: %s\n", printableLines(err))
	}
	return ExitCode(err)
}

// app is what all commands share.
type app struct {
	env   Env
	log   *slog.Logger
	level slog.LevelVar

	bpffs       string
	socket      string
	embedded    bool
	libxdpBPFFS string
	lockTimeout time.Duration
	output      string
	logLevel    string
}

// New builds the command tree.
func New(env Env) *cobra.Command {
	a := &app{env: env}
	a.log = slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{
		Level: &a.level,
		// The time of a message is when it is read, in a terminal and in a
		// journal alike.
		ReplaceAttr: func(_ []string, attr slog.Attr) slog.Attr {
			if attr.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return attr
		},
	}))
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Attach XDP programs so that they stay",
		Long: `Attach XDP programs to network interfaces as owned objects: nobody but their
owner can replace or detach them, and they end with their owner unless they were
made permanent.

Exit codes: 0 done, 1 failed, 2 usage, 3 drift, 4 conflict, 5 not permitted,
6 the kernel cannot, 7 not found, 8 lock timeout.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,

		SuggestionsMinimumDistance: 2,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q%s", args[0], suggest(c, args[0]))
			}
			return c.Help()
		},
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkGlobals() },
	}
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", "table", "how results are printed: table or json")
	flags.StringVar(&a.logLevel, "log-level", "info", "what is told on standard error: debug, info, warn or error")
	flags.StringVar(&a.bpffs, "bpffs", "", "directory of Holdfast's own state (default "+arbiter.DefaultDir+", or $HOLDFAST_BPFFS)")
	flags.StringVar(&a.socket, "socket", "", "the daemon's socket (default "+client.DefaultSocket+" if a daemon listens there, or $HOLDFAST_SOCKET)")
	flags.BoolVar(&a.embedded, "embedded", false, "change hooks in this process, without a daemon")
	flags.StringVar(&a.libxdpBPFFS, "libxdp-bpffs", "", "bpffs that the tools of libxdp share for the chains of shared hooks (default "+libxdp.DefaultBPFFS+", or $LIBXDP_BPFFS)")
	flags.DurationVar(&a.lockTimeout, "lock-timeout", arbiter.DefaultLockTimeout, "how long to wait for others who change something")
	root.AddCommand(
		a.attachCommand(), a.replaceCommand(), a.detachCommand(), a.setCommand(), a.runCommand(),
		a.lockCommand(), a.unlockCommand(), a.adoptCommand(), a.applyCommand(), a.exportCommand(),
		a.daemonCommand(), a.policyCommand(), a.statusCommand(), a.whoCommand(), a.statsCommand(), a.topCommand(),
		a.watchCommand(), a.traceCommand(), a.featuresCommand(), a.gcCommand(), a.doctorCommand(), a.xdpLoaderCommand(),
		a.versionCommand(), a.completionCommand(), a.holdCommand(),
	)
	root.SetHelpCommand(helpCommand())
	root.CompletionOptions.DisableDefaultCmd = true
	completeFlag(root, "output", "table", "json")
	completeFlag(root, "log-level", "debug", "info", "warn", "error")
	return root
}

func suggest(c *cobra.Command, word string) string {
	if s := c.SuggestionsFor(word); len(s) > 0 {
		return "; did you mean " + strings.Join(s, " or ") + "?"
	}
	return ""
}

func (a *app) checkGlobals() error {
	if a.output != "table" && a.output != "json" {
		return usagef("--output %q: it is table or json", a.output)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return usagef("--log-level %q: it is debug, info, warn or error", a.logLevel)
	}
	a.level.Set(level)
	if a.embedded && a.socket != "" {
		return usagef("--embedded asks no daemon, and --socket says which: leave one out")
	}
	if a.lockTimeout <= 0 {
		return usagef("--lock-timeout %s: it must be longer than nothing", a.lockTimeout)
	}
	return nil
}

// exactly takes that many arguments, which the usage line names.
func exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			missing := names[len(args):]
			if len(missing) > 1 {
				return usagef("%s are missing", strings.Join(missing, " and "))
			}
			return usagef("%s is missing", missing[0])
		}
		if len(args) > len(names) {
			return usagef("%q is one argument too many", args[len(names)])
		}
		return nil
	}
}

func (a *app) stateOptions() arbiter.Options {
	dir := a.bpffs
	if dir == "" {
		dir = a.env.Getenv("HOLDFAST_BPFFS")
	}
	return arbiter.Options{Dir: dir, LockTimeout: a.lockTimeout, Log: a.log.Info}
}

// acknowledge is called when the result is printed. That it fails does not undo
// what was done.
func (a *app) acknowledge(ack arbiter.Acknowledge) {
	if err := ack(); err != nil {
		a.log.Warn("what was done could not be marked as done", "error", err)
	}
}
