package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// schema is as much of JSON Schema as the published one uses: whatever else is in it
// fails the test.
type schema map[string]any

func (root schema) check(s schema, v any) error {
	for keyword, want := range s {
		if err := root.keyword(s, keyword, want, v); err != nil {
			return err
		}
	}
	return nil
}

func (root schema) keyword(s schema, keyword string, want, v any) error {
	object, isObject := v.(map[string]any)
	array, isArray := v.([]any)
	text, isText := v.(string)
	number, isNumber := asNumber(v)
	fail := func() error { return fmt.Errorf("%v: %s is %v", v, keyword, want) }
	switch keyword {
	case "$schema", "title", "$defs":
	case "$ref":
		at := any(map[string]any(root))
		for _, part := range strings.Split(strings.TrimPrefix(want.(string), "#/"), "/") {
			at = at.(map[string]any)[part]
		}
		return root.check(at.(map[string]any), v)
	case "type":
		kinds := map[string]bool{"object": isObject, "array": isArray, "string": isText, "integer": isNumber && number == math.Trunc(number), "boolean": reflect.TypeOf(v) == reflect.TypeFor[bool]()}
		if ok, known := kinds[want.(string)]; !ok || !known {
			return fail()
		}
	case "const":
		if n, ok := asNumber(want); want != v && (!ok || !isNumber || n != number) {
			return fail()
		}
	case "enum":
		for _, w := range want.([]any) {
			if w == v {
				return nil
			}
		}
		return fail()
	case "required":
		for _, w := range want.([]any) {
			if _, ok := object[w.(string)]; isObject && !ok {
				return fail()
			}
		}
	case "additionalProperties":
		for key := range object {
			if _, ok := s["properties"].(map[string]any)[key]; !ok {
				return fmt.Errorf("%q is not known", key)
			}
		}
	case "properties":
		for key, value := range object {
			if p, ok := want.(map[string]any)[key]; ok {
				if err := root.check(p.(map[string]any), value); err != nil {
					return err
				}
			}
		}
	case "items":
		for _, value := range array {
			if err := root.check(want.(map[string]any), value); err != nil {
				return err
			}
		}
	case "minItems":
		if n, _ := asNumber(want); isArray && float64(len(array)) < n {
			return fail()
		}
	case "minLength":
		if n, _ := asNumber(want); isText && float64(len(text)) < n {
			return fail()
		}
	case "minimum":
		if n, _ := asNumber(want); isNumber && number < n {
			return fail()
		}
	case "maximum":
		if n, _ := asNumber(want); isNumber && number > n {
			return fail()
		}
	case "pattern":
		if isText && !regexp.MustCompile(want.(string)).MatchString(text) {
			return fail()
		}
	case "not":
		if root.check(want.(map[string]any), v) == nil {
			return fail()
		}
	case "oneOf", "anyOf":
		fits := 0
		for _, w := range want.([]any) {
			if root.check(w.(map[string]any), v) == nil {
				fits++
			}
		}
		if fits == 0 || keyword == "oneOf" && fits > 1 {
			return fail()
		}
	default:
		return fmt.Errorf("this test does not know %q", keyword)
	}
	return nil
}

func asNumber(v any) (float64, bool) {
	switch n := v.(type) {
	case float64:
		return n, true
	case uint64:
		return float64(n), true
	case int64:
		return float64(n), true
	}
	return 0, false
}

func published(t *testing.T) (root schema) {
	t.Helper()
	if err := json.Unmarshal([]byte(file(t, "../docs/policy.schema.json")), &root); err != nil {
		t.Fatal(err)
	}
	return root
}

