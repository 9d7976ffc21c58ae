package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
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
		kinds := map[string]bool{"object": isObject, "array": isArray, "string": isText, "integer": isNumber, "boolean": reflect.TypeOf(v) == reflect.TypeFor[bool]()}
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

// What the schema takes the decoder takes, and the other way round. What a schema can't
// say, that names differ and ranges go up, is left out here.
func TestTheSchemaIsTheDecoders(t *testing.T) {
	b, err := os.ReadFile("../docs/policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var root schema
	if err := json.Unmarshal(b, &root); err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../packaging/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rule := func(s string) string { return "version: 1\nrules:\n- name: a\n" + s }
	allow := func(s string) string { return rule("  allow: {verbs: [attach], " + s + "}") }
	match := func(s string) string { return rule("  deny: true\n  match: {" + s + "}") }
	taken := 0
	for _, text := range []string{
		string(example), rules, "version: 1\nrules: []", "version: 2\nrules: []", "version: 1", "rules: []", "version: 1\nrules: []\nmore: 1", "version: \"1\"\nrules: []",
		rule(""), rule("  deny: true"), rule("  deny: false"), rule("  deny: true\n  allow: {verbs: [attach]}"), rule("  deny: yes please"),
		rule("  allow: {}"), rule("  allow: {verbs: []}"), rule("  allow: {verbs: [fly]}"), rule("  allow: {verbs: attach}"), rule("  allow: [attach]"),
		allow("modes: [native]"), allow("modes: [auto]"), allow("modes: []"), allow("lifetimes: [held, permanent]"), allow("lifetimes: [forever]"),
		allow("priority: 5"), allow("priority: 5-10"), allow("priority: -5"), allow("priority: [5]"), allow("priority: 4294967296"), allow("exclusive: true"), allow("exclusive: 1"),
		allow("others: false"), allow("others: maybe"), allow("quota: {}"), allow("quota: {members: 3, map-memory: 1, instructions: 2, object-size: 3}"),
		allow("quota: {members: many}"), allow("quota: {shoes: 2}"), allow("quota: 3"), allow(`objects: ["` + digestOfA + `"]`), allow(`objects: ["sha256:1"]`), allow("objects: []"),
		allow("colour: red"), match("uid: [1, 2-3]"), match("uid: 1"), match("uid: []"), match("uid: [root]"), match("gid: [7]"), match("unit: [a.service]"), match("unit: a.service"),
		match("unit: ['']"), match("cgroup: [/a]"), match("exe: [/a]"), match("interface: [eth0]"), match("contained: true"), match("contained: 2"), match("netns: host"), match("netns: mars"),
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
