package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Verdicts on a test. One that began and has none of these did not end.
const (
	passed  = "pass"
	failed  = "fail"
	skipped = "skip"
)

// event is what test2json says, see "go doc test2json".
type event struct {
	Action string
	Test   string // empty for the package itself
	Output string
}

// outcome is what came of one package's tests in one environment.
type outcome struct {
	environment string
	pkg         string // import path
	order       []string
	verdicts    map[string]string
	outputs     map[string][]string // by test; "" is the package's own
	counts      counts
	failed      bool
	complaints  []string
	elapsed     time.Duration
	// echo gets each line of output with the environment in the test's
	// name; nil for nobody.
	echo io.Writer
}

func newOutcome(environment, pkg string, echo io.Writer) *outcome {
	return &outcome{
		environment: environment, pkg: pkg, echo: echo,
		verdicts: map[string]string{}, outputs: map[string][]string{}, counts: counts{},
	}
}

// add takes the next event.
func (o *outcome) add(e event) error {
	if e.Test != "" {
		if _, ok := o.verdicts[e.Test]; !ok {
			o.order = append(o.order, e.Test)
			o.verdicts[e.Test] = ""
		}
	}
	switch e.Action {
	case passed, failed, skipped:
		if e.Test != "" {
			o.verdicts[e.Test] = e.Action
		}
	case "output":
		o.counts.scan(e.Output)
		line := rename(e.Output, e.Test, o.environment)
		o.outputs[e.Test] = append(o.outputs[e.Test], line)
		if o.echo != nil && !closingLine(e) {
			if _, err := io.WriteString(o.echo, line); err != nil {
				return err
			}
		}
	}
	return nil
}

// closingLine recognizes the lines that sum a package up: there is one of
// our own in their place.
func closingLine(e event) bool {
	if e.Test != "" {
		return false
	}
	return e.Output == "PASS\n" || e.Output == "FAIL\n" ||
		strings.HasPrefix(e.Output, "ok  \t") || strings.HasPrefix(e.Output, "FAIL\t") ||
		strings.HasPrefix(e.Output, "exit status ")
}

// rename puts the environment before the test's name in the lines that the
// testing package prints.
func rename(line, test, environment string) string {
	rest := strings.TrimLeft(line, " ")
	for _, prefix := range []string{
		"=== RUN   ", "=== PAUSE ", "=== CONT  ", "=== NAME  ",
		"--- PASS: ", "--- FAIL: ", "--- SKIP: ",
	} {
		after, ok := strings.CutPrefix(rest, prefix)
		if ok && test != "" && strings.HasPrefix(after, test) {
			return line[:len(line)-len(rest)] + prefix + environment + "/" + after
		}
	}
	return line
}

// finish draws the line: every test that began must have ended, and what
// was skipped must be what the list expects. A test that is not as it must
// be has failed, whatever it said.
func (o *outcome) finish(skips skipList, name string, complete bool) {
	for _, test := range o.order {
		if o.verdicts[test] == "" {
			o.fail(test, "began and did not end")
		}
	}
	complaints := skips.check(o.environment, name, o.verdicts, complete && !o.failed)
	for _, test := range slices.Sorted(maps.Keys(complaints)) {
		o.fail(test, complaints[test])
	}
}

// fail overrules a test's verdict.
func (o *outcome) fail(test, why string) {
	if _, ok := o.verdicts[test]; !ok {
		o.order = append(o.order, test)
	}
	o.verdicts[test] = failed
	o.failed = true
	o.complaints = append(o.complaints, test+" "+why)
}

// totals counts leaves: a test with subtests is not one of its own, unless
// it failed without any of them failing. A package that failed while its
// tests did not counts as one failure.
func (o *outcome) totals() totals {
	var t totals
	for _, test := range o.order {
		parent, failedBelow := false, false
		for _, other := range o.order {
			if strings.HasPrefix(other, test+"/") {
				parent = true
				failedBelow = failedBelow || o.verdicts[other] == failed
			}
		}
		switch verdict := o.verdicts[test]; {
		case verdict == failed && !failedBelow:
			t.Failed++
		case parent:
		case verdict == passed:
			t.Passed++
		case verdict == skipped:
			t.Skipped++
		}
	}
	if o.failed && t.Failed == 0 {
		t.Failed = 1
	}
	return t
}

// print writes the package's result. What was echoed is not written again;
// otherwise the output of failed tests is.
func (o *outcome) print(w io.Writer) error {
	var b strings.Builder
	if o.echo == nil {
		for _, test := range o.order {
			if o.verdicts[test] == failed {
				o.printTest(&b, test)
			}
		}
		if o.failed {
			for _, line := range o.outputs[""] {
				if !closingLine(event{Output: line}) {
					b.WriteString(line)
				}
			}
		}
	}
	for _, c := range o.complaints {
		fmt.Fprintf(&b, "--- FAIL: %s/%s\n", o.environment, c)
	}
	state, note := "ok  ", ""
	if o.failed {
		state = "FAIL"
	} else if len(o.order) == 0 {
		note = " [no tests to run]"
	}
	fmt.Fprintf(&b, "%s\t%s %s\t%.3fs%s\n", state, o.environment, o.pkg, o.elapsed.Seconds(), note)
	_, err := io.WriteString(w, b.String())
	return err
}

func (o *outcome) printTest(b *strings.Builder, test string) {
	lines := slices.DeleteFunc(slices.Clone(o.outputs[test]), func(l string) bool {
		return strings.HasPrefix(strings.TrimLeft(l, " "), "=== ")
	})
	// As without -v: the verdict first, then what the test said.
	if i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "--- FAIL: "+o.environment) }); i > 0 {
		verdict := lines[i]
		copy(lines[1:i+1], lines[:i])
		lines[0] = verdict
	}
	for _, l := range lines {
		b.WriteString(l)
	}
}

// converter turns the output of a test binary into events, by test2json.
type converter struct {
	outcome *outcome
	cmd     *exec.Cmd
	in      io.WriteCloser
	done    chan error
}

func newConverter(test2json string, o *outcome) (*converter, error) {
	c := &converter{outcome: o, cmd: exec.Command(test2json, "-p", o.pkg), done: make(chan error, 1)}
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("test2json: %w", err)
	}
	c.in = in
	go func() { c.done <- o.read(out) }()
	return c, nil
}

func (c *converter) Write(p []byte) (int, error) { return c.in.Write(p) }

// Close returns when the outcome has everything.
func (c *converter) Close() error {
	if err := c.in.Close(); err != nil {
		return err
	}
	err := <-c.done
	if waitErr := c.cmd.Wait(); err == nil && waitErr != nil {
		err = fmt.Errorf("test2json: %w", waitErr)
	}
	return err
}

// read takes events to their end.
func (o *outcome) read(r io.Reader) error {
	d := json.NewDecoder(r)
	for {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("test2json: %w", err)
		}
		if err := o.add(e); err != nil {
			return err
		}
	}
}

// counts are what tests counted, by the words they used: rows, rounds.
type counts map[string]int

// Tests print, or log, lines such as "COUNT crash points 212".
var countLine = regexp.MustCompile(`(?:^|\s)COUNT ([a-z][a-z -]*[a-z]) ([0-9]+)\s*$`)

func (c counts) scan(line string) {
	if m := countLine.FindStringSubmatch(line); m != nil {
		if n, err := strconv.Atoi(m[2]); err == nil {
			c[m[1]] += n
		}
	}
}
