package fuzz

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/xdp"
)

// FuzzParseMode: what parses is a mode's own name, and what does not says which
// names there are.
func FuzzParseMode(f *testing.F) {
	for _, s := range []string{"auto", "native", "generic", "offload", "", "Native", "mode 7", "native\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := xdp.ParseMode(s)
		if err == nil {
			if m.String() != s {
				t.Errorf("%q parses as %q", s, m)
			}
			return
		}
		if !errors.Is(err, xdp.ErrInvalid) || !strings.HasSuffix(err.Error(), "auto, native, generic, offload") {
			t.Errorf("%q: %v", s, err)
		}
	})
}

func TestAModeGoesThroughJSON(t *testing.T) {
	for _, m := range []xdp.Mode{xdp.Auto, xdp.Native, xdp.Generic, xdp.Offload} {
		b, err := json.Marshal(m)
		if err != nil || string(b) != `"`+m.String()+`"` {
			t.Errorf("%s is %s (%v)", m, b, err)
		}
		var again xdp.Mode
		if err := json.Unmarshal(b, &again); err != nil || again != m {
			t.Errorf("%s comes back as %s (%v)", b, again, err)
		}
	}
	var m xdp.Mode
	if err := json.Unmarshal([]byte(`"fast"`), &m); !errors.Is(err, xdp.ErrInvalid) {
		t.Errorf("mode fast: %v", err)
	}
	if got := xdp.Mode(77).String(); got != "mode 77" {
		t.Errorf("a mode that there is not is %q", got)
	}
}

// FuzzInterfaceName: a name is refused before the kernel is asked if and only if
// the kernel lets no interface have it.
func FuzzInterfaceName(f *testing.F) {
	for _, s := range []string{"lo", "", "eth0.100", "a/b", "a b", "a:0", "x\x00", "\xff", "abcdefghijklmno", "abcdefghijklmnop", ".", "..", "\u00a0"} {
		f.Add(s)
	}
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ns.Close() })
	f.Fuzz(func(t *testing.T, name string) {
		h, err := ns.Hook(name, xdp.Auto)
		switch {
		case !possible(name):
			if !errors.Is(err, xdp.ErrInvalid) {
				t.Errorf("%q can't be a name: %v", name, err)
			}
		case err == nil:
			if h.Name() != name {
				t.Errorf("%q found interface %q", name, h.Name())
			}
		case !errors.Is(err, xdp.ErrNotFound):
			t.Errorf("%q can be a name: %v", name, err)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("the message about a name has %d bytes", len(err.Error()))
		}
	})
}

// possible is the kernel's dev_valid_name, except for "." and "..", which are left
// to the kernel not to find.
func possible(name string) bool {
	return name != "" && len(name) <= 15 && !strings.ContainsAny(name, "/: \t\n\v\f\r\x00")
}

