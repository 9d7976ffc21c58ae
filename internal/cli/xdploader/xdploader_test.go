package xdploader

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("not as in %s, which `go test ./internal/cli/xdploader -update` writes anew (-want +got):\n%s", path, diff)
	}
}

// run runs the command inside the test.
func run(args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	code = Main(Env{Args: args, Stdout: &out, Stderr: &errOut, Getenv: func(string) string { return "" }, Version: "v0.1.0"})
	return code, out.String(), errOut.String()
}

func mustParse(t *testing.T, command string, args ...string) request {
	t.Helper()
	r, err := parse(findCommand(command), args)
	if err != nil {
		t.Fatalf("%s %q: %v", command, args, err)
	}
	return r
}

func TestOptionsAreReadAsXDPLoaderReadsThem(t *testing.T) {
	plain := request{iface: "eth0", files: []string{"a.o"}, mode: xdp.Native}
	with := func(change func(*request)) request {
		r := plain
		change(&r)
		return r
	}
	for _, c := range []struct {
		args string
		want request
	}{
		{"eth0 a.o", plain},
		{"eth0 a.o b.o", with(func(r *request) { r.files = []string{"a.o", "b.o"} })},
		{"-m skb eth0 a.o", with(func(r *request) { r.mode = xdp.Generic })},
		{"eth0 a.o -m skb", with(func(r *request) { r.mode = xdp.Generic })},
		{"eth0 -mskb a.o", with(func(r *request) { r.mode = xdp.Generic })},
		{"--mode=hw eth0 a.o", with(func(r *request) { r.mode = xdp.Offload })},
		{"--mode unspecified eth0 a.o", with(func(r *request) { r.mode = xdp.Auto })},
		{"--mode native eth0 a.o", plain},
		{"eth0 a.o -P 7 -A XDP_PASS,XDP_DROP", with(func(r *request) { r.prio, r.actions = 7, chain.Set(chain.Pass, chain.Drop) })},
		{"eth0 a.o --prio=4294967295", with(func(r *request) { r.prio = 1<<32 - 1 })},
		{"eth0 a.o --prio 0", plain}, // as if it had not been given
		{"eth0 a.o --actions XDP_TX,", with(func(r *request) { r.actions = chain.Set(chain.Tx) })},
		{"eth0 a.o -s xdp/first", with(func(r *request) { r.section = "xdp/first" })},
		{"eth0 a.o --sec xdp/first", with(func(r *request) { r.section = "xdp/first" })},
		{"eth0 a.o -n first", with(func(r *request) { r.progName = "first" })},
		{"eth0 a.o --prog-name first", with(func(r *request) { r.progName = "first" })},
		{"eth0 a.o -p /sys/fs/bpf/x", with(func(r *request) { r.pinPath = "/sys/fs/bpf/x" })},
		{"eth0 a.o --pin /sys/fs/bpf/x", with(func(r *request) { r.pinPath = "/sys/fs/bpf/x" })},
		{"eth0 a.o -v", with(func(r *request) { r.verbose = 1 })},
		{"-vv eth0 a.o", with(func(r *request) { r.verbose = 2 })},
		{"--verb eth0 a.o -v", with(func(r *request) { r.verbose = 2 })},
		{"eth0 -- -a.o", with(func(r *request) { r.files = []string{"-a.o"} })},
	} {
		if got := mustParse(t, "load", strings.Fields(c.args)...); !equal(got, c.want) {
			t.Errorf("load %s is %+v, want %+v", c.args, got, c.want)
		}
	}
	for _, c := range []struct {
		args string
		want request
	}{
		{"eth0 -a", request{iface: "eth0", all: true}},
		{"--all eth0", request{iface: "eth0", all: true}},
		{"--al eth0", request{iface: "eth0", all: true}},
		{"eth0 -i 42", request{iface: "eth0", id: 42}},
		{"--id=42 eth0", request{iface: "eth0", id: 42}},
		{"-ai 42", request{id: 42, all: true}},
		{"", request{}},
	} {
		c.want.mode = xdp.Native
		if got := mustParse(t, "unload", strings.Fields(c.args)...); !equal(got, c.want) {
			t.Errorf("unload %s is %+v, want %+v", c.args, got, c.want)
		}
	}
	if r := mustParse(t, "load", "eth0", "a.o", "-A", ""); r.actions != 0 {
		t.Errorf("no actions are %v", r.actions)
	}
}

