// Package xdploader is the command `xdp-loader` of xdp-tools, on top of
// package chain/libxdp: the same command line, output and exit codes, so that
// scripts written for it keep working.
//
// It knows nothing of Holdfast's state, and keeps none: like the command whose
// name it bears, it works on shared hooks only. What a bpf_link holds it leaves
// alone, where xdp-loader would detach it by force.
//
// Results and usage go to Env.Stdout and everything else to Env.Stderr, as
// there. Sentences that scripts look for begin as there, and are followed by
// what Holdfast knows on a line of its own.
package xdploader

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Name is the name that the command is called by.
const Name = "xdp-loader"

// Env is what the command touches of its process.
type Env struct {
	// Args are the arguments after the command's name.
	Args   []string
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	// Version is Holdfast's own.
	Version string
}

// Exit codes. `load`, `status`, `clean` and `features` end with the negative
// errno, of which the shell sees the lowest byte; see [exitCode].
const (
	exitDone   = 0
	exitFailed = 1
	exitHelp   = 255 // of `help`, and of no command at all
)

// command is one of the words after the command's name.
type command struct {
	name string
	// args are the positional arguments in the usage line.
	args  string
	about string
	// options are the ones that only this command has.
	options []option
	// positional says how many arguments there are at least and at most,
	// of which the first is the interface.
	least, most int
	run         func(*loader, request) int
}

// commands are in the order in which a shortened name is looked for.
var commands = []*command{
	{
		name: "load", args: "<ifname> <filenames>", least: 2, most: unlimited,
		about: "attach XDP programs to an interface, beside those that are there",
		options: []option{
			optMode, optPinPath, optSection, optProgName, optPrio, optActions,
		},
		run: (*loader).load,
	},
	{
		name: "unload", args: "<ifname>", most: 1,
		about:   "detach one XDP program from an interface, or all of them",
		options: []option{optID, optAll},
		run:     (*loader).unload,
	},
	{
		name: "clean", args: "[ifname]", most: 1,
		about: "remove the pins of programs that are no longer attached",
		run:   (*loader).clean,
	},
	{
		name: "status", args: "[ifname]", most: 1,
		about: "show which XDP programs are attached",
		run:   (*loader).status,
	},
	{
		name: "features", args: "<ifname>", least: 1, most: 1,
		about: "show what the interface's driver says that it can do",
		run:   (*loader).features,
	},
}

// findCommand finds a command by its name or the beginning of it.
func findCommand(word string) *command {
	for _, c := range commands {
		if word != "" && strings.HasPrefix(c.name, word) {
			return c
		}
	}
	return nil
}

// loader is one run of the command.
type loader struct {
	env     Env
	command *command
	verbose int
}

// Main runs the command and returns its exit code.
func Main(env Env) int {
	l := &loader{env: env}
	if len(env.Args) == 0 {
		l.overview(env.Stderr)
		return exitHelp
	}
	word := env.Args[0]
	switch word {
	case "-h", "--help":
		l.overview(env.Stdout)
		return exitDone
	case "--version":
		l.version()
		return exitDone
	}
	c := findCommand(word)
	switch {
	case c == nil && word != "" && strings.HasPrefix("help", word):
		l.overview(env.Stderr)
		return exitHelp
	case c == nil:
		l.warn("Command '%s' is unknown, try '%s help'.", word, Name)
		return exitFailed
	}
	l.command = c
	r, err := parse(c, env.Args[1:])
	switch {
	case r.help:
		l.usage()
		return exitFailed
	case r.version:
		l.version()
		return exitFailed
	case err != nil:
		if !errors.Is(err, errTooMany) {
			l.warn("%s", err)
		}
		l.shortUsage()
		return exitFailed
	}
	l.verbose = r.verbose
	// Before Linux 5.11 programs and maps count as locked memory. Where the
	// limit can't be raised, loading says so.
	if err := kernel.RemoveMemlock(); err != nil {
		l.debug("The limit on locked memory stays: %s", err)
	}
	return c.run(l, r)
}

