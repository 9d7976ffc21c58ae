package cli

import (
	"errors"
	"fmt"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// hookFlags say which hook is meant.
type hookFlags struct {
	netns string
	mode  string
}

func (f *hookFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.netns, "netns", "", "network namespace of the interface: a name, a path or a pid")
	c.Flags().StringVar(&f.mode, "mode", "auto", "native, generic, offload, or auto: native where the driver can")
	completeFlag(c, "mode", "native", "generic", "offload", "auto")
}

// open finds the hook. The caller closes the namespace.
func (f *hookFlags) open(name string) (*xdp.Namespace, *xdp.Hook, error) {
	mode, err := xdp.ParseMode(f.mode)
	if err != nil {
		return nil, nil, usagef("--mode %q: it is native, generic, offload or auto", f.mode)
	}
	ns, err := xdp.OpenNamespace(f.netns)
	if err != nil {
		return nil, nil, err
	}
	h, err := ns.Hook(name, mode)
	if err != nil {
		ns.Close()
		return nil, nil, err
	}
	return ns, h, nil
}

// objectFlags say what is loaded.
type objectFlags struct {
	program     string
	section     string
	set         []string
	pinMaps     string
	deviceBound bool
	verifierLog bool
}

func (f *objectFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.program, "program", "", "which of the object's programs, by its function's name")
	flags.StringVar(&f.section, "section", "", "which of the object's programs, by its section")
	flags.StringArrayVar(&f.set, "set", nil, "set a global variable, as in --set port=53 (repeatable)")
	flags.StringVar(&f.pinMaps, "pin-maps", "", "directory in a bpffs for maps that ask to be pinned by name (default: they are not shared)")
	flags.BoolVar(&f.deviceBound, "device-bound", false, "load the program for this interface only, so that it can use what only its driver offers")
	flags.BoolVar(&f.verifierLog, "verifier-log", false, "print all that the kernel's verifier said")
}

// open reads the object and sets its variables.
func (f *objectFlags) open(path string) (*object.Object, error) {
	o, err := object.Open(path)
	if err != nil {
		return nil, err
	}
	for _, s := range f.set {
		if err := o.Set(s); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// options say how the object is loaded for the hook.
func (f *objectFlags) options(h *xdp.Hook) object.LoadOptions {
	options := object.LoadOptions{
		Program: object.Choice{Name: f.program, Section: f.section},
		PinMaps: f.pinMaps,
		Offload: h.Mode() == xdp.Offload,
	}
	if f.deviceBound || options.Offload {
		options.Ifindex = h.Index()
	}
	if f.verifierLog {
		options.LogLevel = verifierLogLevel
	}
	return options
}

// raiseMemlock is called before anything is loaded. Before Linux 5.11 programs
// and maps count as locked memory, of which there is hardly any by default.
// Where it can't be raised, loading says so.
func (a *app) raiseMemlock() {
	if err := kernel.RemoveMemlock(); err != nil {
		a.log.Debug("the limit on locked memory stays", "error", err)
	}
}

// load loads the object for the hook. The caller closes it.
func (f *objectFlags) load(a *app, path string, h *xdp.Hook) (*object.Loaded, error) {
	o, err := f.open(path)
	if err != nil {
		return nil, err
	}
	return f.loadObject(a, h, o, f.options(h))
}

func (f *objectFlags) loadObject(a *app, h *xdp.Hook, o *object.Object, options object.LoadOptions) (*object.Loaded, error) {
	a.raiseMemlock()
	var loaded *object.Loaded
	load := func() (err error) {
		loaded, err = o.Load(options)
		return err
	}
	var err error
	if options.Ifindex == 0 {
		err = load()
	} else {
		// An index means nothing outside its namespace.
		err = h.Namespace().Do(load)
	}
	if f.verifierLog {
		a.printVerifierLog(loaded, err)
	}
	return loaded, f.explain(h, err)
}

// explain ends an error with the flag that helps.
func (f *objectFlags) explain(h *xdp.Hook, err error) error {
	var e *object.Error
	switch {
	case !errors.As(err, &e):
	case errors.Is(err, object.ErrAmbiguous):
		e.Hint = "choose one with --program or --section"
	case errors.Is(err, object.ErrVerifier) && !f.verifierLog:
		e.Hint = "correct the program; --verifier-log shows the way to that line"
	case h.Mode() == xdp.Offload && e.VerifierLog == "" && errors.Is(err, unix.EINVAL):
		return &xdp.Error{
			Op: "load", Hook: h.String(), Err: xdp.ErrNotSupported, Errno: unix.EINVAL,
			Detail: "the driver of " + h.Name() + " does not offload programs", Hint: "use --mode native",
		}
	}
	return err
}

// verifierLogLevel asks for branches and statistics (BPF_LOG_LEVEL1 and
// BPF_LOG_STATS).
const verifierLogLevel = 1 | 4

func (a *app) printVerifierLog(loaded *object.Loaded, err error) {
	var e *object.Error
	switch {
	case errors.As(err, &e):
		fmt.Fprintln(a.env.Stderr, e.VerifierLog)
	case loaded != nil:
		fmt.Fprintln(a.env.Stderr, loaded.VerifierLog)
	}
}

// memberFlags say where in a chain a program runs.
type memberFlags struct {
	priority      uint32
	proceedOn     string
	before, after string
}

func (f *memberFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.Uint32Var(&f.priority, "priority", 0, "when it runs in the chain, where the lowest number is first (default: what the object asks for, or 50)")
	flags.StringVar(&f.proceedOn, "proceed-on", "", "results after which the chain goes on, as in pass,drop (default: what the object asks for, or pass)")
	flags.StringVar(&f.before, "before", "", "let it run right before this member of the chain")
	flags.StringVar(&f.after, "after", "", "let it run right after this member of the chain")
}

// settings are what was given of them.
func (f *memberFlags) settings(c *cobra.Command) (libxdp.Settings, error) {
	s := libxdp.Settings{Before: f.before, After: f.after}
	if c.Flags().Changed("priority") {
		s.Priority = &f.priority
	}
	if c.Flags().Changed("proceed-on") {
		actions, err := chain.ParseActions(f.proceedOn)
		if err != nil {
			return s, usagef("--proceed-on: %w", err)
		}
		s.ProceedOn = &actions
	}
	if s.Priority != nil && (s.Before != "" || s.After != "") {
		return s, usagef("--priority and --before or --after exclude each other: a place beside a member has its own priority")
	}
	return s, nil
}

// checkName refuses what would not be legible as the name of an attachment.
func checkName(name string) error {
	const longest = 64
	if utf8.RuneCountInString(name) > longest {
		return usagef("--name has more than %d characters", longest)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return usagef("--name %q: %q can't be printed", name, r)
		}
	}
	return nil
}

// parseExpect reads --expect: an id, "empty" or "any"; nothing is no expectation.
func parseExpect(s string) (xdp.Expectation, error) {
	switch s {
	case "":
		return xdp.Expectation{}, nil
	case "empty":
		return xdp.Empty, nil
	case "any":
		return xdp.Any, nil
	}
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id == 0 {
		return xdp.Expectation{}, usagef("--expect %q: it is a program's id, empty or any", s)
	}
	return xdp.ExpectID(uint32(id)), nil
}
