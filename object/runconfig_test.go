package object

import (
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain"
)

func TestRunConfigIsReadFromTheObject(t *testing.T) {
	for name, c := range map[string]struct {
		object, program string
		want            RunConfig
	}{
		"as written":            {"runconfig", "runconfig", RunConfig{10, 1<<chain.Drop | 1<<chain.Pass}},
		"default without any":   {"pass", "xdp_pass", RunConfig{50, 1 << chain.Pass}},
		"default if of another": {"runconfig", "other", RunConfig{50, 1 << chain.Pass}},
	} {
		got, err := read(t, c.object).RunConfig(c.program)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestSettingsChangeTheDefaultsOneByOne(t *testing.T) {
	for name, c := range map[string]struct {
		settings []setting
		want     RunConfig
		words    string
	}{
		"none":            {nil, RunConfig{50, 1 << chain.Pass}, ""},
		"priority only":   {[]setting{{"priority", 0}}, RunConfig{0, 1 << chain.Pass}, ""},
		"one more action": {[]setting{{"XDP_TX", 1}}, RunConfig{50, 1<<chain.Pass | 1<<chain.Tx}, ""},
		"pass taken out":  {[]setting{{"XDP_PASS", 0}}, RunConfig{50, 0}, ""},
		"all actions": {[]setting{{"XDP_ABORTED", 1}, {"XDP_DROP", 1}, {"XDP_PASS", 1}, {"XDP_TX", 1}, {"XDP_REDIRECT", 1}},
			RunConfig{50, 31}, ""},
		"unknown member": {[]setting{{"XDP_PAS", 1}}, RunConfig{}, `"XDP_PAS" is not known`},
		"unnamed member": {[]setting{{"", 1}}, RunConfig{}, `"" is not known`},
	} {
		got, err := applySettings(c.settings)
		if c.words != "" {
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: error %v does not say %q", name, err, c.words)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

func FuzzRunConfig(f *testing.F) {
	f.Add("priority", uint32(10), "XDP_DROP", uint32(1))
	f.Add("XDP_PASS", uint32(0), "XDP_NONE", uint32(1))
	f.Fuzz(func(t *testing.T, name1 string, value1 uint32, name2 string, value2 uint32) {
		rc, err := applySettings([]setting{{name1, value1}, {name2, value2}})
		if err != nil {
			return
		}
		if rc.ProceedOn >= 1<<len(chain.AllActions()) {
			t.Errorf("proceeds on actions that do not exist: %#x", uint32(rc.ProceedOn))
		}
		if name1 != "priority" && name2 != "priority" && rc.Priority != 50 {
			t.Errorf("nobody set the priority to %d", rc.Priority)
		}
	})
}
