package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// holdfast runs the command inside the test.
func holdfast(args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	code = Main(Env{Args: args, Stdout: &out, Stderr: &errOut, Getenv: func(string) string { return "" }})
	return code, out.String(), errOut.String()
}

// walk calls f with every command of the tree.
func walk(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		walk(sub, f)
	}
}

func tree() *cobra.Command {
	root := New(Env{Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}})
	root.InitDefaultHelpCmd()
	return root
}

func TestEveryCommandIsDescribed(t *testing.T) {
	walk(tree(), func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || len(c.Short) > 72 {
			t.Errorf("%s: %q is no short description: one line without a full stop", c.CommandPath(), c.Short)
		}
		if c.Hidden || !c.HasParent() {
			return
		}
		if c.Long == "" && c.Example == "" && c.Flags().HasFlags() {
			t.Errorf("%s has flags, but neither a long description nor an example", c.CommandPath())
		}
		for line := range strings.Lines(c.Long + "\n" + c.Example) {
			if len(line) > 84 {
				t.Errorf("%s: the help has a line too wide for a terminal: %s", c.CommandPath(), line)
			}
		}
		for line := range strings.Lines(c.Example) {
			if !strings.HasPrefix(line, "  ") || !strings.Contains(line, c.CommandPath()) {
				t.Errorf("%s: the example %q does not show it", c.CommandPath(), line)
			}
		}
	})
}

func TestEveryFlagIsDescribed(t *testing.T) {
	walk(tree(), func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: %q is no description", c.CommandPath(), f.Name, f.Usage)
			}
		})
	})
}

// The commands and flags that people have in their scripts.
func TestTheCommandHasWhatScriptsUse(t *testing.T) {
	hook := []string{"netns", "mode"}
	load := append([]string{"program", "section", "set", "pin-maps", "device-bound", "verifier-log"}, hook...)
	member := []string{"name", "priority", "proceed-on", "before", "after", "exclusive", "engine"}
	for command, flags := range map[string][]string{
		"attach":     slices.Concat([]string{"expect", "shared", "single", "adopt", "persist-as", "while-pid"}, member, load),
		"replace":    append([]string{"expect", "expect-generation"}, load...),
		"detach":     append([]string{"expect", "foreign", "all"}, hook...),
		"set":        append([]string{"priority", "proceed-on", "before", "after", "exclusive"}, hook...),
		"run":        slices.Concat(member, load),
		"lock":       hook,
		"unlock":     hook,
		"adopt":      append([]string{"name", "allow-gap"}, load...),
		"status":     {"netns", "all-netns"},
		"who":        {"pid", "id", "pin"},
		"features":   {"netns", "try"},
		"gc":         {"dry-run"},
		"daemon":     {"config", "socket"},
		"version":    nil,
		"completion": nil,
		"help":       nil,

		"policy check":   {"config"},
		"policy explain": {"as", "file", "config", "mode", "lifetime", "netns", "priority", "exclusive", "others"},
	} {
		c, rest, err := tree().Find(strings.Fields(command))
		if err != nil || len(rest) > 0 {
			t.Errorf("there is no command %s", command)
			continue
		}
		for _, f := range append(flags, "output", "log-level", "bpffs", "libxdp-bpffs", "lock-timeout") {
			if c.Flag(f) == nil {
				t.Errorf("%s has no flag --%s", command, f)
			}
		}
	}
}

func TestHelpIsAResult(t *testing.T) {
	for _, args := range [][]string{{}, {"help"}, {"--help"}, {"attach", "--help"}, {"help", "attach"}, {"help", "completion"}} {
		code, out, errOut := holdfast(args...)
		if code != exitDone || errOut != "" || !strings.Contains(out, "Usage:\n  holdfast") {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, out, errOut)
		}
	}
	if _, out, _ := holdfast("help", "attach"); !strings.Contains(out, "--while-pid") {
		t.Errorf("help attach does not tell of its flags: %s", out)
	}
}