func equal(a, b request) bool {
	files := slices.Equal(a.files, b.files)
	a.files, b.files = nil, nil
	return files && fmt.Sprint(a) == fmt.Sprint(b)
}

func TestAWrongCallIsAnsweredWithTheUsageAndExitCode1(t *testing.T) {
	for args, says := range map[string]string{
		"load":                            "Missing required parameter <ifname>\n",
		"load eth0":                       "Missing required parameter <filenames>\n",
		"load --bogus eth0 a.o":           "load: unrecognized option '--bogus'\n",
		"load -q eth0 a.o":                "load: invalid option -- 'q'\n",
		"load eth0 a.o -P":                "load: option '--prio' requires an argument\n",
		"load eth0 a.o --pr 5":            "load: unrecognized option '--pr'\n", // --prio or --prog-name
		"load eth0 a.o -P 99999999999":    "Couldn't parse option prio: ",
		"load eth0 a.o -P -1":             "Couldn't parse option prio: ",
		"load eth0 a.o -P high":           "Couldn't parse option prio: ",
		"load eth0 a.o -m fast":           "Couldn't parse option mode: ",
		"load eth0 a.o -A XDP_FOO":        "Couldn't parse option actions: ",
		"load eth0 a.o -a":                "load: invalid option -- 'a'\n",
		"unload eth0 eth1 -a":             "",
		"unload eth0 -i x":                "Couldn't parse option id: ",
		"status eth0 eth1":                "",
		"features":                        "Missing required parameter <ifname>\n",
		"load no-such-interface0 a.o":     "Couldn't find network interface 'no-such-interface0'.\n",
		"status no-such-interface0":       "Couldn't find network interface 'no-such-interface0'.\n",
		"clean no-such-interface0":        "Couldn't find network interface 'no-such-interface0'.\n",
		"features no-such-interface0":     "Couldn't find network interface 'no-such-interface0'.\n",
		"unload no-such-interface0 --all": "Couldn't find network interface 'no-such-interface0'.\n",
	} {
		code, out, errOut := run(strings.Fields(args)...)
		name, _, _ := strings.Cut(args, " ")
		if code != 1 || !strings.HasPrefix(errOut, says) || says == "" && errOut != "" || strings.Count(errOut, "\n") > 1 ||
			!strings.HasPrefix(out, "\nUsage: xdp-loader "+name+" [options]") || strings.Count(out, "\n") != 3 {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q, want %q and the usage", args, code, out, errOut, says)
		}
	}
}

func TestWhatCannotBeIsSaidWithoutTheUsage(t *testing.T) {
	for args, says := range map[string]string{
		"unload lo":                    "Need prog ID or --all\n",
		"unload lo --id 0":             "Need prog ID or --all\n",
		"unload -a":                    "Must specify ifname\n",
		"load lo a.o -s xdp -n filter": "Only one of --section or --prog-name can be set\n",
		"load lo a.o b.o -m hw":        "Cannot attach multiple programs in HW mode\n",
		"frobnicate":                   "Command 'frobnicate' is unknown, try 'xdp-loader help'.\n",
	} {
		if code, out, errOut := run(strings.Fields(args)...); code != 1 || out != "" || errOut != says {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q, want %q", args, code, out, errOut, says)
		}
	}
	if code, _, errOut := run(""); code != 1 || !strings.HasPrefix(errOut, "Command '' is unknown") {
		t.Errorf("no word: exit code %d, stderr %q", code, errOut)
	}
}

func TestCommandsCanBeShortened(t *testing.T) {
	for word, want := range map[string]string{
		"load": "load", "l": "load", "un": "unload", "u": "unload", "s": "status", "sta": "status",
		"c": "clean", "f": "features", "feat": "features",
	} {
		if c := findCommand(word); c == nil || c.name != want {
			t.Errorf("%s is %+v, want %s", word, c, want)
		}
	}
	for _, word := range []string{"", "loader", "x", "help"} {
		if c := findCommand(word); c != nil {
			t.Errorf("%q is %s", word, c.name)
		}
	}
}

