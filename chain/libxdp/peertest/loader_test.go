package peertest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"golang.org/x/sys/unix"
)

// call is one call of xdp-loader, at a hook of its own.
type call struct {
	given given
	// args are separated by spaces. {if} is the interface, {id} the program
	// that is attached, {pass} and so on an object of this project, {bpffs} the
	// bpffs.
	args string
	env  string
	answer
	// differs is what other versions do, by their name.
	differs map[string]answer
}

// answer is what a call prints, returns and leaves at the hook. A text that
// ends with "…" goes on: help is not compared word by word.
//
// Of Holdfast's command everything is compared but what is meant for people:
// the line after a usage line, and on standard error those that begin with a
// blank, in which Holdfast and libxdp say why.
type answer struct {
	code     int
	out, err string
	leaves   string // nothing, where it is as it was
}

// given is what a hook is like before a call. Its zero value is empty.
type given string

const (
	aChainOfOne    given = "a chain of one"
	aGenericChain  given = "a chain in generic mode"
	aProgram       given = "a program without a dispatcher"
	aLink          given = "a link"
	pinsLeftBehind given = "the pins of a chain that was detached"
	aLockFile      given = "the lock file of an xdp-loader that runs or was killed"
)

const (
	tryHelp   = "Use --help (or -h) to see full option list.\n"
	loadUsage = "\nUsage: xdp-loader load [options] <ifname> <filenames>\n" + tryHelp
	noDevice  = "Couldn't find network interface 'nope'.\n"
	cleanHere = "Cleaning up detached XDP program links for {if}\n"
	cleanAll  = "Cleaning up detached XDP program links for all interfaces\n"

	nothing  = "nothing"
	passOnly = "native chain: 50 xdp_pass XDP_PASS"
)

// oldLoadUsage is loadUsage before libxdp 1.6.
const oldLoadUsage = "\nUsage: xdp-loader [options] <ifname> <filenames>\n" + tryHelp

const holdfast = "Holdfast"

// but is what one of them does otherwise, beside what differs already.
func but(differs map[string]answer, name string, a answer) map[string]answer {
	all := map[string]answer{name: a}
	maps.Copy(all, differs)
	return all
}

func attachFailed(why string) string {
	return "Couldn't attach XDP program on iface '{if}': " + why + "\n"
}

func old(a answer) map[string]answer { return map[string]answer{"1.3": a, "1.5": a} }

var unknownFeatures = map[string]answer{"1.3": {code: 1, err: "Command 'features' is unknown, try 'xdp-loader help'.\n"}}