func file(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")

func TestThePublishedExamplesAreTaken(t *testing.T) {
	root := published(t)
	examples := []string{file(t, "../packaging/policy.yaml")}
	for _, m := range yamlBlock.FindAllStringSubmatch(file(t, "../docs/policy.md"), -1) {
		examples = append(examples, m[1])
	}
	if len(examples) < 2 {
		t.Error("docs/policy.md has no example")
	}
	for _, text := range examples {
		if p := read(t, text); len(p.Rules) == 0 {
			t.Errorf("%q has no rules", text)
		}
		var v any
		if err := yaml.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		if err := root.check(root, v); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What policy.md says of denials is said: each of its rows by one of these, and each of
// these is in one row.
func TestThePublishedDenialsAreThoseThatThereAre(t *testing.T) {
	text := file(t, "../docs/policy.md")
	_, text, _ = strings.Cut(text, "\n## Denials\n")
	said := map[string]*regexp.Regexp{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(text, -1) {
		said[m[1]] = regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(m[1]), "…", ".+") + "$")
	}
	const leaves = `rule "x" (file:line) does not allow it: `
	if said[leaves+"…"] == nil {
		t.Fatalf("policy.md does not have %q", leaves)
	}
	delete(said, leaves+"…") // its rest has a table of its own
	allow := read(t, rules).Rules[2].Allow
	found := map[string]bool{}
	for name, c := range map[string]struct {
		allow  *Allow
		change func(*Request)
	}{
		"no rule":       {allow, func(r *Request) { r.Interface = "wlan0" }},
		"denied":        {nil, func(*Request) {}},
		"verb":          {allow, func(r *Request) { r.Verb = Detach }},
		"another's":     {allow, func(r *Request) { r.Others = true }},
		"mode":          {allow, func(r *Request) { r.Mode = xdp.Auto }},
		"lifetime":      {allow, func(r *Request) { r.Lifetime = owned.Permanent }},
		"priority":      {allow, func(r *Request) { r.Priority = priority(9) }},
		"beside":        {allow, func(r *Request) { r.Priority, r.Beside = nil, true }},
		"exclusive":     {allow, func(r *Request) { r.Exclusive = true }},
		"object":        {allow, func(r *Request) { r.Digest = "tag:1" }},
		"size":          {allow, func(r *Request) { r.ObjectSize++ }},
		"instructions":  {allow, func(r *Request) { r.Instructions++ }},
		"members":       {allow, func(r *Request) { r.Usage = has(2, 0) }},
		"memory of all": {allow, func(r *Request) { r.MapMemory++ }},
	} {
		s, r := edge()
		c.change(&r)
		p := Policy{Rules: []Rule{{Name: "x", Where: "file:line", Match: Match{Interface: []string{"eth0"}}, Allow: c.allow}}}
		reason := strings.TrimPrefix(p.Decide(s, r).Reason, leaves)
		var rows []string
		for row, says := range said {
			if says.MatchString(reason) {
				rows = append(rows, row)
				found[row] = true
			}
		}
		if len(rows) != 1 {
			t.Errorf("%s: %q is in the rows %q of policy.md", name, reason, rows)
		}
	}
	for row := range said {
		if !found[row] {
			t.Errorf("nothing says %q of policy.md", row)
		}
	}
}

// whole is a document with each key that there is.
const whole = `{"version": 1, "rules": [
	{"name": "a", "deny": true, "match": {"uid": [1, "2-3"], "gid": [7], "unit": ["a*.service"], "cgroup": ["/a/**"], "exe": ["/a"],
		"interface": ["eth0"], "contained": false, "netns": "own"}},
	{"name": "b", "allow": {"verbs": ["attach", "set"], "modes": ["native"], "lifetimes": ["held"], "priority": "1-5", "exclusive": true, "others": false,
		"quota": {"members": 1, "map-memory": "64Mi", "instructions": 3, "object-size": 4}, "objects": ["` + digestOfA + `"]}}]}`

// values are what a mutation puts in the place of others. Ranges that go down, numbers
// with another notation and patterns that are none are left out, because a schema has
// no word for them.
var values = []any{
	nil, true, false, 0, 1, 2, -1, 1.5, 4294967295, 4294967296, "", "a", "b", "c", "1", "x\u0001y", "true", "*", "**", "/", "/a", "/a/", "//a", "/a/**", "/**", "/**/a", "/***",
	"/a**", "a/b", "a**", "5-10", "05-10", "5-", "-5", "64Mi", "064Mi", "64M", "999999999Gi", "1000000000Gi", "Mi", "attach", "fly", "native", "auto", "held", "own", "any",
	digestOfA, "sha256:1", []any{}, []any{"a"}, []any{"/a"}, []any{1}, []any{nil}, []any{"attach"}, map[string]any{}, map[string]any{"members": 1},
	map[string]any{"verbs": []any{"set"}}, map[string]any{"name": "d", "deny": true}, map[string]any{"name": "e"},
}

// mutate changes one thing somewhere in the value.
func mutate(t *rapid.T, v any) any {
	if rapid.IntRange(0, 4).Draw(t, "here") > 0 {
		switch v := v.(type) {
		case map[string]any:
			keys := slices.Sorted(maps.Keys(v))
			key := rapid.SampledFrom(append(keys, "more", "allow", "deny", "match", "quota")).Draw(t, "key")
			old, there := v[key]
			if there && rapid.IntRange(0, 3).Draw(t, "away") == 0 {
				delete(v, key)
			} else {
				v[key] = mutate(t, old)
			}
			return v
		case []any:
			n := rapid.IntRange(0, len(v)).Draw(t, "element")
			if n == len(v) {
				return append(v, mutate(t, nil))
			}
			v[n] = mutate(t, v[n])
			return v
		}
	}
	return rapid.SampledFrom(values).Draw(t, "value")
}

func TestTheSchemaIsTheDecodersHoweverADocumentIsChanged(t *testing.T) {
	root := published(t)
	taken, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		var v any
		if err := json.Unmarshal([]byte(whole), &v); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 3).Draw(t, "mutations") {
			v = mutate(t, v)
			// What is put in is shared, and numbers are of one kind.
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			v = nil
			if err := json.Unmarshal(b, &v); err != nil {
				t.Fatal(err)
			}
		}
		text, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		_, decodeErr := Decode("p", bytes.NewReader(text))
		if decodeErr != nil && strings.Contains(decodeErr.Error(), "already") {
			return // that names differ is beyond a schema
		}
		schemaErr := root.check(root, v)
		if (decodeErr == nil) != (schemaErr == nil) {
			t.Errorf("%s: the decoder says %v, and the schema %v", text, decodeErr, schemaErr)
		}
		if decodeErr == nil {
			taken++
		} else {
			refused++
		}
	})
	if taken == 0 || refused == 0 {
		t.Errorf("%d were taken, and %d refused", taken, refused)
	}
}