func TestHelpNamesAllThereIs(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		out  bool // on standard output, or else on the other
	}{
		{nil, 255, false},
		{[]string{"help"}, 255, false},
		{[]string{"h"}, 255, false},
		{[]string{"--help"}, 0, true},
	} {
		code, out, errOut := run(c.args...)
		if code != c.code || (out != "") != c.out || (errOut != "") == c.out {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", c.args, code, out, errOut)
		}
		golden(t, "help", out+errOut)
	}
	for _, c := range commands {
		// The first request counts, whatever comes after.
		for _, args := range [][]string{{c.name, "--help"}, {c.name, "-h", "--bogus"}, {c.name, "-vh"}} {
			code, out, errOut := run(args...)
			if code != 1 || errOut != "" {
				t.Errorf("%q: exit code %d, stderr %q", args, code, errOut)
			}
			golden(t, c.name+"-help", out)
		}
	}
}

func TestTheVersionIsHoldfasts(t *testing.T) {
	for args, code := range map[string]int{"--version": 0, "load --version": 1, "load eth0 --vers": 1} {
		if got, out, errOut := run(strings.Fields(args)...); got != code || out != "xdp-loader version v0.1.0 (Holdfast)\n" || errOut != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", args, got, out, errOut)
		}
	}
}

func TestTheStatusIsInXDPLoadersColumns(t *testing.T) {
	program := func(id uint32, name, tag string) xdp.Program { return xdp.Program{ID: id, Name: name, Tag: tag} }
	at := func(mode xdp.Mode, p xdp.Program) *xdp.Attachment {
		return &xdp.Attachment{Mode: mode, Program: p, Held: xdp.HeldByNetlink}
	}
	dispatcher := program(586, "xdp_dispatcher", "63e8febd672ce2c6")
	var b strings.Builder
	printHead(&b)
	printInterface(&b, "lo", &libxdp.Chain{Kind: libxdp.Empty}, &libxdp.Chain{Kind: libxdp.Empty})
	printInterface(&b, "a0", &libxdp.Chain{
		Kind: libxdp.Dispatcher, Version: 2, Attachment: at(xdp.Native, dispatcher), Dispatcher: dispatcher,
		Members: []libxdp.Member{
			{Slot: 0, Name: "xdp_pass", Priority: 10, ProceedOn: chain.Set(chain.Pass), Program: program(595, "xdp_pass", "3b185187f1855c4c")},
			{Slot: 1, Name: "a_name_that_only_btf_has_in_full", Priority: 4294967295, Program: program(1596, "a_name_that_onl", "57cd311f2e27366b")},
			{Slot: 2, Name: "sample", Priority: 50, ProceedOn: chain.Set(chain.AllActions()...), Program: program(4294967295, "sample", "57cd311f2e27366b")},
		},
	})
	printInterface(&b, "wlp0s20f3", &libxdp.Chain{Kind: libxdp.Single, Attachment: at(xdp.Generic, program(43, "xdp_drop", "57cd311f2e27366b"))})
	printInterface(&b, "card0",
		&libxdp.Chain{Kind: libxdp.Single, Attachment: at(xdp.Offload, program(44, "on_card", "57cd311f2e27366b"))},
		&libxdp.Chain{Kind: libxdp.Single, Attachment: at(xdp.Native, program(45, "", ""))})
	golden(t, "status", b.String())

	// What scripts take from it: the id is the fourth word of a member's row.
	for line := range strings.Lines(b.String()) {
		if words := strings.Fields(line); len(words) > 0 && words[0] == "=>" && words[2] == "xdp_pass" && words[3] != "595" {
			t.Errorf("the fourth word of %q is not the id", line)
		}
	}
}

func TestFeaturesAreInXDPLoadersLines(t *testing.T) {
	var b strings.Builder
	printFeatures(&b, rtnl.XDPBasic|rtnl.XDPRedirect|rtnl.XDPRxSG)
	golden(t, "features", b.String())
}

