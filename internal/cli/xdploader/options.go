package xdploader

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// request is a command line, read.
type request struct {
	iface string // empty where none is named
	files []string

	mode     xdp.Mode
	pinPath  string
	section  string
	progName string
	prio     uint32        // 0 is the object's own
	actions  chain.Actions // none are the object's own

	id  uint32 // 0 is none
	all bool

	verbose       int
	help, version bool
}

// option is one that a command has.
type option struct {
	name, short string
	value       string // what follows, in the usage
	about       string
	add         func(f *pflag.FlagSet, o option, r *request)
}

var (
	optMode = option{"mode", "m", "<mode>", "how it is attached (" + strings.Join(modeNames(), ",") + "; default native)",
		func(f *pflag.FlagSet, o option, r *request) { f.VarP(modeValue{&r.mode}, o.name, o.short, "") }}
	optPinPath = option{"pin-path", "p", "<path>", "a directory in a bpffs for maps that ask to be pinned (default: none are)",
		func(f *pflag.FlagSet, o option, r *request) { f.StringVarP(&r.pinPath, o.name, o.short, "", "") }}
	optSection = option{"section", "s", "<section>", "the program in that ELF section of each file (default: the first in the file)",
		func(f *pflag.FlagSet, o option, r *request) { f.StringVarP(&r.section, o.name, o.short, "", "") }}
	optProgName = option{"prog-name", "n", "<prog_name>", "the program of that name in each file (default: the first in the file)",
		func(f *pflag.FlagSet, o option, r *request) { f.StringVarP(&r.progName, o.name, o.short, "", "") }}
	optPrio = option{"prio", "P", "<priority>", "priority in the chain, where the lowest runs first (default: the file's, or 50)",
		func(f *pflag.FlagSet, o option, r *request) { f.VarP(numberValue{&r.prio}, o.name, o.short, "") }}
	optActions = option{"actions", "A", "<actions>", "results after which the next program runs, as in XDP_PASS,XDP_DROP (default: the file's, or XDP_PASS)",
		func(f *pflag.FlagSet, o option, r *request) { f.VarP(actionsValue{&r.actions}, o.name, o.short, "") }}
	optID = option{"id", "i", "<id>", "detach the program with that id",
		func(f *pflag.FlagSet, o option, r *request) { f.VarP(numberValue{&r.id}, o.name, o.short, "") }}
	optAll = option{"all", "a", "", "detach all programs of the interface",
		func(f *pflag.FlagSet, o option, r *request) { f.BoolVarP(&r.all, o.name, o.short, false, "") }}

	common = []option{
		{"verbose", "v", "", "tell what is done (twice: all of it)",
			func(f *pflag.FlagSet, o option, r *request) { f.CountVarP(&r.verbose, o.name, o.short, "") }},
		{"version", "", "", "show the version",
			func(f *pflag.FlagSet, o option, r *request) { f.BoolVar(&r.version, o.name, false, "") }},
		{"help", "h", "", "show this help",
			func(f *pflag.FlagSet, o option, r *request) { f.BoolVarP(&r.help, o.name, o.short, false, "") }},
	}
)

const unlimited = math.MaxInt

// errTooMany says only by the usage what is wrong, as xdp-loader does.
var errTooMany = errors.New("one argument too many")

// parse reads what follows the command's name. Options and arguments may be
// mixed, and long options shortened, as getopt_long allows. The error is what
// to say before the usage; with it the request holds what came before.
func parse(c *command, args []string) (request, error) {
	r := request{mode: xdp.Native}
	f := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	options := append(c.options[:len(c.options):len(c.options)], common...)
	for _, o := range options {
		o.add(f, o, &r)
	}
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(complete(name, options))
	})
	if err := f.Parse(args); err != nil {
		return r, explainFlag(c, err)
	}
	rest := f.Args()
	switch {
	case r.help || r.version:
		return r, nil
	case len(rest) < c.least:
		return r, fmt.Errorf("Missing required parameter %s", strings.Fields(c.args)[len(rest)]) //nolint:staticcheck // as xdp-loader says it
	case len(rest) > c.most:
		return r, errTooMany
	case len(rest) > 0:
		r.iface, r.files = rest[0], rest[1:]
	}
	return r, nil
}

// complete makes the name of the only option that begins like that, if there
// is one.
func complete(name string, options []option) string {
	var found []string
	for _, o := range options {
		if o.name == name {
			return name
		}
		if name != "" && strings.HasPrefix(o.name, name) {
			found = append(found, o.name)
		}
	}
	if len(found) == 1 {
		return found[0]
	}
	return name
}

// explainFlag words what is wrong with an option as getopt_long and xdp-loader
// do.
func explainFlag(c *command, err error) error {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return fmt.Errorf("%s: invalid option -- '%s'", c.name, unknown.GetSpecifiedName())
	case errors.As(err, &unknown):
		return fmt.Errorf("%s: unrecognized option '--%s'", c.name, unknown.GetSpecifiedName())
	case errors.As(err, &missing):
		return fmt.Errorf("%s: option '--%s' requires an argument", c.name, missing.GetFlag().Name)
	case errors.As(err, &invalid):
		return fmt.Errorf("Couldn't parse option %s: %w.", invalid.GetFlag().Name, errors.Unwrap(invalid)) //nolint:staticcheck // as xdp-loader says it
	}
	return fmt.Errorf("%s: %w", c.name, err)
}

// modes has xdp-loader's names of them.
var modes = []struct {
	name string
	mode xdp.Mode
}{
	{"native", xdp.Native},
	{"skb", xdp.Generic},
	{"hw", xdp.Offload},
	{"unspecified", xdp.Auto},
}

func modeNames() (names []string) {
	for _, m := range modes {
		names = append(names, m.name)
	}
	return names
}

func modeName(mode xdp.Mode) string {
	for _, m := range modes {
		if m.mode == mode {
			return m.name
		}
	}
	return mode.String()
}

type modeValue struct{ mode *xdp.Mode }

func (v modeValue) Set(s string) error {
	for _, m := range modes {
		if m.name == s {
			*v.mode = m.mode
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", s, strings.Join(modeNames(), ","))
}
func (v modeValue) String() string { return "" }
func (v modeValue) Type() string   { return "mode" }

// numberValue is decimal, and 0 is as if it had not been given.
type numberValue struct{ number *uint32 }

func (v numberValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return fmt.Errorf("%q is no number of 32 bits", s)
	}
	*v.number = uint32(n)
	return nil
}
func (v numberValue) String() string { return "" }
func (v numberValue) Type() string   { return "number" }

type actionsValue struct{ actions *chain.Actions }

func (v actionsValue) Set(s string) error {
	// A comma at the end, and nothing at all, are fine there.
	if s = strings.TrimSuffix(s, ","); s == "" {
		*v.actions = 0
		return nil
	}
	actions, err := chain.ParseActions(s)
	if err != nil {
		return err
	}
	*v.actions = actions
	return nil
}
func (v actionsValue) String() string { return "" }
func (v actionsValue) Type() string   { return "actions" }

// objectDirs are the directories where bare names of objects are looked for.
func objectDirs(variable string) []string {
	var dirs []string
	for _, dir := range filepath.SplitList(variable) {
		if dir != "" {
			dirs = append(dirs, dir)
		}
	}
	packaged, _ := filepath.Glob("/usr/lib/*-linux-gnu/bpf") // the pattern is well-formed
	return append(append(dirs, "/usr/lib/bpf"), packaged...)
}
