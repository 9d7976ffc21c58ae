package policy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/yamlfile"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func read(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Decode("p", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const digestOfA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

const rules = `version: 1
rules:
- name: not from containers
  match: {contained: true}
  deny: true
- name: nobody touches lo
  match: {interface: [lo], exe: ["/opt/**"]}
  deny: true
- name: edge
  match:
    uid: [1000, 2000-2099]
    gid: [7]
    unit: ["ddos-*.service"]
    cgroup: ["/edge.slice/**"]
    exe: ["/usr/bin/*"]
    interface: ["eth*", "lo"]
    netns: own
  allow:
    verbs: [attach, replace, set, lock]
    modes: [native]
    lifetimes: [held]
    priority: 10-20
    objects: ["` + digestOfA + `"]
    quota: {members: 2, map-memory: 1000, instructions: 100, object-size: 5000}
- name: root
  match: {uid: [0]}
  allow: {verbs: [attach, detach, lock], exclusive: true, others: true}
`

func edge() (Subject, Request) {
	return Subject{
			UID: 1000, GID: 5, Groups: []int{6, 7}, Unit: "ddos-eth0.service", Cgroup: "/edge.slice/ddos-eth0.service", Exe: "/usr/bin/ddos",
		}, Request{
			Verb: Attach, Interface: "eth0", OwnNetns: true, Mode: xdp.Native, Lifetime: owned.Held, Priority: priority(15),
			Digest: digestOfA, ObjectSize: 5000, Instructions: 100, MapMemory: 400, Usage: has(1, 600),
		}
}

func has(members int, memory uint64) func() (int, uint64) {
	return func() (int, uint64) { return members, memory }
}

func priority(n uint32) *uint32 { return &n }

