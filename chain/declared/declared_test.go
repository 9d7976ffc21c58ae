package declared

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/internal/yamlfile"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// all is what testdata/all.yaml declares.
var all = &File{Hooks: []Hook{
	{Interface: "eth0", Namespace: "blue", Mode: xdp.Native, Engine: Live, Stats: new(true), Members: []Member{
		{
			Name: "ddos", Object: "/usr/lib/xdp/ddos.o", Program: "xdp_ddos", Priority: 10, ProceedOn: chain.Set(chain.Pass, chain.Tx),
			Variables: map[string]string{
				"drop_port": "53", "mac": "02:00:0a:01", "ports[3]": "0x1bb", "verbose": "true", "name": "front", "limits.rate": "1_000",
			},
		},
		{Name: "sample", Object: "testdata/sample.o", Section: "xdp/sample", Priority: 10},
		{Name: "7", Object: "other.o", Priority: 50, ProceedOn: chain.Set(chain.Pass)},
	}},
	{Interface: "eth0", Namespace: "blue", Mode: xdp.Offload, Engine: Auto},
	{Interface: "eth1", Engine: Fused, Exclusive: true, Members: []Member{
		{Name: "alone", Object: "testdata/alone.o", Priority: 50, ProceedOn: chain.Set(chain.Pass)},
	}},
}}