func TestAWrongCallIsAnsweredWithOneSentenceAndExitCode2(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		says []string
	}{
		"unknown command":                   {[]string{"frobnicate"}, []string{`no command "frobnicate"`, "`holdfast --help`"}},
		"misspelled command":                {[]string{"attch", "eth0"}, []string{`no command "attch"; did you mean attach or watch?`}},
		"help for an unknown command":       {[]string{"help", "frobnicate"}, []string{`no command "frobnicate"`}},
		"help for a word too many":          {[]string{"help", "attach", "eth0"}, []string{"no command"}},
		"unknown flag":                      {[]string{"status", "--bogus"}, []string{"unknown flag: --bogus", "`holdfast status --help`"}},
		"unknown output":                    {[]string{"status", "-o", "xml"}, []string{`--output "xml"`, "table or json"}},
		"output that is empty":              {[]string{"version", "-o", ""}, []string{"table or json"}},
		"unknown log level":                 {[]string{"status", "--log-level", "loud"}, []string{`--log-level "loud"`, "debug, info, warn or error"}},
		"lock timeout that is no time":      {[]string{"gc", "--lock-timeout", "soon"}, []string{"--lock-timeout", "soon"}},
		"lock timeout of nothing":           {[]string{"gc", "--lock-timeout", "0"}, []string{"longer than nothing"}},
		"lock timeout in the past":          {[]string{"gc", "--lock-timeout", "-1s"}, []string{"longer than nothing"}},
		"attach without arguments":          {[]string{"attach"}, []string{"IF and OBJ are missing", "`holdfast attach --help`"}},
		"attach without an object":          {[]string{"attach", "eth0"}, []string{"OBJ is missing"}},
		"attach with too much":              {[]string{"attach", "eth0", "a.o", "b.o"}, []string{`"b.o" is one argument too many`}},
		"several objects owned":             {[]string{"attach", "eth0", "a.o", "b.o", "--single", "--shared"}, []string{`"b.o" is one argument too many`}},
		"single on an owned hook":           {[]string{"attach", "eth0", "a.o", "--single"}, []string{"--single", "give --shared"}},
		"adopted by an owner":               {[]string{"attach", "eth0", "a.o", "--adopt"}, []string{"--adopt", "give --shared"}},
		"adopted to be alone":               {[]string{"attach", "eth0", "a.o", "--adopt", "--shared", "--single"}, []string{"--adopt", "without --single"}},
		"a priority for a single program":   {[]string{"attach", "eth0", "a.o", "--shared", "--single", "--priority", "0"}, []string{"--priority", "--single"}},
		"actions for a single program":      {[]string{"attach", "eth0", "a.o", "--shared", "--single", "--proceed-on", ""}, []string{"--proceed-on", "leave out --single"}},
		"exclusive and shared":              {[]string{"attach", "eth0", "a.o", "--exclusive", "--shared"}, []string{"--exclusive", "leave out --shared"}},
		"an engine for a shared chain":      {[]string{"attach", "eth0", "a.o", "--engine", "live", "--shared"}, []string{"--engine", "leave out --shared"}},
		"an engine that there is not":       {[]string{"attach", "eth0", "a.o", "--engine", "steam"}, []string{`--engine "steam"`, "live, fused or auto"}},
		"run in an engine that is none":     {[]string{"run", "eth0", "a.o", "--engine", "single", "--", "true"}, []string{`--engine "single"`}},
		"run with a priority and a place":   {[]string{"run", "eth0", "a.o", "--priority", "1", "--before", "b", "--", "true"}, []string{"exclude each other"}},
		"a priority and a place":            {[]string{"attach", "eth0", "a.o", "--shared", "--priority", "1", "--after", "b"}, []string{"--priority", "--after", "exclude each other"}},
		"a priority that is no number":      {[]string{"attach", "eth0", "a.o", "--shared", "--priority", "-1"}, []string{"--priority", "-1"}},
		"actions that there are not":        {[]string{"attach", "eth0", "a.o", "--shared", "--proceed-on", "pass,fly"}, []string{"--proceed-on", `"fly"`, "XDP_PASS"}},
		"a chain in place of a program":     {[]string{"attach", "eth0", "a.o", "--shared", "--expect", "42"}, []string{"--expect", "--single"}},
		"a name for a member":               {[]string{"attach", "eth0", "a.o", "--shared", "--name", "b"}, []string{"--name", "--single"}},
		"attach in an unknown mode":         {[]string{"attach", "eth0", "a.o", "--mode", "fast"}, []string{`--mode "fast"`, "native, generic, offload or auto"}},
		"attach expecting nonsense":         {[]string{"attach", "eth0", "a.o", "--expect", "it"}, []string{`--expect "it"`, "empty or any"}},
		"attach owned expecting a program":  {[]string{"attach", "eth0", "a.o", "--expect", "42"}, []string{"--expect 42", "--shared --single"}},
		"attach owned expecting anything":   {[]string{"attach", "eth0", "a.o", "--expect", "any"}, []string{"--shared --single"}},
		"shared until a process ends":       {[]string{"attach", "eth0", "a.o", "--shared", "--while-pid", "1"}, []string{"--while-pid needs an owned hook"}},
		"persisted until a process ends":    {[]string{"attach", "eth0", "a.o", "--persist-as", "/x", "--while-pid", "1"}, []string{"--persist-as", "--while-pid"}},
		"persisted without a link":          {[]string{"attach", "eth0", "a.o", "--persist-as", "/x", "--shared"}, []string{"--persist-as", "--shared"}},
		"a negative pid":                    {[]string{"attach", "eth0", "a.o", "--while-pid", "-1"}, []string{"--while-pid -1 is no process"}},
		"a pid that is no number":           {[]string{"attach", "eth0", "a.o", "--while-pid", "me"}, []string{"--while-pid", "me"}},
		"a name with a line break":          {[]string{"attach", "eth0", "a.o", "--name", "a\nb"}, []string{`--name "a\nb"`}},
		"a name without end":                {[]string{"attach", "eth0", "a.o", "--name", strings.Repeat("ö", 65)}, []string{"more than 64 characters"}},
		"replace without an object":         {[]string{"replace", "eth0"}, []string{"OBJ is missing"}},
		"replace with too much":             {[]string{"replace", "eth0", "m", "a.o", "b.o"}, []string{"one argument too many"}},
		"replace with two expectations":     {[]string{"replace", "eth0", "a.o", "--expect", "42", "--expect-generation", "7"}, []string{"--expect", "--expect-generation", "exclude each other"}},
		"replace of no generation":          {[]string{"replace", "eth0", "a.o", "--expect-generation", "0"}, []string{"--expect-generation 0", "status -o json"}},
		"adopt with a gap unsaid":           {[]string{"adopt", "eth0", "a.o"}, []string{"packets in between", "--allow-gap"}},
		"adopt without an object":           {[]string{"adopt", "eth0", "--allow-gap"}, []string{"OBJ is missing"}},
		"lock of nothing":                   {[]string{"lock"}, []string{"IF is missing"}},
		"unlock of two interfaces":          {[]string{"unlock", "eth0", "eth1"}, []string{`"eth1" is one argument too many`}},
		"set without a member":              {[]string{"set", "eth0", "--priority", "1"}, []string{"MEMBER is missing"}},
		"set of nothing":                    {[]string{"set", "eth0", "m"}, []string{"nothing to set", "--priority"}},
		"set to a priority and a place":     {[]string{"set", "eth0", "m", "--priority", "1", "--before", "b"}, []string{"exclude each other"}},
		"replace of nothing":                {[]string{"replace", "eth0", "a.o", "--expect", "empty"}, []string{"nothing to replace", "use attach"}},
		"detach without an interface":       {[]string{"detach"}, []string{"IF is missing"}},
		"detach of nothing":                 {[]string{"detach", "eth0", "--expect", "empty"}, []string{"nothing to detach"}},
		"detach of a member and all":        {[]string{"detach", "eth0", "m", "--all"}, []string{"--all", `"m"`}},
		"detach of a member, expecting":     {[]string{"detach", "eth0", "m", "--expect", "42"}, []string{"--expect", "by its program's id"}},
		"detach of foreign without expect":  {[]string{"detach", "eth0", "--foreign"}, []string{"--foreign needs --expect"}},
		"run without a command":             {[]string{"run", "eth0", "a.o"}, []string{"`--` and a command are missing"}},
		"run with nothing after the dashes": {[]string{"run", "eth0", "a.o", "--"}, []string{"the command after `--` is missing"}},
		"run without an object":             {[]string{"run", "eth0", "--", "true"}, []string{"OBJ is missing"}},
		"run with too much":                 {[]string{"run", "eth0", "a.o", "b.o", "--", "true"}, []string{`"b.o" is one argument too many`}},
		"run with an illegible name":        {[]string{"run", "eth0", "a.o", "--name", "\x1b[2J", "--", "true"}, []string{`--name "\x1b[2J"`}},
		"status here and everywhere":        {[]string{"status", "--all-netns", "--netns", "blue"}, []string{"exclude each other"}},
		"who of two interfaces":             {[]string{"who", "eth0", "eth1"}, []string{`"eth1" is one argument too many`}},
		"who of several":                    {[]string{"who", "eth0", "--id", "42"}, []string{"ask one"}},
		"who of no process":                 {[]string{"who", "--pid", "0"}, []string{"begin with 1"}},
		"who of no interface":               {[]string{"who", "a b"}, []string{`can't be an interface's name`}},
		"features of two interfaces":        {[]string{"features", "eth0", "eth1"}, []string{`"eth1" is one argument too many`}},
		"features elsewhere of nothing":     {[]string{"features", "--netns", "blue"}, []string{"none is named"}},
		"features tried on nothing":         {[]string{"features", "--try"}, []string{"none is named"}},
		"gc of something":                   {[]string{"gc", "eth0"}, []string{`"eth0" is one argument too many`}},
		"version of something":              {[]string{"version", "eth0"}, []string{`"eth0" is one argument too many`}},
		"completion for no shell":           {[]string{"completion"}, []string{"SHELL is missing"}},
		"completion for an unknown shell":   {[]string{"completion", "ksh"}, []string{`"ksh"`, "bash, zsh and fish"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := holdfast(c.args...)
			if code != exitUsage || out != "" {
				t.Errorf("exit code %d, want %d; stdout %q", code, exitUsage, out)
			}
			if !strings.HasPrefix(errOut, "holdfast: ") || strings.Count(errOut, "\n") != 1 || !strings.HasSuffix(errOut, " --help`\n") {
				t.Errorf("%q is not one sentence that says where there is help", errOut)
			}
			for _, s := range c.says {
				if !strings.Contains(errOut, s) {
					t.Errorf("%q does not say %q", errOut, s)
				}
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	xdpError := func(sentinel error, errno unix.Errno) error {
		return &xdp.Error{Op: "attach", Hook: "eth0", Err: sentinel, Errno: errno}
	}
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("anything else"), 1},
		{xdp.ErrUnexpected, 1},
		{object.ErrFormat, 1},
		{object.ErrVerifier, 1},
		{object.ErrLicense, 1},
		{object.ErrRunConfig, 1},
		{object.ErrMap, 1},
		{usagef("wrong"), 2},
		{xdp.ErrInvalid, 2},
		{object.ErrVariable, 2},
		{object.ErrAmbiguous, 2},
		{xdp.ErrGone, 3},
		{xdp.ErrConflict, 4},
		{xdp.ErrExists, 4},
		{xdp.ErrPort, 4},
		{xdp.ErrPermission, 5},
		{object.ErrPermission, 5},
		{fs.ErrPermission, 5},
		{xdp.ErrNotSupported, 6},
		{xdp.ErrMTU, 6},
		{xdp.ErrAttachType, 6},
		{xdp.ErrDeviceBound, 6},
		{object.ErrNotSupported, 6},
		{object.ErrBTF, 6},
		{libxdp.ErrNoFreplace, 6},
		{libxdp.ErrFull, 6},
		{&owned.Error{Err: owned.ErrExists}, 4},
		{&owned.Error{Err: owned.ErrGeneration}, 4},
		{&owned.Error{Err: owned.ErrExclusive}, 4},
		{&owned.Error{Err: owned.ErrLocked}, 4},
		{&owned.Error{Err: owned.ErrNotEmpty}, 4},
		{&arbiter.MemberError{Err: &owned.Error{Err: owned.ErrExists}}, 4},
		{&owned.Error{Err: owned.ErrFull}, 6},
		{&owned.Error{Err: owned.ErrNoMember}, 7},
		{&owned.Error{Err: owned.ErrOrder}, 2},
		{&owned.Error{Err: owned.ErrInvalid}, 2},
		{live.ErrNoFreplace, 6},
		{live.ErrFull, 6},
		{&fused.LimitError{}, 6},
		{libxdp.ErrDamaged, 4},
		{libxdp.ErrPlain, 2},
		{libxdp.ErrNoMember, 7},
		{libxdp.ErrLockTimeout, 8},
		{&chain.PlaceError{Err: chain.ErrNoMember}, 7},
		{&chain.PlaceError{Err: chain.ErrAmbiguous}, 2},
		{&chain.PlaceError{Err: chain.ErrOrder}, 2},
		{&chain.PlaceError{Err: chain.ErrNoRoom}, 2},
		{xdp.ErrNotFound, 7},
		{xdp.ErrNotAttached, 7},
		{object.ErrNoProgram, 7},
		{fs.ErrNotExist, 7},
		{exec.ErrNotFound, 7},
		{arbiter.ErrLockTimeout, 8},
		{&statusError{143}, 143},

		// The errno says less than the sentinel.
		{xdpError(xdp.ErrConflict, unix.ENOENT), 4},
		{xdpError(xdp.ErrConflict, unix.EPERM), 4},
		{xdpError(xdp.ErrInvalid, unix.EPERM), 2},
		{xdpError(xdp.ErrNotSupported, unix.EPERM), 6},
		{xdpError(xdp.ErrPermission, unix.EPERM), 5},
		{xdpError(xdp.ErrUnexpected, unix.ENOENT), 1},
		{fmt.Errorf("%w: %w", object.ErrVerifier, unix.EACCES), 1},
		{fmt.Errorf("%w: %w", object.ErrMap, unix.EPERM), 1},

		{&arbiter.HeldError{Err: &xdp.Error{Err: xdp.ErrConflict}}, 4},
		// What the command under run returned counts, and not how it was
		// cleaned up after.
		{errors.Join(&statusError{7}, xdp.ErrGone), 7},
		{errors.Join(xdp.ErrNotFound, xdp.ErrConflict), 4},
		{errors.Join(errors.New("detach"), arbiter.ErrLockTimeout), 8},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
		if c.err == nil {
			continue
		}
		if got := ExitCode(fmt.Errorf("outside: %w", errors.Join(c.err))); got != c.want {
			t.Errorf("%v, wrapped: exit code %d, want %d", c.err, got, c.want)
		}
	}
}

func TestAMemberIsNamedByItsNameOrItsProgramsID(t *testing.T) {
	for s, want := range map[string]libxdp.Target{
		"filter":     {Name: "filter"},
		"42":         {ID: 42},
		"4294967295": {ID: 1<<32 - 1},
		"4294967296": {Name: "4294967296"},
		"0":          {Name: "0"},
		"-1":         {Name: "-1"},
		"42nd":       {Name: "42nd"},
	} {
		if got := memberTarget(s); got != want {
			t.Errorf("%s is %+v, want %+v", s, got, want)
		}
	}
}

func TestTheOnlyMemberIsMeantWhereNoneIsNamed(t *testing.T) {
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := ns.Hook("lo", xdp.Auto)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := onlyMember(h, chainOfOne, ""); err != nil || m.Name != "sample" {
		t.Errorf("of one it is %+v, %v", m, err)
	}
	two := &libxdp.Chain{Members: []libxdp.Member{firstMember, secondMember}}
	if _, err := onlyMember(h, two, "choose"); ExitCode(err) != exitUsage || !strings.HasSuffix(err.Error(), "in_full (590), sample (1595); choose") {
		t.Errorf("of two: %v", err)
	}
	damaged := &libxdp.Chain{Problem: "pins are missing"}
	if _, err := onlyMember(h, damaged, "choose"); ExitCode(err) != exitUsage || !strings.Contains(err.Error(), "can't be told: pins are missing; choose") {
		t.Errorf("of an unknown number: %v", err)
	}
}

// What they have in common is told once, in the exact words of xdp-loader: see
// its own package.
func TestXDPLoaderIsAnotherCommandInsideAndByAnotherName(t *testing.T) {
	named := func(args ...string) (code int, stdout, stderr string) {
		var out, errOut bytes.Buffer
		code = Main(Env{Name: "xdp-loader", Args: args, Stdout: &out, Stderr: &errOut, Getenv: func(string) string { return "" }})
		return code, out.String(), errOut.String()
	}
	for args, code := range map[string]int{
		"": 255, "help": 255, "load": 1, "load --help": 1, "unl -h": 1, "--version": 0, "status nope": 1, "frobnicate": 1, "-o json status": 1, "--help": 0,
	} {
		words := strings.Fields(args)
		byName, out, errOut := named(words...)
		inside, out2, errOut2 := holdfast(append([]string{"xdp-loader"}, words...)...)
		if byName != code || inside != code || out != out2 || errOut != errOut2 || strings.Contains(errOut, "holdfast: ") {
			t.Errorf("%q: exit code %d and %d, want %d; stdout %q and %q, stderr %q and %q", args, byName, inside, code, out, out2, errOut, errOut2)
		}
	}
	if _, out, _ := holdfast("help", "xdp-loader"); !strings.Contains(out, "Usage:\n  holdfast xdp-loader COMMAND") || strings.Contains(out, "--log-level") {
		t.Errorf("help xdp-loader is %q", out)
	}
}

// The order of two numbers in scripts is for ever.
func TestTheHelpTellsTheExitCodes(t *testing.T) {
	_, out, _ := holdfast("--help")
	for code, word := range map[int]string{
		exitDone: "done", exitFailed: "failed", exitUsage: "usage", exitDrift: "drift", exitConflict: "conflict",
		exitPermission: "not permitted", exitNotSupported: "the kernel cannot", exitNotFound: "not found",
		exitLockTimeout: "lock timeout",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), fmt.Sprintf("%d %s", code, word)) {
			t.Errorf("the help does not say %d %s", code, word)
		}
	}
}