var calls = []call{
	// What it says of itself.
	{args: "", answer: answer{code: 255, err: "Usage: xdp-loader COMMAND [options]\n…"}},
	{
		args: "-h", answer: answer{code: 1, err: "Command '-h' is unknown, try 'xdp-loader help'.\n"},
		differs: map[string]answer{holdfast: {out: "Usage: xdp-loader COMMAND [options]\n…"}},
	},
	{
		args: "--version", answer: answer{code: 1, err: "Command '--version' is unknown, try 'xdp-loader help'.\n"},
		differs: map[string]answer{holdfast: {out: "xdp-loader version …"}},
	},
	{args: "nope", answer: answer{code: 1, err: "Command 'nope' is unknown, try 'xdp-loader help'.\n"}},
	{
		args: "load --version", answer: answer{code: 1, out: "xdp-loader version {version} using libbpf version …"},
		differs: map[string]answer{holdfast: {code: 1, out: "xdp-loader version …"}},
	},
	{args: "load --help", answer: answer{code: 1, out: "\nUsage: xdp-loader load [options] <ifname> <filenames>\n\n…"}},
	{args: "unload -h", answer: answer{code: 1, out: "\nUsage: xdp-loader unload [options] <ifname>\n\n…"}},
	{args: "status -h", answer: answer{code: 1, out: "\nUsage: xdp-loader status [options] [ifname]\n\n…"}},
	{args: "clean -h", answer: answer{code: 1, out: "\nUsage: xdp-loader clean [options] [ifname]\n\n…"}},
	{args: "features -h", answer: answer{code: 1, out: "\nUsage: xdp-loader features [options] <ifname>\n\n…"}, differs: unknownFeatures},

	// Called wrongly.
	{
		args:    "load",
		answer:  answer{code: 1, out: loadUsage, err: "Missing required parameter <ifname>\n"},
		differs: old(answer{code: 1, out: oldLoadUsage, err: "Missing required parameter <ifname>\n"}),
	},
	{
		args:    "load {if}",
		answer:  answer{code: 1, out: loadUsage, err: "Missing required parameter <filenames>\n"},
		differs: old(answer{code: 1, out: oldLoadUsage, err: "Missing required parameter <filenames>\n"}),
	},
	{
		args:    "load {if} {pass} --nope",
		answer:  answer{code: 1, out: loadUsage, err: "load: unrecognized option '--nope'\n"},
		differs: old(answer{code: 1, out: oldLoadUsage, err: "load: unrecognized option '--nope'\n"}),
	},
	{
		args:   "load {if} {pass} -m nope",
		answer: answer{code: 1, out: loadUsage, err: "Couldn't parse option mode: Invalid argument.\n"},
		differs: but(old(answer{code: 1, out: oldLoadUsage, err: "Couldn't parse option mode: Invalid argument.\n"}),
			holdfast, answer{code: 1, out: loadUsage, err: "Couldn't parse option mode: …"}),
	},
	{
		args:   "load {if} {pass} -A NOPE",
		answer: answer{code: 1, out: loadUsage, err: "Couldn't parse option actions: Invalid argument.\n"},
		differs: but(old(answer{code: 1, out: oldLoadUsage, err: "Couldn't parse option actions: Invalid argument.\n"}),
			holdfast, answer{code: 1, out: loadUsage, err: "Couldn't parse option actions: …"}),
	},
	{
		args:   "load {if} {pass} -P -3",
		answer: answer{code: 1, out: loadUsage, err: "Couldn't parse option prio: Invalid argument.\n"},
		differs: but(old(answer{code: 1, out: oldLoadUsage, err: "Couldn't parse option prio: Invalid argument.\n"}),
			holdfast, answer{code: 1, out: loadUsage, err: "Couldn't parse option prio: …"}),
	},
	{args: "load {if} {two} -s xdp -n first", answer: answer{code: 1, err: "Only one of --section or --prog-name can be set\n"}},
	{args: "unload {if}", answer: answer{code: 1, err: "Need prog ID or --all\n"}},
	{args: "status {if} {if}", answer: answer{code: 1, out: "\nUsage: xdp-loader status [options] [ifname]\n" + tryHelp}},
	{args: "load nope {pass}", answer: answer{code: 1, out: loadUsage, err: noDevice}},
	{args: "unload nope -a", answer: answer{code: 1, out: "\nUsage: xdp-loader unload [options] <ifname>\n" + tryHelp, err: noDevice}},
	{args: "status nope", answer: answer{code: 1, out: "\nUsage: xdp-loader status [options] [ifname]\n" + tryHelp, err: noDevice}},
	{args: "clean nope", answer: answer{code: 1, out: "\nUsage: xdp-loader clean [options] [ifname]\n" + tryHelp, err: noDevice}},
	{
		args:    "features nope",
		answer:  answer{code: 1, out: "\nUsage: xdp-loader features [options] <ifname>\n" + tryHelp, err: noDevice},
		differs: unknownFeatures,
	},

	// load
	{args: "load {if} {pass}", answer: answer{leaves: passOnly}},
	{args: "load {if} {pass} -P 7 -A XDP_TX,XDP_ABORTED", answer: answer{leaves: "native chain: 7 xdp_pass XDP_ABORTED,XDP_TX"}},
	{args: "lo -P 7 {if} --actions XDP_DROP {pass}", answer: answer{leaves: "native chain: 7 xdp_pass XDP_DROP"}},
	// A number that is none is taken for the default.
	{args: "load {if} {pass} -P x", answer: answer{leaves: passOnly}, differs: map[string]answer{
		holdfast: {code: 1, out: loadUsage, err: "Couldn't parse option prio: …"},
	}},
	{args: "load {if} {pass} {drop}", answer: answer{leaves: "native chain: 50 xdp_drop XDP_PASS, 50 xdp_pass XDP_PASS"}},
	{args: "load {if} {runconfig}", answer: answer{leaves: "native chain: 10 runconfig XDP_DROP,XDP_PASS"}},
	{args: "load {if} {runconfig} -P 20", answer: answer{leaves: "native chain: 20 runconfig XDP_DROP,XDP_PASS"}},
	{args: "load {if} {two}", answer: answer{leaves: "native chain: 50 first XDP_PASS"}},
	{args: "load {if} {two} -s xdp/second", answer: answer{leaves: "native chain: 50 second XDP_PASS"}},
	{args: "load {if} {two} -n second", answer: answer{leaves: "native chain: 50 second XDP_PASS"}},
	{args: "load {if} {pass} -m skb", answer: answer{leaves: "generic chain: 50 xdp_pass XDP_PASS"}},
	{args: "load {if} {pass} -m unspecified", answer: answer{leaves: passOnly}},
	{given: aChainOfOne, args: "load {if} {pass}", answer: answer{leaves: "native chain: 50 xdp_pass XDP_PASS, 50 xdp_pass XDP_PASS"}},
	{args: "load {if} {pinned} -p {bpffs}/maps", answer: answer{leaves: "native chain: 50 pinned XDP_PASS"}},
	{args: "load {if} {pass}", env: "LIBXDP_SKIP_DISPATCHER=1", answer: answer{leaves: "native xdp_pass"}},
	// It takes effect for one program alone.
	{args: "load {if} {pass} {drop}", env: "LIBXDP_SKIP_DISPATCHER=1", answer: answer{leaves: "native chain: 50 xdp_drop XDP_PASS, 50 xdp_pass XDP_PASS"}},

	// load is refused.
	{args: "load {if} /nope.o", answer: answer{code: 254, err: "Couldn't open file '/nope.o': No such file or directory\n"}},
	{args: "load {if} {two} -s nope", answer: answer{
		code: 254,
		err:  " libxdp: Couldn't find xdp program in bpf object section nope\nCouldn't open file '{two}': No such file or directory\n",
	}},
	{args: "load {if} {two} -n nope", answer: answer{
		code: 254,
		err:  " libxdp: Couldn't find xdp program in bpf object\nCouldn't open file '{two}': No such file or directory\n",
	}},
	{args: "load {if} {bad}", answer: answer{code: 243, err: attachFailed("Permission denied(-13)")}},
	{args: "load {if} {pass} -m hw", answer: answer{code: 234, err: attachFailed("Invalid argument(-22)")}},
	{args: "load {if} {pinned} -p /", answer: answer{code: 234, err: attachFailed("Invalid argument(-22)")}},
	{given: aGenericChain, args: "load {if} {pass}", answer: answer{
		code: 240, err: " libxdp: Retried more than 11 times, giving up\n" + attachFailed("Device or resource busy(-16)"),
	}},
	{given: aProgram, args: "load {if} {pass}", answer: inTheWay},
	{given: aProgram, args: "load {if} {pass} -m skb", answer: inTheWay},
	{given: aLink, args: "load {if} {pass}", answer: inTheWay},
	// Only 1.3 minds, at whatever interface, and for whatever command.
	{given: aLockFile, args: "load {if} {pass}", answer: answer{leaves: passOnly}, differs: map[string]answer{"1.3": lockedOut}},
	{given: aLockFile, args: "clean", answer: answer{out: cleanAll}, differs: map[string]answer{"1.3": lockedOut}},
	{given: aProgram, args: "load {if} {pass}", env: "LIBXDP_SKIP_DISPATCHER=1", answer: answer{
		code: 240, err: attachFailed("Device or resource busy(-16)"),
	}},

	// unload
	{given: aChainOfOne, args: "unload {if} -a", answer: answer{leaves: nothing}},
	{given: aChainOfOne, args: "unload {if} -i {member}", answer: answer{leaves: nothing}},
	{given: aChainOfOne, args: "unload {if} -i {id}", answer: answer{code: 1, err: "Program with ID {id} not loaded on {if}\n"}},
	{given: aChainOfOne, args: "unload {if} -i 1", answer: answer{code: 1, err: "Program with ID 1 not loaded on {if}\n"}},
	// Both together are all.
	{given: aChainOfOne, args: "unload {if} -a -i 1", answer: answer{leaves: nothing}},
	{given: aGenericChain, args: "unload {if} -a", answer: answer{leaves: nothing}},
	{given: aProgram, args: "unload {if} -a", answer: answer{leaves: nothing}},
	{given: aProgram, args: "unload {if} -i {id}", answer: answer{leaves: nothing}},
	{given: aProgram, args: "unload {if} -i 1", answer: answer{code: 1, err: "Program with ID 1 not loaded on {if}\n"}},
	{args: "unload {if} -a", answer: answer{code: 1, err: "No XDP program loaded on {if}\n"}},
	{args: "unload {if} -i 1", answer: answer{code: 1, err: "No XDP program loaded on {if}\n"}},
	// From 1.5 on a link is detached by force, for one program as well.
	{given: aLink, args: "unload {if} -a", answer: answer{leaves: nothing}, differs: linkHolds},
	{given: aLink, args: "unload {if} -i {id}", answer: answer{leaves: nothing}, differs: linkHolds},

	// status
	{args: "status {if}", answer: answer{out: statusHeader + "{if16}       <No XDP program loaded!>\n\n"}},
	{args: "stat {if}", answer: answer{out: statusHeader + "{if16}       <No XDP program loaded!>\n\n"}},
	{args: "s", answer: answer{out: statusHeader + "lo                     <No XDP program loaded!>\n{if16}       <No XDP program loaded!>\n\n"}},
	{given: aChainOfOne, args: "status {if}", answer: answer{
		out: statusHeader + "{if16}       xdp_dispatcher    native   {id4} {tag} \n" +
			" =>              50     xdp_pass                  {member4} {membertag}  XDP_PASS\n\n",
	}},
	{given: aGenericChain, args: "status", answer: answer{
		out: statusHeader + "lo                     <No XDP program loaded!>\n" +
			"{if16}       xdp_dispatcher    skb      {id4} {tag} \n" +
			" =>              50     xdp_pass                  {member4} {membertag}  XDP_PASS\n\n",
	}},
	{given: aProgram, args: "status {if}", answer: answer{out: statusHeader + "{if16}       holder            native   {id4} {tag} \n\n"}},
	{given: aLink, args: "status {if}", answer: answer{out: statusHeader + "{if16}       holder            native   {id4} {tag} \n\n"}},

	// clean
	{args: "clean {if}", answer: answer{out: cleanHere}},
	{args: "clean", answer: answer{out: cleanAll}},
	{given: aChainOfOne, args: "clean {if}", answer: answer{out: cleanHere}},
	{given: pinsLeftBehind, args: "clean {if}", answer: answer{out: cleanHere, leaves: nothing}},
	{given: pinsLeftBehind, args: "clean", answer: answer{out: cleanAll, leaves: nothing}},
	// Nothing else of xdp-tools cleans up.
	{given: pinsLeftBehind, args: "load {if} {pass}", answer: answer{leaves: "pins and " + passOnly}, differs: map[string]answer{
		holdfast: {leaves: passOnly},
	}},

	{args: "features {if}", answer: answer{out: "{features}"}, differs: unknownFeatures},
}