// Parses tells whether the command takes these arguments and options, without
// running it.
func Parses(args []string) error {
	if len(args) == 0 {
		return nil // that is the same as help
	}
	c := findCommand(args[0])
	if c == nil {
		return fmt.Errorf("there is no command %q", args[0])
	}
	_, err := parse(c, args[1:])
	return err
}

// hook finds the interface. Where there is none it says so, with the usage.
// The caller closes the namespace.
func (l *loader) hook(name string, mode xdp.Mode) (*xdp.Namespace, *xdp.Hook, error) {
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		l.warn("%s", err)
		return nil, nil, err
	}
	h, err := ns.Hook(name, mode)
	if err != nil {
		ns.Close()
		if errors.Is(err, xdp.ErrNotFound) || errors.Is(err, xdp.ErrInvalid) {
			l.warn("Couldn't find network interface '%s'.", name)
			l.shortUsage()
		} else {
			l.warn("%s", err)
		}
		return nil, nil, err
	}
	return ns, h, nil
}

func (l *loader) warn(format string, args ...any) { fmt.Fprintf(l.env.Stderr, format+"\n", args...) }

// why says on a line of its own what is known beyond what scripts look for.
func (l *loader) why(err error) { l.warn(" holdfast: %s", err) }

// debug speaks with -v.
func (l *loader) debug(format string, args ...any) {
	if l.verbose > 0 {
		l.warn(format, args...)
	}
}

// log is told what the libraries do; it speaks with -v.
func (l *loader) log(msg string, args ...any) {
	var b strings.Builder
	b.WriteString(" holdfast: " + msg)
	for i := 0; i+1 < len(args); i += 2 {
		fmt.Fprintf(&b, " %v=%v", args[i], args[i+1])
	}
	l.debug("%s", b.String())
}

// isSet tells whether an environment variable is 1, which is what switches a
// thing on in libxdp.
func (l *loader) isSet(variable string) bool { return l.env.Getenv(variable) == "1" }

func (l *loader) overview(w io.Writer) {
	fmt.Fprintf(w, "Usage: %s COMMAND [options]\n\nCOMMAND can be one of:\n", Name)
	for _, c := range commands {
		fmt.Fprintf(w, "       %-12s- %s\n", c.name, c.about)
	}
	fmt.Fprintf(w, "       %-12s- show this list\n", "help")
	fmt.Fprintf(w, "\n'%s COMMAND --help' tells the options of each.\n", Name)
}

func (l *loader) version() {
	fmt.Fprintf(l.env.Stdout, "%s version %s (Holdfast)\n", Name, l.env.Version)
}

func (l *loader) usageLine() {
	fmt.Fprintf(l.env.Stdout, "\nUsage: %s %s [options] %s\n", Name, l.command.name, l.command.args)
}

func (l *loader) shortUsage() {
	l.usageLine()
	fmt.Fprintln(l.env.Stdout, "Use --help (or -h) to see all options.")
}

func (l *loader) usage() {
	l.usageLine()
	w, c := l.env.Stdout, l.command
	fmt.Fprintf(w, "\n %s%s\n\nOptions:\n", strings.ToUpper(c.about[:1]), c.about[1:])
	for _, o := range append(c.options[:len(c.options):len(c.options)], common...) {
		short := "   "
		if o.short != "" {
			short = "-" + o.short + ","
		}
		fmt.Fprintf(w, " %s --%-28s%s\n", short, strings.TrimSpace(o.name+" "+o.value), o.about)
	}
	fmt.Fprintln(w)
}

// objectPath finds an object: a name without a slash that is not in the working
// directory is looked for where LIBXDP_OBJECT_PATH says, and where packages
// put objects.
func (l *loader) objectPath(name string) string {
	if strings.Contains(name, "/") || exists(name) {
		return name
	}
	for _, dir := range objectDirs(l.env.Getenv("LIBXDP_OBJECT_PATH")) {
		if path := dir + "/" + name; exists(path) {
			return path
		}
	}
	return name
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
