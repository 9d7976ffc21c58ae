package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPolicyIsCheckedAndExplained(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bad := write("bad.yaml", "version: 1\nrules:\n- name: a\n  match: {user: [1]}\n  deny: true\n")
	write("policy.yaml", `version: 1
rules:
- name: apps
  match: {uid: [1000], unit: ["app-*.service"], interface: ["eth*"]}
  allow: {verbs: [attach, detach], lifetimes: [held], priority: 10-20}
- name: rest
  deny: true
`)
	duties := write("duties.yaml", `version: 1
rules:
- name: here
  match: {uid: [7], interface: ["eth*"], netns: host}
  allow: {verbs: [adopt, set, claim, reload], priority: 80-99, others: true}
- name: wheel
  match: {gid: [0]}
  allow: {verbs: [claim, reload]}
- name: operators
  match: {gid: [8]}
  allow: {verbs: [claim, reload], others: true}
`)
	good := filepath.Join(dir, "policy.yaml")
	if err := os.MkdirAll(filepath.Join(dir, "more", "policy.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	own := write("more/policy.d/10.yaml", `version: 1
rules:
- name: own
  match: {gid: [7], netns: own, contained: true, cgroup: ["/a/**"], exe: ["/bin/*"]}
  allow: {verbs: [attach], modes: [native]}
`)
	if err := os.MkdirAll(filepath.Join(dir, "broken", "policy.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("broken/policy.yaml", "version: 1\nrules: []\n")
	write("broken/policy.d/20.yaml", "version: 1\nrules: [1]\n")
	const insider = "uid=1,gid=2,group=6,group=7,cgroup=/a/b,exe=/bin/a,contained"
	for _, c := range []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"check --config " + dir, 0, "apps  allows attach, detach", ""},
		{"check " + good, 0, "rest  denies", ""},
		{"check -o json " + good, 0, `"kind": "policy"`, ""},
		{"check " + bad, 2, "", "bad.yaml:4:11: "},
		{"check " + filepath.Join(dir, "none.yaml"), 7, "", "no such file"},
		{"check --config " + filepath.Join(dir, "none"), 0, "default  allows attach", ""},
		{"explain --as uid=1000,unit=app-a.service eth0 attach --lifetime held --priority 15 -f " + good, 0, `allowed: rule "apps"`, ""},
		{"explain --as uid=1000,unit=app-a.service eth0 attach --priority 15 -f " + good, 5, `it allows held`, ""},
		{"explain --as uid=1000 eth0 attach -f " + good, 5, `denied: rule "rest"`, ""},
		{"explain -o json --as uid=1000 eth0 attach -f " + good, 5, `"allowed": false`, ""},
		{"check " + good + " " + own, 0, "3  own   allows attach", ""},
		{"check --config " + filepath.Join(dir, "more"), 0, "1  own   allows attach", ""},
		{"check --config " + filepath.Join(dir, "broken"), 2, "", "20.yaml:2:9: "},
		{"explain --as uid=1 eth0 attach --config " + filepath.Join(dir, "broken"), 2, "", "20.yaml:2:9: "},
		{"explain --as " + insider + " --netns own --mode native eth0 attach -f " + own, 0, `allowed: rule "own"`, ""},
		{"explain --as " + insider + " --netns own eth0 attach -f " + own, 5, `the mode is auto, and it allows native`, ""},
		{"explain --as " + insider + " --netns other --mode native eth0 attach -f " + own, 5, `denied: no rule of the policy matches`, ""},
		{"explain --as uid=0 eth0 attach --exclusive --others --config " + filepath.Join(dir, "none"), 0, `allowed: rule "default"`, ""},
		{"explain --as uid=0,contained eth0 attach --config " + filepath.Join(dir, "none"), 5, `no rule`, ""},
		// Asked as the daemon asks: an attach has a priority, a claim is of somebody
		// else's lease that could be anywhere, and a reload is about no interface.
		{"explain --as uid=1000,unit=app-a.service eth0 attach --lifetime held -f " + good, 5, `the priority is 50, and it allows 10 to 20`, ""},
		{"explain --as uid=7 eth0 adopt -f " + duties, 5, `the priority is 50, and it allows 80 to 99`, ""},
		{"explain --as uid=7 eth0 adopt --priority 80 -f " + duties, 0, `allowed: rule "here"`, ""},
		{"explain --as uid=7 eth0 set -f " + duties, 0, `allowed: rule "here"`, ""},
		{"explain --as uid=7 eth0 claim -f " + duties, 5, `no rule`, ""},
		{"explain --as uid=7 eth0 reload -f " + duties, 5, `no rule`, ""},
		{"explain --as uid=9,gid=0 eth0 claim -f " + duties, 5, `rule "wheel" (` + duties + `:6) does not allow it: it belongs to somebody else`, ""},
		{"explain --as uid=9,group=8 eth0 claim -f " + duties, 0, `allowed: rule "operators"`, ""},
		{"explain --as uid=9,group=8 eth0 reload --others -f " + duties, 0, `allowed: rule "operators"`, ""},
		{"explain --as uid=0 eth0 reload -f " + duties, 5, `no rule`, ""}, // in no group that is not named
		{"explain eth0 attach -f " + good, 2, "", "--as is missing"},
		{"explain --as uid=1,uid=0 eth0 attach -f " + good, 2, "", "uid is there twice"},
		{"explain --as uid=1,exe=a eth0 attach -f " + good, 2, "", "exe is a path"},
		{"explain --as uid=1,cgroup=a eth0 attach -f " + good, 2, "", "cgroup is a path"},
		{"explain --as uid=1 eth0 attach --config " + dir + " -f " + good, 2, "", "--file and --config exclude each other"},
		{"check --config " + dir + " " + good, 2, "", "FILE and --config exclude each other"},
		{"explain --as gid=1 eth0 attach -f " + good, 2, "", "uid is missing"},
		{"explain --as uid=x eth0 attach -f " + good, 2, "", "uid is a number"},
		{"explain --as uid=1,shoe=4 eth0 attach -f " + good, 2, "", `there is no "shoe"`},
		{"explain --as uid=1 eth0 fly -f " + good, 2, "", `there is no verb "fly"`},
		{"explain --as uid=1 eth0 -f " + good, 2, "", "VERB is missing"},
		{"explain --as uid=1 eth/0 attach -f " + good, 2, "", "contains"},
		{"explain --as uid=1 eth0 attach --mode fast -f " + good, 2, "", "--mode"},
		{"explain --as uid=1 eth0 attach --netns mars -f " + good, 2, "", "--netns"},
		{"frobnicate", 2, "", `there is no command "frobnicate"`},
	} {
		var stdout, stderr strings.Builder
		code := Main(Env{
			Name: "holdfast", Args: append([]string{"policy"}, strings.Fields(c.args)...), Stdout: &stdout, Stderr: &stderr,
			Getenv: func(string) string { return "" },
		})
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("policy %s: exit code %d, want %d\n%s%s", c.args, code, c.code, stdout.String(), stderr.String())
		}
	}
}