func TestAnErrorIsOneSentenceThatEndsWithWhatToDo(t *testing.T) {
	link := &xdp.Attachment{
		Mode: xdp.Native, Held: xdp.HeldByLink, LinkID: 7,
		Program: xdp.Program{ID: 42, Name: "filter", Tag: "614b434cd8324ecc"},
		Holders: []xdp.Holder{{PID: 311, Comm: "guard"}, {PID: 312, Comm: "helper"}},
		Pins:    []string{"/sys/fs/bpf/guard"},
	}
	for _, c := range []struct {
		name string
		err  xdp.Error
		want string
	}{
		{
			"a rival that holds the hook by a link",
			xdp.Error{Op: "attach", Hook: "eth0 (native)", Err: xdp.ErrConflict, Rival: link, Errno: 16, Hint: "whoever holds the link must let go first"},
			`attach eth0 (native): conflict: program 42 "filter" (tag 614b434cd8324ecc) is attached in native mode and held by link 7 of process 311 (guard), process 312 (helper), pin /sys/fs/bpf/guard (kernel: device or resource busy); whoever holds the link must let go first`,
		},
		{
			"a rival by netlink that may not be read, and the kernel's own words",
			xdp.Error{
				Op: "replace", Hook: "eth0", Err: xdp.ErrConflict, Detail: "expected program 4",
				Rival: &xdp.Attachment{Mode: xdp.Generic, Held: xdp.HeldByNetlink, Program: xdp.Program{ID: 5}},
				Errno: 17, Extack: "Active program does not match expected", Hint: "look at what is attached now and decide again",
			},
			`replace eth0: conflict: expected program 4: program 5 is attached in generic mode by netlink (kernel: file exists, "Active program does not match expected"); look at what is attached now and decide again`,
		},
		{
			"a rival with a link that can't be told, in a mode that can't be told",
			xdp.Error{Op: "attach", Hook: "eth0", Err: xdp.ErrConflict, Rival: &xdp.Attachment{Held: xdp.HeldByLink, Program: xdp.Program{ID: 5}}},
			`attach eth0: conflict: program 5 is attached and held by a link`,
		},
		{
			"a rival of whom nothing is known",
			xdp.Error{Op: "attach", Hook: "eth0", Err: xdp.ErrConflict, Rival: &xdp.Attachment{Mode: xdp.Native, Held: xdp.HeldUnknown, Program: xdp.Program{ID: 5}}},
			`attach eth0: conflict: program 5 is attached in native mode`,
		},
		{
			"no hook",
			xdp.Error{Op: "list interfaces", Err: xdp.ErrUnexpected, Detail: "end of file"},
			`list interfaces: failed: end of file`,
		},
		{
			"only what can't be left out",
			xdp.Error{Op: "detach", Err: xdp.ErrGone},
			`detach: gone`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.err.Error(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if !errors.Is(&c.err, c.err.Err) {
				t.Error("it is not its sentinel")
			}
			if c.err.Errno != 0 && !errors.Is(&c.err, c.err.Errno) {
				t.Error("it is not its errno")
			}
		})
	}
}

func TestEachSentinelIsItself(t *testing.T) {
	all := []error{
		xdp.ErrConflict, xdp.ErrPermission, xdp.ErrNotSupported, xdp.ErrNotFound, xdp.ErrNotAttached,
		xdp.ErrGone, xdp.ErrMTU, xdp.ErrAttachType, xdp.ErrDeviceBound, xdp.ErrPort, xdp.ErrExists,
		xdp.ErrInvalid, xdp.ErrUnexpected,
	}
	texts := map[string]bool{}
	for i, sentinel := range all {
		texts[sentinel.Error()] = true
		for j, other := range all {
			if is := errors.Is(&xdp.Error{Err: sentinel}, other); is != (i == j) {
				t.Errorf("an error of %q is %q: %t", sentinel, other, is)
			}
		}
	}
	if len(texts) != len(all) {
		t.Errorf("%d sentinels have %d texts", len(all), len(texts))
	}
}

func TestAnExpectationSaysWhatItExpects(t *testing.T) {
	for want, e := range map[string]xdp.Expectation{
		"nothing": {}, "empty": xdp.Empty, "any": xdp.Any, "program 7": xdp.ExpectID(7),
	} {
		if e.String() != want {
			t.Errorf("%v, want %s", e, want)
		}
		if e.IsZero() != (want == "nothing") {
			t.Errorf("%s is zero: %t", e, e.IsZero())
		}
	}
	for _, c := range []struct {
		expect xdp.Expectation
		id     uint32
		holds  bool
	}{
		{xdp.Expectation{}, 0, false},
		{xdp.Expectation{}, 7, false},
		{xdp.Empty, 0, true},
		{xdp.Empty, 7, false},
		{xdp.Any, 0, true},
		{xdp.Any, 7, true},
		{xdp.ExpectID(7), 7, true},
		{xdp.ExpectID(7), 8, false},
		{xdp.ExpectID(7), 0, false},
		{xdp.ExpectID(0), 0, false},
	} {
		if got := c.expect.Holds(c.id); got != c.holds {
			t.Errorf("%s holds for %d: %t", c.expect, c.id, got)
		}
	}
}