var lockedOut = answer{code: 1, err: "Unable to read PID from lockfile: File exists\n"}

var inTheWay = answer{
	code: 240,
	err: " libxdp: Existing program is not using a dispatcher, can't replace; unload first\n" +
		attachFailed("Device or resource busy(-16)"),
}

var linkHolds = map[string]answer{
	"1.3": {
		code: 1,
		err: "  libbpf: Kernel error message: Can't replace active BPF XDP link\n" +
			"Unable to detach XDP program: Device or resource busy\n",
	},
	holdfast: {code: 1, err: "Unable to detach XDP program: Device or resource busy\n"},
}

// loaders are all that are called as xdp-loader is.
func loaders(t *testing.T) map[string]loader {
	t.Helper()
	all := map[string]loader{}
	for _, name := range kerneltest.Peers() {
		all[name] = kerneltest.OpenPeer(t, name)
	}
	return all
}

func TestXDPLoaderPrintsAndReturnsWhatScriptsRelyOn(t *testing.T) {
	needChains(t)
	all := loaders(t)
	all[holdfast] = holdfastLoader{}
	// How the tools differ is in the tools, and not in the kernel: all of theirs run on
	// two kernels of the matrix, and one on each of the others.
	sample := samplePeers(3)
	for i, name := range slices.Sorted(maps.Keys(all)) {
		l := all[name]
		if name != holdfast && !sample.Takes(i) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			objects := objectFiles(t)
			for _, c := range calls {
				// What the oldest and the newest do alike is not asked of
				// those between.
				if name == "1.5" && c.differs == nil {
					continue
				}
				t.Run(c.title(), func(t *testing.T) { c.try(t, s, objects, name, l) })
			}
		})
	}
}