// What the schema takes the decoder takes, and the other way round. What a schema can't
// say, that names differ and ranges go up, is left out here.
func TestTheSchemaIsTheDecoders(t *testing.T) {
	root := published(t)
	rule := func(s string) string { return "version: 1\nrules:\n- name: a\n" + s }
	allow := func(s string) string { return rule("  allow: {verbs: [attach], " + s + "}") }
	match := func(s string) string { return rule("  deny: true\n  match: {" + s + "}") }
	taken := 0
	for _, text := range []string{
		whole, rules, "version: 1\nrules: []", "version: 2\nrules: []", "version: 1", "rules: []", "version: 1\nrules: []\nmore: 1", "version: \"1\"\nrules: []",
		rule(""), rule("  deny: true"), rule("  deny: false"), rule("  deny: false\n  allow: {verbs: [attach]}"), rule("  deny: true\n  allow: {verbs: [attach]}"), rule("  deny: yes please"),
		rule("  allow: {}"), rule("  allow: {verbs: []}"), rule("  allow: {verbs: [fly]}"), rule("  allow: {verbs: attach}"), rule("  allow: [attach]"),
		allow("modes: [native]"), allow("modes: [auto]"), allow("modes: []"), allow("lifetimes: [held, permanent]"), allow("lifetimes: [forever]"),
		allow("priority: 5"), allow("priority: 5-10"), allow("priority: -5"), allow("priority: [5]"), allow("priority: 4294967296"), allow("exclusive: true"), allow("exclusive: 1"),
		allow("others: false"), allow("others: maybe"), allow("quota: {}"), allow("quota: {members: 3, map-memory: 1, instructions: 2, object-size: 3}"),
		allow("quota: {members: many}"), allow("quota: {shoes: 2}"), allow("quota: {map-memory: 64Mi}"), allow("quota: {map-memory: 64M}"), allow("quota: {members: 1Mi}"), allow("quota: 3"), allow(`objects: ["` + digestOfA + `"]`), allow(`objects: ["sha256:1"]`), allow("objects: []"),
		allow("colour: red"), match("uid: [1, 2-3]"), match("uid: 1"), match("uid: []"), match("uid: [root]"), match("gid: [7]"), match("unit: [a.service]"), match("unit: a.service"),
		match("unit: ['']"), match("cgroup: [/a]"), match("cgroup: [a]"), match("exe: [/a]"), match("exe: [/a/]"), match("exe: ['/a/**']"), match("exe: ['/**/a']"), match("interface: [a/b]"), match("interface: [eth0]"), match("contained: true"), match("contained: 2"), match("netns: host"), match("netns: mars"),
		match("shoe: 1"), "version: 1\nrules:\n- deny: true", "version: 1\nrules:\n- name: ''\n  deny: true", "version: 1\nrules: {a: 1}",
	} {
		var v any
		if err := yaml.Unmarshal([]byte(text), &v); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		_, decodeErr := Decode("p", strings.NewReader(text))
		schemaErr := root.check(root, v)
		if (decodeErr == nil) != (schemaErr == nil) {
			t.Errorf("%q: the decoder says %v, and the schema %v", text, decodeErr, schemaErr)
		}
		if decodeErr == nil {
			taken++
		}
	}
	if taken < 15 {
		t.Errorf("only %d documents are taken", taken)
	}
}