func TestTheFirstRuleThatMatchesDecides(t *testing.T) {
	p := read(t, rules)
	for name, c := range map[string]struct {
		change func(*Subject, *Request)
		want   string // "" for allowed
		rule   string
	}{
		"as it should be":           {func(*Subject, *Request) {}, "", "edge"},
		"another uid":               {func(s *Subject, _ *Request) { s.UID = 1001 }, "no rule of the policy matches", ""},
		"a uid of the range":        {func(s *Subject, _ *Request) { s.UID = 2099 }, "", "edge"},
		"not in the group":          {func(s *Subject, _ *Request) { s.Groups = nil }, "no rule", ""},
		"primary group":             {func(s *Subject, _ *Request) { s.Groups, s.GID = nil, 7 }, "", "edge"},
		"another unit":              {func(s *Subject, _ *Request) { s.Unit = "sshd.service" }, "no rule", ""},
		"another cgroup":            {func(s *Subject, _ *Request) { s.Cgroup = "/edge.slice" }, "no rule", ""},
		"a program not vouched":     {func(s *Subject, _ *Request) { s.Exe = "" }, "no rule", ""},
		"a program further below":   {func(s *Subject, _ *Request) { s.Exe = "/usr/bin/x/ddos" }, "no rule", ""},
		"in a container":            {func(s *Subject, _ *Request) { s.Contained = true }, `rule "not from containers" (p:3) denies it`, "not from containers"},
		"another interface":         {func(_ *Subject, r *Request) { r.Interface = "wlan0" }, "no rule", ""},
		"in another namespace":      {func(_ *Subject, r *Request) { r.OwnNetns = false }, "no rule", ""},
		"lo":                        {func(_ *Subject, r *Request) { r.Interface = "lo" }, "", "edge"},
		"lo, by nobody knows what":  {func(s *Subject, r *Request) { r.Interface, s.Exe = "lo", "" }, "denies it", "nobody touches lo"},
		"another verb":              {func(_ *Subject, r *Request) { r.Verb = Detach }, "it allows attach, replace, set, lock", "edge"},
		"another mode":              {func(_ *Subject, r *Request) { r.Mode = xdp.Generic }, "the mode is generic", "edge"},
		"no mode":                   {func(_ *Subject, r *Request) { r.Mode = xdp.Auto }, "the mode is auto", "edge"},
		"permanent":                 {func(_ *Subject, r *Request) { r.Lifetime = owned.Permanent }, "would be permanent", "edge"},
		"too early":                 {func(_ *Subject, r *Request) { r.Priority = priority(9) }, "the priority is 9", "edge"},
		"beside":                    {func(_ *Subject, r *Request) { r.Priority, r.Beside = nil, true }, "must have a priority", "edge"},
		"moved beside":              {func(_ *Subject, r *Request) { r.Verb, r.Priority, r.Beside = Set, nil, true }, "must have a priority", "edge"},
		"set something else":        {func(_ *Subject, r *Request) { r.Verb, r.Priority, r.Digest = Set, nil, "" }, "", "edge"},
		"exclusive":                 {func(_ *Subject, r *Request) { r.Exclusive = true }, "to itself", "edge"},
		"another's":                 {func(_ *Subject, r *Request) { r.Verb, r.Others = Replace, true }, "somebody else", "edge"},
		"another object":            {func(_ *Subject, r *Request) { r.Digest = "sha256:b" }, "none of those", "edge"},
		"too large":                 {func(_ *Subject, r *Request) { r.ObjectSize++ }, "the object's size would be 5001, and 5000 is the most", "edge"},
		"too many instructions":     {func(_ *Subject, r *Request) { r.Instructions++ }, "instructions", "edge"},
		"too many members":          {func(_ *Subject, r *Request) { r.Usage = has(2, 0) }, "members of this user would be 3", "edge"},
		"replaced at the limit":     {func(_ *Subject, r *Request) { r.Verb, r.Usage, r.MapMemory = Replace, has(2, 0), 0 }, "", "edge"},
		"too much memory":           {func(_ *Subject, r *Request) { r.MapMemory++ }, "1001", "edge"},
		"more memory than there is": {func(_ *Subject, r *Request) { r.MapMemory = ^uint64(0) }, "18446744073709551615", "edge"},
		"lock": {func(_ *Subject, r *Request) {
			*r = Request{Verb: Lock, Interface: "eth0", OwnNetns: true, Mode: xdp.Native}
		}, "", "edge"},
		"root, all":            {func(s *Subject, r *Request) { *s = Subject{}; r.Exclusive, r.Others = true, true }, "", "root"},
		"root, in a container": {func(s *Subject, r *Request) { *s = Subject{Contained: true} }, "denies it", "not from containers"},
	} {
		s, r := edge()
		c.change(&s, &r)
		d := p.Decide(s, r)
		if d.Allowed != (c.want == "") || !strings.Contains(d.Reason, c.want) || d.Rule != c.rule {
			t.Errorf("%s: %+v, want %q by %q", name, d, c.want, c.rule)
		}
		if (d.Err(r.Verb, "eth0") == nil) != d.Allowed {
			t.Errorf("%s: error %v", name, d.Err(r.Verb, "eth0"))
		}
	}
}

func TestADenialIsAPermissionErrorThatNamesItsRule(t *testing.T) {
	err := read(t, rules).Decide(Subject{Contained: true}, Request{Verb: Attach}).Err(Attach, "eth0")
	var e *Error
	if !errors.Is(err, xdp.ErrPermission) || !errors.As(err, &e) || e.DecidedBy() != "not from containers" || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("got %v", err)
	}
}