func TestExitCodesAreErrnos(t *testing.T) {
	kernel := func(sentinel error, errno unix.Errno) error {
		return fmt.Errorf("outside: %w", &xdp.Error{Op: "attach", Hook: "eth0", Err: sentinel, Errno: errno})
	}
	for _, c := range []struct {
		err   error
		errno unix.Errno
		code  int
	}{
		{kernel(xdp.ErrConflict, unix.EEXIST), unix.EBUSY, 240},
		{kernel(libxdp.ErrDamaged, 0), unix.EBUSY, 240},
		{kernel(libxdp.ErrFull, 0), unix.E2BIG, 249},
		{kernel(xdp.ErrNotSupported, unix.EINVAL), unix.EOPNOTSUPP, 161},
		{kernel(libxdp.ErrNoFreplace, unix.EPERM), unix.EOPNOTSUPP, 161},
		{kernel(xdp.ErrPermission, unix.EPERM), unix.EPERM, 255},
		{kernel(xdp.ErrMTU, 0), unix.ERANGE, 222},
		{kernel(xdp.ErrInvalid, 0), unix.EINVAL, 234},
		{kernel(libxdp.ErrPlain, 0), unix.EINVAL, 234},
		{kernel(xdp.ErrUnexpected, unix.ENODEV), unix.ENODEV, 237},
		{&os.PathError{Op: "open", Path: "a.o", Err: unix.ENOENT}, unix.ENOENT, 254},
		{&object.Error{Err: object.ErrNoProgram}, unix.ENOENT, 254},
		{&object.Error{Err: fmt.Errorf("%w: %w", object.ErrVerifier, unix.EACCES)}, unix.EACCES, 243},
		{object.ErrFormat, unix.EINVAL, 234},
		{libxdp.ErrLockTimeout, unix.ETIMEDOUT, 146},
		{errors.New("anything else"), unix.EINVAL, 234},
	} {
		if got := errno(c.err); got != c.errno {
			t.Errorf("%v: errno %v, want %v", c.err, got, c.errno)
		}
		if got := exitCode(c.err); got != c.code {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.code)
		}
	}
	if got := words(unix.EBUSY); got != "Device or resource busy" {
		t.Errorf("EBUSY is %q", got)
	}
}

func TestBareNamesOfObjectsAreLookedForWhereTheEnvironmentSays(t *testing.T) {
	here, there, nowhere := t.TempDir(), t.TempDir(), t.TempDir()
	t.Chdir(here)
	for _, path := range []string{"here.o", "both.o", filepath.Join(there, "both.o"), filepath.Join(there, "there.o")} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := &loader{env: Env{Getenv: func(name string) string {
		return map[string]string{"LIBXDP_OBJECT_PATH": nowhere + ":" + there}[name]
	}}}
	for name, want := range map[string]string{
		"here.o":        "here.o",
		"both.o":        "both.o",
		"there.o":       filepath.Join(there, "there.o"),
		"./there.o":     "./there.o",
		"no-such-one.o": "no-such-one.o",
	} {
		if got := l.objectPath(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if dirs := objectDirs(""); !slices.Contains(dirs, "/usr/lib/bpf") {
		t.Errorf("packages put objects into %q", dirs)
	}
}

func FuzzACommandLineIsReadOrRefused(f *testing.F) {
	for _, s := range []string{
		"load eth0 a.o -P 7 -A XDP_PASS,XDP_DROP --mode=skb", "unload -ai 42 eth0", "load -vvh", "status --", "load --=x", "load ---", "clean -", "load -P=",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words := strings.Fields(line)
		if len(words) == 0 {
			return
		}
		c := findCommand(words[0])
		if c == nil {
			return
		}
		r, err := parse(c, words[1:])
		switch {
		case err != nil:
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: %v has more than one line", line, err)
			}
		case r.help || r.version:
		case (r.iface == "" && len(r.files) > 0) || len(r.files) > 0 && c.name != "load":
			t.Errorf("%q is %+v", line, r)
		case c.least > 0 && r.iface == "" && !slices.Contains(words, ""):
			t.Errorf("%q has no interface", line)
		}
	})
}