func TestAnExpectationIsAnIDOrEmptyOrAny(t *testing.T) {
	for s, want := range map[string]xdp.Expectation{
		"":           {},
		"empty":      xdp.Empty,
		"any":        xdp.Any,
		"1":          xdp.ExpectID(1),
		"042":        xdp.ExpectID(42),
		"4294967295": xdp.ExpectID(1<<32 - 1),
	} {
		if got, err := parseExpect(s); err != nil || got != want {
			t.Errorf("parseExpect(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"0", "-1", "4294967296", "0x2a", "Any", " 1", "1 ", "nothing", "1,2"} {
		if _, err := parseExpect(s); ExitCode(err) != exitUsage || !strings.Contains(err.Error(), s) {
			t.Errorf("parseExpect(%q): %v", s, err)
		}
	}
}

func FuzzAnExpectationIsReadOrRefused(f *testing.F) {
	for _, s := range []string{"", "empty", "any", "1", "0", "4294967296", "+1", "ANY"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseExpect(s)
		switch {
		case err != nil:
			if ExitCode(err) != exitUsage || !e.IsZero() {
				t.Errorf("%q: %v is refused with exit code %d", s, e, ExitCode(err))
			}
		case e.IsZero() != (s == ""):
			t.Errorf("%q expects nothing", s)
		case e.Holds(0) != (s == "empty" || s == "any"):
			t.Errorf("%q: on an empty hook it holds: %v", s, e.Holds(0))
		}
	})
}

func TestShellsGetTheirCompletions(t *testing.T) {
	for shell, sign := range map[string]string{
		"bash": "complete -o default -F __start_holdfast holdfast",
		"zsh":  "#compdef holdfast",
		"fish": "complete -c holdfast",
	} {
		code, out, errOut := holdfast("completion", shell)
		if code != exitDone || errOut != "" || !strings.Contains(out, sign) {
			t.Errorf("%s: exit code %d, stderr %q, and %d bytes without %q", shell, code, errOut, len(out), sign)
		}
	}
}

func TestWordsAreCompleted(t *testing.T) {
	const files, noFiles = ":0\n", ":4\n"
	for name, c := range map[string]struct {
		args []string
		want string
		end  string
	}{
		"interfaces":                {[]string{"attach", ""}, "lo\n", noFiles},
		"interfaces to detach":      {[]string{"detach", ""}, "lo\n", noFiles},
		"nothing after an argument": {[]string{"detach", "lo", ""}, "", noFiles},
		"more interfaces":           {[]string{"status", "eth0", ""}, "lo\n", noFiles},
		"objects":                   {[]string{"replace", "lo", ""}, "", files},
		"modes":                     {[]string{"run", "--mode", ""}, "native\ngeneric\noffload\nauto\n", noFiles},
		"outputs":                   {[]string{"status", "-o", ""}, "table\njson\n", noFiles},
		"levels":                    {[]string{"gc", "--log-level", ""}, "debug\ninfo\nwarn\nerror\n", noFiles},
		"interfaces of a request":   {[]string{"policy", "explain", ""}, "lo\n", noFiles},
		"verbs":                     {[]string{"policy", "explain", "eth0", ""}, "attach\nreplace\ndetach\n", noFiles},
		"nothing after a verb":      {[]string{"policy", "explain", "eth0", "attach", ""}, "", noFiles},
		"policies":                  {[]string{"policy", "check", ""}, "", files},
		"namespaces":                {[]string{"policy", "explain", "--netns", ""}, "host\nown\nother\n", noFiles},
		"shells":                    {[]string{"completion", ""}, "bash\nzsh\nfish\n", noFiles},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, _ := holdfast(append([]string{cobra.ShellCompNoDescRequestCmd}, c.args...)...)
			if code != exitDone || !strings.Contains(out, c.want) || !strings.HasSuffix(out, c.end) {
				t.Errorf("exit code %d, completions %q, want %q and at the end %q", code, out, c.want, c.end)
			}
		})
	}
}

func TestFilesThatCannotBeReadHaveTheirExitCodes(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text.o")
	if err := os.WriteFile(text, []byte("no object"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		code int
		says string
	}{
		"missing":     {filepath.Join(dir, "missing.o"), exitNotFound, "no such file"},
		"a directory": {dir, exitFailed, "it is a directory"},
		"not an ELF":  {text, exitFailed, "not a usable BPF object"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := holdfast("attach", "lo", c.path, "--bpffs", filepath.Join(dir, "state"))
			if code != c.code || out != "" || !strings.Contains(errOut, c.says) || !strings.Contains(errOut, c.path) {
				t.Errorf("exit code %d, want %d; stdout %q, stderr %q, which should say %q", code, c.code, out, errOut, c.says)
			}
		})
	}
}
