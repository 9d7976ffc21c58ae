package object

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
)

func read(t testing.TB, name string) *Object {
	t.Helper()
	o, err := Read(name+".o", bytes.NewReader(bpfprog.ELF(name)))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// wantError checks that err is of the kind and says all of the words.
func wantError(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error %v, want one of kind %q", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q has more than one line", err)
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("error %v is not an *Error", err)
	}
}

func TestAFileThatIsNoObjectIsRefusedInWords(t *testing.T) {
	good := bpfprog.ELF("pass")
	changed := func(at int, to byte) []byte {
		b := slices.Clone(good)
		b[at] = to
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		words   string
	}{
		"empty":                          {nil, "it is empty"},
		"text":                           {[]byte("int main;\n"), "it is not an ELF file"},
		"cut in its header":              {good[:40], "truncated within its ELF header"},
		"cut behind its header":          {good[:100], "damaged, truncated"},
		"cut in the middle":              {good[:len(good)/2], "damaged, truncated"},
		"for 32 bits":                    {changed(4, 1), "not a 64-bit ELF file"},
		"for the other byte order":       {changed(5, 2), "big-endian machines and this one is little-endian"},
		"for another machine":            {changed(18, 62), "another machine (EM_X86_64)"},
		"with a section table elsewhere": {changed(40+5, 0x7f), "damaged, truncated"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read("x.o", bytes.NewReader(c.content))
			wantError(t, err, ErrFormat, "open x.o: ", c.words, "; ")
		})
	}
}

func TestAPathThatLeadsToNoObjectIsRefusedInWords(t *testing.T) {
	dir := t.TempDir()

	_, err := Open(filepath.Join(dir, "missing.o"))
	wantError(t, err, fs.ErrNotExist, "missing.o: no such file or directory")

	_, err = Open(dir)
	wantError(t, err, ErrFormat, "it is a directory")

	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(pipe)
	wantError(t, err, ErrFormat, "not a regular file")
}

func TestAFileIsReadFromItsPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pass.o")
	if err := os.WriteFile(path, bpfprog.ELF("pass"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if o.Name() != path {
		t.Errorf("the name is %q, want the path %q", o.Name(), path)
	}
}

func TestAFileThatIsTooBigIsNotReadToItsEnd(t *testing.T) {
	_, err := Read("big.o", zeroes{})
	wantError(t, err, ErrFormat, "bigger than 64 MiB")
}

type zeroes struct{}

func (zeroes) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

func TestAllProgramsAreListed(t *testing.T) {
	want := []ProgramInfo{
		{Name: "first", Section: "xdp", Type: ebpf.XDP, Instructions: 3},
		{Name: "second", Section: "xdp/second", Type: ebpf.XDP, Instructions: 3},
	}
	if diff := cmp.Diff(want, read(t, "two").Programs()); diff != "" {
		t.Error(diff)
	}
	want = []ProgramInfo{{Name: "xdp_frags", Section: "xdp.frags", Type: ebpf.XDP, Frags: true, Instructions: 2}}
	if diff := cmp.Diff(want, read(t, "frags").Programs()); diff != "" {
		t.Error(diff)
	}
}

func TestOneProgramIsChosen(t *testing.T) {
	for name, c := range map[string]struct {
		object string
		choice Choice
		want   string
		kind   error
		words  []string
	}{
		"the only one needs no choice":    {"filter", Choice{}, "filter", nil, nil},
		"by name":                         {"two", Choice{Name: "second"}, "second", nil, nil},
		"by section":                      {"two", Choice{Section: "xdp"}, "first", nil, nil},
		"by both":                         {"two", Choice{Name: "second", Section: "xdp/second"}, "second", nil, nil},
		"of unknown type if named":        {"legacy", Choice{Name: "legacy"}, "legacy", nil, nil},
		"of unknown type, by its section": {"legacy", Choice{Section: "prog"}, "legacy", nil, nil},
		"the first":                       {"two", Choice{First: true}, "first", nil, nil},
		"the first of a section":          {"mixed", Choice{Section: "xdp", First: true}, "sound", nil, nil},
		"the first, of unknown type":      {"legacy", Choice{First: true}, "legacy", nil, nil},

		"of several without a choice":    {"two", Choice{}, "", ErrAmbiguous, []string{"first (section xdp), second (section xdp/second)"}},
		"of several in one section":      {"mixed", Choice{Section: "xdp"}, "", ErrAmbiguous, []string{"sound", "unsound"}},
		"the first where there is none":  {"socket", Choice{First: true}, "", ErrNoProgram, []string{"SocketFilter"}},
		"by a wrong name":                {"two", Choice{Name: "third"}, "", ErrNoProgram, []string{`named "third"`, "first", "second"}},
		"by name and another's section":  {"two", Choice{Name: "first", Section: "xdp/second"}, "", ErrNoProgram, []string{`named "first" in section "xdp/second"`}},
		"of unknown type if not named":   {"legacy", Choice{}, "", ErrNoProgram, []string{"legacy (section prog", "choose it by name"}},
		"of another type":                {"socket", Choice{}, "", ErrNoProgram, []string{"socket_pass", "SocketFilter"}},
		"of another type, even if named": {"socket", Choice{Name: "socket_pass"}, "", ErrNoProgram, []string{"SocketFilter"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := read(t, c.object).Program(c.choice)
			if c.kind != nil {
				wantError(t, err, c.kind, append(c.words, c.object+".o", "; ")...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Name != c.want {
				t.Errorf("chose %s, want %s", p.Name, c.want)
			}
		})
	}
}

func TestTheFirstProgramIsTheFirstInTheFileAndNotInTheAlphabet(t *testing.T) {
	renamed := bytes.ReplaceAll(bpfprog.ELF("two"), []byte("first"), []byte("zirst"))
	o, err := Read("renamed.o", bytes.NewReader(renamed))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := o.Program(Choice{First: true}); err != nil || p.Name != "zirst" {
		t.Errorf("chose %s, %v, want zirst", p.Name, err)
	}
}

func TestTheDigestTellsWhatIsLoaded(t *testing.T) {
	set := func(t *testing.T, o *Object, assignments ...string) *Object {
		for _, a := range assignments {
			if err := o.Set(a); err != nil {
				t.Fatal(err)
			}
		}
		return o
	}
	load := func(o *Object, change func(*ebpf.ProgramSpec), opts LoadOptions) string {
		p, _, err := o.prepared(opts)
		if err != nil {
			t.Fatal(err)
		}
		if change == nil {
			return p.Digest
		}
		change(p.Spec)
		return o.digest(p.Spec)
	}
	digest := func(o *Object) string { return load(o, nil, LoadOptions{}) }
	with := func(opts LoadOptions) string { return load(read(t, "filter"), nil, opts) }
	filter := digest(read(t, "filter"))
	if len(filter) != 64 {
		t.Errorf("digest %q is not 64 hex digits", filter)
	}
	for name, c := range map[string]struct {
		digest string
		same   bool
	}{
		"the same file again":              {digest(read(t, "filter")), true},
		"a variable set to what it was":    {digest(set(t, read(t, "filter"), "drop_port=7777")), true},
		"a variable set and set back":      {digest(set(t, read(t, "filter"), "drop_port=1", "drop_port=0x1e61")), true},
		"a variable set":                   {digest(set(t, read(t, "filter"), "drop_port=1")), false},
		"a variable that is not used":      {digest(set(t, read(t, "filter"), "version=2")), false},
		"another program of the same file": {load(read(t, "filter"), func(p *ebpf.ProgramSpec) { p.Name = "other" }, LoadOptions{}), false},
		"the same program name in another": {load(read(t, "gate"), func(p *ebpf.ProgramSpec) { p.Name = "filter" }, LoadOptions{}), false},
		"the verifier's log asked for":     {with(LoadOptions{LogLevel: ebpf.LogLevelStats}), true},
		"another expected attach type":     {with(LoadOptions{NoAttachType: true}), false},
		"bound to a device":                {with(LoadOptions{Ifindex: 1}), false},
	} {
		if same := c.digest == filter; same != c.same {
			t.Errorf("%s: same digest is %v, want %v", name, same, c.same)
		}
	}
	bound := with(LoadOptions{Ifindex: 1})
	if bound == with(LoadOptions{Ifindex: 2}) || bound == with(LoadOptions{Ifindex: 1, Offload: true}) {
		t.Error("another device, or the program on it, is the same digest")
	}
}

func TestWhatTheKernelRefusesIsToldInWords(t *testing.T) {
	verifier := func(errno error, lines ...string) error {
		return &ebpf.VerifierError{Cause: errno, Log: lines}
	}
	p := &Prepared{Info: ProgramInfo{Name: "p", Section: "xdp"}}
	for name, c := range map[string]struct {
		err   error
		kind  error
		words string
	}{
		"license":            {verifier(unix.EINVAL, "cannot call GPL-restricted function from non-GPL compatible program"), ErrLicense, "GPL-compatible license"},
		"license of a kfunc": {verifier(unix.EINVAL, "cannot call kernel function from non-GPL compatible program"), ErrLicense, "GPL-compatible license"},
		"old helper":         {verifier(unix.EINVAL, "unknown func bpf_xdp_load_bytes#189"), ErrNotSupported, "newer kernel"},
		"very old helper":    {verifier(unix.EINVAL, "invalid func unknown#230"), ErrNotSupported, "newer kernel"},
		"verifier":           {verifier(unix.EACCES, "R0 !read_ok", "processed 1 insns"), ErrVerifier, "R0 !read_ok"},
		"privilege":          {verifier(unix.EPERM), ErrPermission, "CAP_BPF and CAP_NET_ADMIN"},
		"map shape":          {errors.Join(ebpf.ErrMapIncompatible), ErrMap, "unpin the old map"},
		"anything else":      {unix.ENOMEM, unix.ENOMEM, "cannot allocate memory"},
	} {
		t.Run(name, func(t *testing.T) {
			e := p.explain(c.err)
			e.Op, e.Object = "load", "x.o"
			wantError(t, e, c.kind, "load x.o, program p: ", c.words)
			var errno unix.Errno
			if errors.As(c.err, &errno) && !errors.Is(e, errno) {
				t.Errorf("the errno %v is lost", errno)
			}
		})
	}
}

// FuzzRead feeds files that were objects once to everything that reads them.
// Whatever they hold, the answer is an error and not a panic.
func FuzzRead(f *testing.F) {
	for _, name := range bpfprog.Names() {
		f.Add(bpfprog.ELF(name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := Read("fuzz.o", bytes.NewReader(b))
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("%v is not an *Error", err)
			}
			return
		}
		for _, p := range o.Programs() {
			o.RunConfig(p.Name)
			o.prepared(LoadOptions{Program: Choice{Name: p.Name}})
		}
		for _, v := range o.Variables() {
			for _, part := range []string{"=1", "=x", ".rate=1", ".burst.low=1", "[3]=1", "[0][0]=1"} {
				o.Set(v.Name + part)
			}
		}
	})
}