func TestAFileIsReadWithItsDefaultsAndPaths(t *testing.T) {
	got, err := Read("testdata/all.yaml")
	if err != nil || !cmp.Equal(got, all) {
		t.Errorf("%v, %s", err, cmp.Diff(all, got))
	}
	want := []string{"drop_port=53", "limits.rate=1_000", "mac=02:00:0a:01", "name=front", "ports[3]=0x1bb", "verbose=true"}
	if a := got.Hooks[0].Members[0].Assignments(); !cmp.Equal(a, want) {
		t.Error(cmp.Diff(want, a))
	}
	if _, err := Read("testdata/none.yaml"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestWhatIsWrongIsToldWithItsPlace(t *testing.T) {
	hook := "version: 1\nhooks:\n- interface: eth0\n"
	member := hook + "  members:\n  - name: a\n    object: a.o\n"
	for text, want := range map[string]string{
		"":                                          "f: it is empty; ",
		"# nothing\n":                               "f: it is empty; ",
		"---\n...\n":                                "f: it is empty; ",
		"a: b: c\n":                                 "f:1:4: mapping value is not allowed in this context; ",
		"version: 1\nhooks: [\n":                    "f:2:8: sequence end token ']' not found; ",
		"version: \"1\n":                            "f:1:10: could not find end character of double-quoted text; ",
		"\xff":                                      "f:1:1: byte 0xff is not UTF-8; ",
		"version: 1\nhooks: \x01\n":                 "f:2:8: '\\x01' can't be in a text; ",
		"- a\n":                                     "f:1:1: this must be keys and values, and is a list; the file has hooks, version",
		"text\n":                                    "f:1:1: this must be keys and values, and is the text \"text\"; the file has hooks, version",
		"version: 1\n":                              "f:1:1: the file is missing its \"hooks\"; ",
		"hooks: []\n":                               "f:1:1: the file is missing its \"version\"; ",
		"version: 1\nhooks: []\n":                   "f:1:1: there are no hooks; ",
		"version: 1\nhooks:\n":                      "f:2:8: this must be a list of hooks, and is nothing; ",
		"version: 1\nhooks: {}\n":                   "f:2:8: this must be a list of hooks, and is keys and values; ",
		"version: one\nhooks: []\n":                 "f:1:10: this must be a number, and is the text \"one\"; ",
		"version: 01\nhooks: []\n":                  "f:1:10: this must be a number, and is 01; ",
		hook + "  members: []\n--- 7\n":             "f:5:5: a second document begins; ",
		hook + "  member: []\n":                     "f:4:3: a hook has no \"member\"; it has drift, engine, exclusive, interface, members, mode, netns, stats",
		hook + "  members: []\n  mode: driver":      "f:5:9: this must be one of auto, native, generic, offload, and is the text \"driver\"; ",
		hook + "  members: []\n  engine: fast":      "f:5:11: this must be one of auto, live, fused, and is the text \"fast\"; ",
		hook + "  members: []\n  netns: 7":          "f:5:10: this must be a text, and is 7; put it into quotes",
		hook + "  members: []\n  netns: ''":         "f:5:10: the namespace is empty; ",
		hook + "  members: []\n  stats: true":       "f:5:10: the chain counts and has no members; ",
		hook + "  members: []\n  exclusive: no":     "f:5:14: this must be true or false, and is the text \"no\"; ",
		hook + "  members: []\n  exclusive: true":   "f:4:12: the hook is exclusive and has 0 members; ",
		hook + "  interface: eth1\n  members: []\n": "f:4:3: mapping key \"interface\" already defined at [3:3]; ",
		hook:                  "f:3:3: a hook is missing its \"members\"; ",
		hook + "  members:\n": "f:4:12: this must be a list of members, and is nothing; ",
		hook + "  members: []\n- interface: eth0\n  members: []\n":  "f:5:3: eth0 is there already, in mode auto; ",
		hook + "  members: []\n- interface: a/b\n  members: []\n":   "f:5:14: \"a/b\" can't be an interface's name: it contains '/'; ",
		hook + "  members:\n  - name: a\n":                          "f:5:5: a member is missing its \"object\"; ",
		hook + "  members:\n  - name: ''\n":                         "f:5:11: a member's name is empty; ",
		hook + "  members:\n  - name: 7\n":                          "f:5:11: this must be a text, and is 7; put it into quotes",
		hook + "  members:\n  - a\n":                                "f:5:5: this must be keys and values, and is the text \"a\"; ",
		member + "    name: b\n":                                    "f:7:5: mapping key \"name\" already defined at [5:5]; ",
		member + "    prio: 7\n":                                    "f:7:5: a member has no \"prio\"; it has name, object, priority, proceed-on, program, section, set",
		member + "    7: prio\n":                                    "f:7:5: this must be a key, and is 7; ",
		member + "    priority: high\n":                             "f:7:15: this must be a number, and is the text \"high\"; ",
		member + "    priority: \"7\"\n":                            "f:7:15: this must be a number, and is the text \"7\"; ",
		member + "    priority: -1\n":                               "f:7:15: this must be a number, and is -1; ",
		member + "    priority: 0x10\n":                             "f:7:15: this must be a number, and is 0x10; ",
		member + "    priority: 4294967296\n":                       "f:7:15: this must be a number, and is 4294967296; ",
		member + "    priority:\n":                                  "f:7:15: this must be a number, and is nothing; ",
		member + "    proceed-on: XDP_PASS\n":                       "f:7:17: this must be a list of actions, as in [XDP_PASS], and is the text \"XDP_PASS\"; ",
		member + "    proceed-on: [XDP_PASS, XDP_FAIL]\n":           "f:7:28: \"XDP_FAIL\" is not an XDP action; ",
		member + "    proceed-on: [pass, XDP_PASS]\n":               "f:7:24: XDP_PASS is there twice; ",
		member + "    set: [a]\n":                                   "f:7:10: this must be variables, and is a list; ",
		member + "    set: {a: ~}\n":                                "f:7:14: this must be a value, and is nothing; ",
		member + "    set: {a: [1]}\n":                              "f:7:14: this must be a value, and is a list; ",
		member + "    set: {a=b: 1}\n":                              "f:7:11: \"a=b\" can't be the name of a variable; ",
		member + "    program: p\n    section: s\n":                 "f:5:5: both program and section are given; ",
		member + "    program: &p x\n":                              "f:7:14: anchors, aliases and tags are not taken; ",
		member + "    program: !!str x\n":                           "f:7:14: anchors, aliases and tags are not taken; ",
		member + "    <<: {}\n":                                     "f:7:5: anchors, aliases and tags are not taken; ",
		member + "  - name: a\n    object: b.o\n":                   "f:7:5: the chain has a member \"a\" already; ",
		member + "  - name: b\n    object: b.o\n    priority: 49\n": "f:9:15: \"b\" has priority 49 and comes after \"a\", which has 50; ",
		member + "    priority: 51\n  - name: b\n    object: b.o\n": "f:8:5: \"b\" has priority 50 and comes after \"a\", which has 51; ",
		"version: 2\nhooks: []\n":                                   "f:1:1: the file is of version 2; ",
		strings.Repeat("[", 20):                                     "f:1:17: values are nested too deeply; ",
		strings.Repeat("- ", 20) + "a":                              "f:1:33: values are nested too deeply; ",
		strings.Repeat("#", yamlfile.MaxSize+1):                     "f: it is bigger than 256 KiB; ",
	} {
		f, err := Decode("f", strings.NewReader(text))
		var invalid *Error
		if !errors.As(err, &invalid) || !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), want) || invalid.Hint == "" {
			t.Errorf("%q:\ngot  %v\nwant %s", text, err, want)
		}
		if f != nil {
			t.Errorf("%q is read as %+v", text, f)
		}
	}
}