func TestWithoutAFileRootMayDoAllAndNobodyElseAnything(t *testing.T) {
	p, err := Load(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range Verbs {
		for s, want := range map[string]Subject{"": {}, "uid": {UID: 1}, "container": {Contained: true}} {
			if got := p.Decide(want, Request{Verb: v, Others: true, Exclusive: true}).Allowed; got != (s == "") {
				t.Errorf("%s by %+v: %v", v, want, got)
			}
		}
	}
}

func TestFilesAreReadInTheirOrder(t *testing.T) {
	dir := t.TempDir()
	write := func(name, rule string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("version: 1\nrules:\n- name: "+rule+"\n  deny: true\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("policy.d/20.yaml", "third")
	write("policy.d/10.yaml", "second")
	write("policy.d/30.yml", "of another kind")
	write("policy.yaml", "first")
	p, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range p.Rules {
		names = append(names, r.Name)
	}
	if fmt.Sprint(names) != "[first second third]" {
		t.Errorf("got %v", names)
	}
	if err := os.WriteFile(filepath.Join(dir, "policy.d/15.yaml"), []byte("version: 1\nrules: 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "15.yaml:2:8: ") {
		t.Errorf("got %v", err)
	}
}

func TestAFileThatIsWrongIsRefusedWithItsPlace(t *testing.T) {
	rule := func(s string) string { return "version: 1\nrules:\n- name: a\n" + s }
	for text, want := range map[string]string{
		"":                               "p: it is empty",
		"version: 2\nrules: []":          "p:1:1: the file is of version 2",
		"version: 1":                     `is missing its "rules"`,
		"version: 1\nrules: []\nmore: 1": `p:3:1: the file has no "more"`,
		rule(""):                         "p:3:3: a rule has one of allow and deny",
		rule("  deny: false"):            "p:4:9: deny is true where it is there",
		rule("  deny: true\n  allow: {verbs: [attach]}"):            "one of allow and deny",
		rule("  deny: true\n- name: a\n  deny: true"):               `p:5:3: there is a rule "a" already`,
		rule("  allow: {}"):                                         `is missing its "verbs"`,
		rule("  allow: {verbs: []}"):                                "the list of verbs is empty",
		rule("  allow: {verbs: [fly]}"):                             "p:4:19: this must be one of attach",
		rule("  allow: {verbs: [attach], priority: 20-10}"):         "this must be a number, or two",
		rule("  allow: {verbs: [attach], priority: -1}"):            "a number",
		rule("  allow: {verbs: [attach], objects: ['sha256:1']}"):   "is no digest",
		rule("  allow: {verbs: [attach], quota: {members: many}}"):  "this must be a number",
		rule("  deny: true\n  match: {uid: [root]}"):                "this must be a number",
		rule("  deny: true\n  match: {uid: []}"):                    "the list of users is empty",
		rule("  deny: true\n  match: {exe: ['/a[']}"):               "has no ]",
		rule("  deny: true\n  match: {exe: ['/**/a']}"):             "** elsewhere",
		rule("  deny: true\n  match: {interface: ['**']}"):          "** elsewhere",
		rule("  deny: true\n  match: {exe: [ddos]}"):                "p:5:17: the pattern \"ddos\" is no path",
		rule("  deny: true\n  match: {cgroup: [/a.slice/]}"):        "is no path",
		rule("  deny: true\n  match: {exe: ['/a[b/c]']}"):           "has no ]",
		rule("  deny: true\n  match: {exe: ['/a\\/b']}"):            "a backslash nothing behind it",
		rule("  deny: true\n  match: {interface: [a/b]}"):           "has a slash",
		rule("  deny: true\n  match: {uid: [01-10]}"):               "this must be a number, or two",
		rule("  allow: {verbs: [attach], quota: {members: 010}}"):   "this must be a number",
		rule("  allow: {verbs: [attach], quota: {map-memory: 1M}}"): "or one as 64Mi",
		rule("  allow: {verbs: [attach], quota: {members: 1Mi}}"):   "this must be a number",
		rule("  deny: true\n  match: {exe: ['']}"):                  "the pattern is empty",
		rule("  deny: true\n  match: {netns: other}"):               "one of any, host, own",
		rule("  deny: true\n  match: {user: [1]}"):                  `match has no "user"`,
	} {
		_, err := Decode("p", strings.NewReader(text))
		if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, yamlfile.ErrInvalid) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, value string
		want           bool
	}{
		{"eth*", "eth0", true}, {"eth*", "veth0", false}, {"eth[01]", "eth1", true}, {"eth[01]", "eth2", false}, {"*", "a/b", false},
		{"/usr/**", "/usr", false}, {"/usr/**", "/usr/a", true}, {"/usr/**", "/usr/a/b", true}, {"/usr/**", "/usrx/a", false},
		{"/usr/bin[^a]x", "/usr/bin/x", false}, {"/a[.-0]b", "/a/b", false}, {"/a?b", "/a/b", false}, {"/a[^b]c", "/axc", true},
		{"/**", "/a/b", true}, {"/a[bc]/**", "/ab/d", true}, {"/a[bc]/**", "/a/b/d", false}, {`a\\x2db`, `a\x2db`, true}, {`a\x2db`, `a\x2db`, false},
		{"/*/x/**", "/a/x/b", true}, {"/*/x/**", "/a/b/x/c", false}, {"**", "a/b", false}, {"", "", true},
	} {
		if got := Fits(c.pattern, c.value); got != c.want {
			t.Errorf("%q fits %q: %v", c.value, c.pattern, got)
		}
	}
}

func FuzzFits(f *testing.F) {
	f.Add("/usr/bin[^a]x", "/usr/bin/x")
	f.Add("/a/**", "/a/b/c")
	f.Fuzz(func(t *testing.T, pattern, value string) {
		below := strings.HasSuffix(pattern, "/**")
		parts, of := strings.Count(value, "/"), strings.Count(pattern, "/")
		if Fits(pattern, value) && parts != of && (!below || parts < of) {
			t.Errorf("%q fits %q, which has another number of parts", value, pattern)
		}
	})
}

func TestWhatIsNotKnownFitsRulesThatDeny(t *testing.T) {
	p := read(t, `version: 1
rules:
- name: not there
  match: {netns: host}
  deny: true
- name: not from there
  match: {cgroup: ["/bad.slice/**"], unit: ["bad.service"]}
  deny: true
- name: own
  match: {netns: own, cgroup: ["/*/*/**"]}
  allow: {verbs: [attach]}
`)
	for name, c := range map[string]struct {
		cgroup, unit string
		unknown      bool
		want         string
	}{
		"all is known":            {"/good.slice/a/b", "a.service", false, "own"},
		"the namespace is not":    {"/good.slice/a/b", "a.service", true, "not there"},
		"another unit":            {"/bad.slice/a/b", "a.service", false, "own"},
		"the unit is not":         {"/bad.slice/a/b", "", false, "not from there"},
		"the cgroup is not":       {"", "bad.service", false, "not from there"},
		"the cgroup is elsewhere": {"/../good.slice/a/b", "bad.service", false, "not from there"},
	} {
		d := p.Decide(Subject{Cgroup: c.cgroup, Unit: c.unit}, Request{Verb: Attach, Interface: "eth0", OwnNetns: true, NetnsUnknown: c.unknown})
		if d.Rule != c.want {
			t.Errorf("%s: %+v, want %q", name, d, c.want)
		}
	}
}

func TestAFileThatCantBeLookedAtIsNoMissingOne(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"a link to nowhere":             func(dir string) error { return os.Symlink("nowhere", filepath.Join(dir, "policy.yaml")) },
		"a directory link to nowhere":   func(dir string) error { return os.Symlink("nowhere", filepath.Join(dir, "policy.d")) },
		"a file in the directory's way": func(dir string) error { return os.WriteFile(filepath.Join(dir, "policy.d"), nil, 0o644) },
		"a directory in a file's way":   func(dir string) error { return os.MkdirAll(filepath.Join(dir, "policy.d", "10.yaml"), 0o755) },
	} {
		dir := t.TempDir()
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		if p, err := Load(dir); err == nil {
			t.Errorf("%s: got %+v", name, p)
		}
	}
}

func TestADirectoryMayBeCalledLikeAPattern(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*")
	if err := os.MkdirAll(filepath.Join(dir, "policy.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "policy.d", "10.yaml"), []byte("version: 1\nrules: []\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := Load(dir)
	if err != nil || len(p.Rules) != 0 {
		t.Errorf("got %+v, %v", p, err)
	}
}

func draw(t *rapid.T) Rule {
	r := Rule{Name: rapid.StringMatching(`[a-z]{1,4}`).Draw(t, "name")}
	if rapid.Bool().Draw(t, "uid") {
		first := rapid.Uint32Range(0, 5).Draw(t, "first")
		r.Match.UID = []Range{{first, first + rapid.Uint32Range(0, 3).Draw(t, "more")}}
	}
	if rapid.Bool().Draw(t, "exe") {
		r.Match.Exe = []string{rapid.SampledFrom([]string{"/bin/*", "/opt/**", "/bin/a"}).Draw(t, "pattern")}
	}
	if rapid.Bool().Draw(t, "allow") {
		r.Allow = &Allow{Verbs: rapid.SliceOfNDistinct(rapid.SampledFrom(Verbs), 1, -1, rapid.ID[Verb]).Draw(t, "verbs"), Others: rapid.Bool().Draw(t, "others")}
	}
	return r
}

func ask(t *rapid.T) (Subject, Request) {
	return Subject{UID: rapid.IntRange(0, 8).Draw(t, "user"), Exe: rapid.SampledFrom([]string{"", "/bin/a", "/bin/b", "/opt/x/y"}).Draw(t, "program")},
		Request{Verb: rapid.SampledFrom(Verbs).Draw(t, "verb"), Others: rapid.Bool().Draw(t, "another's")}
}

func TestARuleAtTheEndChangesNoDecisionOfThoseBefore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &Policy{Rules: rapid.SliceOfN(rapid.Custom(draw), 0, 5).Draw(t, "rules")}
		s, r := ask(t)
		before := p.Decide(s, r)
		p.Rules = append(p.Rules, draw(t))
		if after := p.Decide(s, r); before.Rule != "" && after != before {
			t.Errorf("%+v became %+v", before, after)
		}
	})
}

func TestARuleThatDeniesAllowsNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &Policy{Rules: rapid.SliceOfN(rapid.Custom(draw), 0, 5).Draw(t, "rules")}
		s, r := ask(t)
		before := p.Decide(s, r)
		denies := draw(t)
		denies.Allow = nil
		p.Rules = slices.Insert(p.Rules, rapid.IntRange(0, len(p.Rules)).Draw(t, "at"), denies)
		if after := p.Decide(s, r); after.Allowed && after != before {
			t.Errorf("%+v became %+v", before, after)
		}
	})
}

func TestWhoeverHidesWhatItIsGetsNoMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &Policy{Rules: rapid.SliceOfN(rapid.Custom(draw), 0, 5).Draw(t, "rules")}
		// With rules that allow by what a program is not, hiding could pay: there are
		// none, because a rule that denies fits whoever is not known.
		s, r := ask(t)
		hidden := s
		hidden.Exe = ""
		if !p.Decide(s, r).Allowed && p.Decide(hidden, r).Allowed {
			for _, rule := range p.Rules {
				if rule.Allow != nil && len(rule.Match.Exe) > 0 && rule.matches(s, r) {
					return // a rule for the program was worse for it than the next one
				}
			}
			t.Errorf("%+v may %s only when nobody knows its program", s, r.Verb)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(rules)
	f.Add("version: 1\nrules: []")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Decode("p", strings.NewReader(text))
		if err != nil {
			return
		}
		s, r := edge()
		p.Decide(s, r)
	})
}
