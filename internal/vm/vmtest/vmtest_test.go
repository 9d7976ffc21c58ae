package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var testEnvironments = []string{"host", "5.10", "6.1"}

func TestTheListOfSkips(t *testing.T) {
	list, err := parseSkips(strings.NewReader(`
# a comment
5.10,6.1  xdp  TestA/sub_test  the kernel has no such thing
host xdp TestB by another name
`), testEnvironments)
	if err != nil {
		t.Fatal(err)
	}
	want := skipList{
		{line: 3, kernels: []string{"5.10", "6.1"}, pkg: "xdp", test: "TestA/sub_test", reason: "the kernel has no such thing"},
		{line: 4, kernels: []string{"host"}, pkg: "xdp", test: "TestB", reason: "by another name"},
	}
	if diff := cmp.Diff(want, list, cmp.AllowUnexported(expectedSkip{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for text, want := range map[string]string{
		"6.1 xdp TestA":           "line 1: want",
		"6.2 xdp TestA why":       `line 1: no kernel "6.2"`,
		"6.1 x T a\n5.10,6.1 x T": "line 2: want",
		"6.1 x T a\n6.1 x T b":    "in line 1 already",
	} {
		if _, err := parseSkips(strings.NewReader(text), testEnvironments); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestSkipsAreHeldAgainstTheList(t *testing.T) {
	list, err := parseSkips(strings.NewReader("host,6.1 xdp TestA why\n"), testEnvironments)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		kernel   string
		verdicts map[string]string
		complete bool
		want     map[string]string
	}{
		{"an expected skip", "6.1", map[string]string{"TestA": skipped, "TestB": passed}, true, map[string]string{}},
		{"an unexpected skip", "6.1", map[string]string{"TestA": skipped, "TestB": skipped}, true,
			map[string]string{"TestB": "skipped, and no line of skips.txt expects that on 6.1"}},
		{"a skip expected elsewhere", "5.10", map[string]string{"TestA": skipped}, true,
			map[string]string{"TestA": "skipped, and no line of skips.txt expects that on 5.10"}},
		{"an expected skip that ran", "6.1", map[string]string{"TestA": passed}, true,
			map[string]string{"TestA": "no longer skips on 6.1: remove 6.1 from line 1 of skips.txt"}},
		{"an expected skip that ran and failed", "6.1", map[string]string{"TestA": failed}, false,
			map[string]string{"TestA": "no longer skips on 6.1: remove 6.1 from line 1 of skips.txt"}},
		{"a line for a test that is no more", "6.1", map[string]string{"TestB": passed}, true,
			map[string]string{"TestA": "does not exist on 6.1: correct line 1 of skips.txt"}},
		{"a test that was not asked for", "6.1", map[string]string{"TestB": passed}, false, map[string]string{}},
		{"the machine's own kernel can do more", "host", map[string]string{"TestA": passed}, true, map[string]string{}},
		{"the machine's own kernel, unexpected", "host", map[string]string{"TestB": skipped}, true,
			map[string]string{"TestB": "skipped, and no line of skips.txt expects that on host"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := list.check(test.kernel, "xdp", test.verdicts, test.complete)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// marked is what a test binary prints with -test.v=test2json.
func marked(lines ...string) string {
	var b strings.Builder
	for _, l := range lines {
		if trimmed := strings.TrimLeft(l, " "); strings.HasPrefix(trimmed, "=== ") || strings.HasPrefix(trimmed, "--- ") || l == "FAIL" {
			b.WriteString(l[:len(l)-len(trimmed)] + "\x16" + trimmed + "\n")
		} else {
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}

// convert runs output through the converter as package xdp's on 6.1.
func convert(t *testing.T, echo io.Writer, output string) *outcome {
	t.Helper()
	tool, err := exec.Command("go", "tool", "-n", "test2json").Output()
	if err != nil {
		t.Fatal(err)
	}
	o := newOutcome("6.1", module+"/xdp", echo)
	c, err := newConverter(strings.TrimSpace(string(tool)), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, output); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return o
}

var sample = marked(
	"=== RUN   TestGood",
	"    a_test.go:1: COUNT conformance rows 96",
	"--- PASS: TestGood (0.01s)",
	"=== RUN   TestTable",
	"=== RUN   TestTable/one",
	"=== RUN   TestTable/two",
	"    a_test.go:2: broken",
	"COUNT crash points 3",
	"COUNT crash points 4",
	"--- FAIL: TestTable (0.02s)",
	"    --- PASS: TestTable/one (0.00s)",
	"    --- FAIL: TestTable/two (0.02s)",
	"=== RUN   TestAbsent",
	"    a_test.go:3: the kernel has none",
	"--- SKIP: TestAbsent (0.00s)",
	"FAIL",
)

func TestOutputGetsTheKernelIntoTheNamesOfTests(t *testing.T) {
	var echo bytes.Buffer
	o := convert(t, &echo, sample)
	o.failed = true
	want := strings.NewReplacer("Test", "6.1/Test", "\x16", "", "FAIL\n", "").Replace(sample)
	if diff := cmp.Diff(want, echo.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWithoutVOnlyFailuresAreShown(t *testing.T) {
	o := convert(t, nil, sample)
	o.failed = true
	o.finish(nil, "xdp", true)
	var out bytes.Buffer
	if err := o.print(&out); err != nil {
		t.Fatal(err)
	}
	want := `--- FAIL: 6.1/TestTable (0.02s)
    --- FAIL: 6.1/TestTable/two (0.02s)
    a_test.go:2: broken
COUNT crash points 3
COUNT crash points 4
    a_test.go:3: the kernel has none
--- SKIP: 6.1/TestAbsent (0.00s)
--- FAIL: 6.1/TestAbsent skipped, and no line of skips.txt expects that on 6.1
FAIL	6.1 github.com/holdfast-bpf/holdfast/xdp	0.000s
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestLeavesAreCountedAndWhatTheyCounted(t *testing.T) {
	o := convert(t, nil, sample)
	o.finish(skipList{{kernels: []string{"6.1"}, pkg: "xdp", test: "TestAbsent"}}, "xdp", true)
	if diff := cmp.Diff(totals{Passed: 2, Failed: 1, Skipped: 1}, o.totals()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(counts{"conformance rows": 96, "crash points": 7}, o.counts); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestATestThatDoesNotEndHasFailed(t *testing.T) {
	o := convert(t, nil, marked("=== RUN   TestA", "--- PASS: TestA (0.00s)", "=== RUN   TestB", "panic: oh no", "", "goroutine 1 [running]:"))
	o.finish(nil, "xdp", true)
	if !o.failed || o.totals() != (totals{Passed: 1, Failed: 1}) {
		t.Errorf("failed %v, %s", o.failed, o.totals())
	}
	var out bytes.Buffer
	if err := o.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"panic: oh no", "FAIL\t6.1 "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}

func TestAPackageThatFailsWithoutATestThatDidIsOneFailure(t *testing.T) {
	o := convert(t, nil, marked("=== RUN   TestA", "--- PASS: TestA (0.00s)", "FAIL", "a program was left behind"))
	o.failed = true
	o.finish(nil, "xdp", true)
	if got := o.totals(); got != (totals{Passed: 1, Failed: 1}) {
		t.Error(got)
	}
	var out bytes.Buffer
	if err := o.print(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "left behind") {
		t.Errorf("what the package said is missing in\n%s", out.String())
	}
}

func TestTheSummaryEndsWithTheTotalsAlone(t *testing.T) {
	var out bytes.Buffer
	err := summary(&out, []*environmentReport{
		{Environment: "pure", totals: totals{Passed: 10}, Seconds: 1.2},
		{Environment: "6.1", Release: "6.1.0-50-amd64", totals: totals{Passed: 3, Failed: 1, Skipped: 2}, Seconds: 61,
			Counts: counts{"race rounds": 200, "crash points": 212}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `
KERNEL  RELEASE         PASSED  FAILED  SKIPPED  TIME  COUNTED
pure    -               10      0       0        1s    
6.1     6.1.0-50-amd64  3       1       2        1m1s  crash points: 212, race rounds: 200

13 passed, 1 failed, 2 skipped
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestKernelTestsAreFoundByTheirFixtures(t *testing.T) {
	for _, test := range []struct {
		p    testPackage
		want bool
	}{
		{testPackage{ImportPath: module + "/xdp", XTestImports: []string{"testing", marker}}, true},
		{testPackage{ImportPath: module + "/xdp", TestImports: []string{marker + "/crash"}}, true},
		{testPackage{ImportPath: marker}, true},
		{testPackage{ImportPath: module + "/xdp", TestImports: []string{"testing", marker + "x"}}, false},
	} {
		if got := test.p.onKernel(); got != test.want {
			t.Errorf("%+v: %v", test.p, got)
		}
	}
}

func TestSomeTestsAreForOneKernel(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "testdata"), 0o755); err != nil {
		t.Fatal(err)
	}
	lines := "ip # a program\nroot bookworm\nonly 6.12 # and no other\n"
	if err := os.WriteFile(filepath.Join(dir, "testdata", guestFiles), []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	one, all := &testPackage{Dir: dir}, &testPackage{Dir: t.TempDir()}
	for _, p := range []*testPackage{one, all} {
		if err := p.readOnly(); err != nil {
			t.Fatal(err)
		}
	}
	r := &runner{kernel: []*testPackage{one, all}}
	for environment, want := range map[string][]*testPackage{"5.10": {all}, "6.12": {one, all}, hostKernel: {one, all}} {
		if got := r.packages(environment); !slices.Equal(got, want) {
			t.Errorf("on %s %d packages run, want %d", environment, len(got), len(want))
		}
	}
}

func TestTheLongestStartsFirst(t *testing.T) {
	order := []string{"host", "5.10", "6.1", "6.12", "newest"}
	slices.SortFunc(order, func(a, b string) int { return startsAt(a) - startsAt(b) })
	if diff := cmp.Diff([]string{"6.12", "newest", "6.1", "5.10", "host"}, order); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{"-kernel", "host,all,6.1", "-sysctl", "net.core.bpf_jit_enable=0", "./xdp"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"host", "5.10", "6.1", "6.12", "newest"}, o.kernels); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if o.sysctls["net.core.bpf_jit_enable"] != "0" || !cmp.Equal(o.patterns, []string{"./xdp"}) {
		t.Errorf("%+v", o)
	}
	for _, bad := range [][]string{{"-kernel", "6.2"}, {"-sysctl", "x"}} {
		if _, err := parseOptions(bad, io.Discard); err == nil {
			t.Errorf("%v is no error", bad)
		}
	}
}