func TestAnExportedFileIsLegible(t *testing.T) {
	got, err := Encode(&File{Hooks: []Hook{
		{Interface: "eth0.5", Mode: xdp.Generic, Engine: Live, Members: []Member{
			{Name: "ddos filter", Object: "/usr/lib/xdp/ddos.o", Program: "xdp_ddos", Priority: 10, ProceedOn: chain.Set(chain.Pass, chain.Drop),
				Variables: map[string]string{"drop_port": "53", "note": "a\nb: \"c\""}},
			{Name: "true", Object: "a.o", Section: "xdp", Priority: 10},
		}},
		{Interface: "eth1", Exclusive: false, Stats: new(false)},
	}})
	want := `version: 1
hooks:
- interface: eth0.5
  mode: generic
  engine: live
  members:
  - name: "ddos filter"
    object: /usr/lib/xdp/ddos.o
    program: xdp_ddos
    priority: 10
    proceed-on: [XDP_DROP, XDP_PASS]
    set:
      drop_port: "53"
      note: "a\nb: \"c\""
  - name: "true"
    object: a.o
    section: xdp
    priority: 10
    proceed-on: []
- interface: eth1
  stats: false
  members: []
`
	if err != nil || string(got) != want {
		t.Errorf("%v, %s", err, cmp.Diff(want, string(got)))
	}
}

func TestWhatNoFileCanDeclareIsNotWritten(t *testing.T) {
	member := func(change func(*Member)) *File {
		m := Member{Name: "a", Object: "a.o"}
		change(&m)
		return &File{Hooks: []Hook{{Interface: "eth0", Members: []Member{m}}}}
	}
	for name, f := range map[string]*File{
		"no hooks":                   {},
		"no interface":               {Hooks: []Hook{{}}},
		"a mode that is none":        {Hooks: []Hook{{Interface: "eth0", Mode: 9}}},
		"an engine that is none":     {Hooks: []Hook{{Interface: "eth0", Engine: "single"}}},
		"no object":                  member(func(m *Member) { m.Object = "" }),
		"a path that is no text":     member(func(m *Member) { m.Object = "\xff.o" }),
		"a path of two lines":        member(func(m *Member) { m.Object = "a\nb" }),
		"bits that are no action's":  member(func(m *Member) { m.ProceedOn = 1 << 9 }),
		"a variable without a name":  member(func(m *Member) { m.Variables = map[string]string{"": "1"} }),
		"a value that is no text":    member(func(m *Member) { m.Variables = map[string]string{"a": "\xff"} }),
		"exclusive with two members": {Hooks: []Hook{{Interface: "eth0", Exclusive: true, Members: []Member{{Name: "a", Object: "a"}, {Name: "b", Object: "b"}}}}},
	} {
		b, err := Encode(f)
		if !errors.Is(err, ErrInvalid) || b != nil {
			t.Errorf("%s: %v\n%s", name, err, b)
		}
	}
}

func TestAPathBeginsWhereTheFileIs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "f.yaml")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	text := "version: 1\nhooks:\n- interface: eth0\n  members: [{name: a, object: ../a.o}, {name: b, object: /b.o}]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if m := f.Hooks[0].Members; m[0].Object != filepath.Join(dir, "a.o") || m[1].Object != "/b.o" {
		t.Errorf("%+v", m)
	}
}