func TestHoldfastRemovesPinsThatXDPLoaderLeft(t *testing.T) {
	needChains(t)
	for name, l := range loaders(t) {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			s.prepare(t, pinsLeftBehind, l, objectFiles(t))
			if got := s.state(t); got != "pins" {
				t.Fatalf("there is %s, want pins", got)
			}
			if err := (library{}).load(t, s, batch{1, 50, onPass, ""}); err != nil {
				t.Fatal(err)
			}
			if got := s.state(t); got != "native chain: 50 filter XDP_PASS" {
				t.Errorf("there is %s", got)
			}
			if err := (library{}).removeAll(t, s); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func (c call) title() string {
	title := c.args
	if c.env != "" {
		title = c.env + " " + title
	}
	if c.given != "" {
		title += " at " + string(c.given)
	}
	return title
}

func (c call) try(t *testing.T, s *site, objects []string, name string, l loader) {
	t.Cleanup(func() { s.clear(t) })
	want := c.answer
	if other, ok := c.differs[name]; ok {
		want = other
	}
	s.prepare(t, c.given, l, objects)
	if want.leaves == "" {
		want.leaves = s.state(t)
	}

	words := s.words(t, name, objects)
	var args []string
	if c.args != "" {
		args = strings.Split(words.Replace(c.args), " ")
	}
	cmd := l.Command(s.bpffs, args...)
	if c.env != "" {
		cmd.Env = append(cmd.Env, c.env)
	}
	ended := s.Near.Run(t, cmd)
	got := answer{code: ended.Code, out: ended.Stdout, err: ended.Stderr, leaves: s.state(t)}
	if name == holdfast {
		if strings.HasPrefix(c.args, "features {if}") && !s.tellsFeatures(t) {
			want = answer{code: 161, err: "The running kernel does not support querying XDP features.\n", leaves: want.leaves}
		}
		want, got = want.forScripts(), got.forScripts()
	}
	want.out, got.out = begins(words.Replace(want.out), got.out)
	want.err, got.err = begins(words.Replace(want.err), got.err)
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(answer{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// forScripts leaves out what is meant for people.
func (a answer) forScripts() answer {
	if before, _, found := strings.Cut(a.out, "\nUse --help"); found {
		a.out = before
	}
	var kept strings.Builder
	for line := range strings.Lines(a.err) {
		if !strings.HasPrefix(line, " ") {
			kept.WriteString(line)
		}
	}
	a.err = kept.String()
	return a
}

// begins cuts off what comes after a "…".
func begins(want, got string) (string, string) {
	head, open := strings.CutSuffix(want, "…")
	if open && strings.HasPrefix(got, head) {
		return head, head
	}
	return want, got
}

// prepare makes the hook what a call is given.
func (s *site) prepare(t *testing.T, g given, l loader, objects []string) {
	t.Helper()
	load := func(more ...string) {
		args := append([]string{"load", s.NearName, objects[slices.Index(objects, "{pass}")+1]}, more...)
		if ended := s.Near.Run(t, l.Command(s.bpffs, args...)); ended.Code != 0 {
			t.Fatalf("load: exit code %d: %s", ended.Code, ended.Stderr)
		}
	}
	switch g {
	case aChainOfOne:
		load()
	case aGenericChain:
		load("-m", "skb")
	case pinsLeftBehind:
		load()
		s.detach(t)
	case aLockFile:
		const lock = "/run/xdp-loader.lck" // in the test's own /run
		if err := os.WriteFile(lock, fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(lock) })
	case aProgram:
		if err := s.Near.Conn.SetXDP(s.NearIndex, kerneltest.Pass(t, "holder", nil).FD(), unix.XDP_FLAGS_DRV_MODE); err != nil {
			t.Fatal(err)
		}
	case aLink:
		var link kernel.FD
		s.Near.In(t, func() (err error) {
			link, err = kernel.LinkCreateXDP(kerneltest.Pass(t, "holder", nil).FD(), s.NearIndex, unix.XDP_FLAGS_DRV_MODE)
			return err
		})
		t.Cleanup(func() { link.Close() })
	}
}

// detach takes away what netlink attached, and leaves the pins.
func (s *site) detach(t *testing.T) {
	t.Helper()
	if s.attached(t) == 0 {
		return
	}
	if err := s.Near.Conn.SetXDP(s.NearIndex, -1, s.modeFlag(t)); err != nil {
		t.Fatal(err)
	}
}

// clear empties the hook and the bpffs.
func (s *site) clear(t *testing.T) {
	t.Helper()
	s.detach(t)
	for _, dir := range []string{"xdp", "maps"} {
		if err := os.RemoveAll(filepath.Join(s.bpffs, dir)); err != nil {
			t.Fatal(err)
		}
	}
}

// modeFlag is the mode of what is attached.
func (s *site) modeFlag(t *testing.T) uint32 {
	t.Helper()
	if s.Near.Device(t, s.NearName).XDP.Generic != 0 {
		return unix.XDP_FLAGS_SKB_MODE
	}
	return unix.XDP_FLAGS_DRV_MODE
}

// state says in one line what is at the hook, and whether pins lie in the bpffs
// of which nothing is attached.
func (s *site) state(t *testing.T) string {
	t.Helper()
	var parts []string
	if len(s.leftovers(t)) != 0 {
		parts = append(parts, "pins")
	}
	if id := s.attached(t); id != 0 {
		mode := map[uint32]string{unix.XDP_FLAGS_SKB_MODE: "generic", unix.XDP_FLAGS_DRV_MODE: "native"}[s.modeFlag(t)]
		parts = append(parts, mode+" "+s.program(t, id))
	}
	if len(parts) == 0 {
		return nothing
	}
	return strings.Join(parts, " and ")
}

func (s *site) program(t *testing.T, id uint32) string {
	t.Helper()
	if name := programInfo(t, id).Name; name != "xdp_dispatcher" {
		return name
	}
	var members []string
	for _, m := range s.members(t, id) {
		members = append(members, fmt.Sprintf("%d %s %s", m.priority, m.name, m.actions))
	}
	return "chain: " + strings.Join(members, ", ")
}

// objectFiles writes the objects of the rows to files. It returns what stands in
// braces for each, and its path.
func objectFiles(t *testing.T) (pairs []string) {
	t.Helper()
	for _, object := range []string{"pass", "drop", "two", "bad", "runconfig", "pinned"} {
		pairs = append(pairs, "{"+object+"}", kerneltest.ObjectFile(t, object))
	}
	return pairs
}

// words are what stands in braces in the rows.
func (s *site) words(t *testing.T, name string, objects []string) *strings.Replacer {
	t.Helper()
	pairs := append(slices.Clone(objects),
		"{if}", s.NearName, "{if16}", fmt.Sprintf("%-16s", s.NearName), "{bpffs}", s.bpffs,
		"{features}", s.features(t),
	)
	if slices.Contains(kerneltest.Peers(), name) {
		version, _, _ := strings.Cut(kerneltest.OpenPeer(t, name).Version, "-")
		pairs = append(pairs, "{version}", version)
	}
	if id := s.attached(t); id != 0 {
		pairs = append(pairs, "{id}", fmt.Sprint(id), "{id4}", fmt.Sprintf("%-4d", id), "{tag}", programInfo(t, id).Tag)
		if programInfo(t, id).Name == "xdp_dispatcher" {
			member := s.members(t, id)[0].id
			pairs = append(pairs, "{member}", fmt.Sprint(member), "{member4}", fmt.Sprintf("%-4d", member),
				"{membertag}", programInfo(t, member).Tag)
		}
	}
	return strings.NewReplacer(pairs...)
}

// features lays out what the driver says of itself as xdp-loader does. Where
// the kernel does not tell, nothing is there.
func (s *site) features(t *testing.T) string {
	t.Helper()
	has, _ := s.driverSays(t)
	var out strings.Builder
	for _, f := range []struct {
		name string
		flag rtnl.XDPFeatures
	}{
		{"BASIC:\t\t", rtnl.XDPBasic},
		{"REDIRECT:\t", rtnl.XDPRedirect},
		{"NDO_XMIT:\t", rtnl.XDPNdoXmit},
		{"XSK_ZEROCOPY:\t", rtnl.XDPXSKZerocopy},
		{"HW_OFFLOAD:\t", rtnl.XDPHWOffload},
		{"RX_SG:\t\t", rtnl.XDPRxSG},
		{"NDO_XMIT_SG:\t", rtnl.XDPNdoXmitSG},
	} {
		answer := "no"
		if has.Has(f.flag) {
			answer = "yes"
		}
		fmt.Fprintf(&out, "NETDEV_XDP_ACT_%s%s\n", f.name, answer)
	}
	return out.String()
}

func (s *site) tellsFeatures(t *testing.T) bool {
	t.Helper()
	_, told := s.driverSays(t)
	return told
}

func (s *site) driverSays(t *testing.T) (has rtnl.XDPFeatures, told bool) {
	t.Helper()
	has, err := rtnl.ReadXDPFeatures(s.Near.FD(), s.NearIndex)
	if err != nil && !errors.Is(err, rtnl.ErrNoNetdev) {
		t.Fatal(err)
	}
	return has, err == nil
}

func programInfo(t *testing.T, id uint32) *ebpf.ProgramInfo {
	t.Helper()
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info
}
