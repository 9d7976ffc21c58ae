package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// expectedSkip is one line of skips.txt.
type expectedSkip struct {
	line    int
	kernels []string
	pkg     string
	test    string
	reason  string
}

// skipList is the list of tests that are expected to skip.
type skipList []expectedSkip

// parseSkips reads the list. A line has the kernels, separated by commas,
// the package's directory, the test's full name, and the reason.
func parseSkips(r io.Reader, environments []string) (skipList, error) {
	var list skipList
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 4 {
			return nil, fmt.Errorf("line %d: want \"KERNELS PACKAGE TEST REASON\"", n)
		}
		s := expectedSkip{
			line: n, kernels: strings.Split(fields[0], ","), pkg: fields[1], test: fields[2],
			reason: strings.Join(fields[3:], " "),
		}
		for _, k := range s.kernels {
			if !slices.Contains(environments, k) {
				return nil, fmt.Errorf("line %d: no kernel %q: there are %s", n, k, strings.Join(environments, ", "))
			}
			if earlier := list.find(k, s.pkg, s.test); earlier != nil {
				return nil, fmt.Errorf("line %d: %s of %s on %s is in line %d already", n, s.test, s.pkg, k, earlier.line)
			}
		}
		list = append(list, s)
	}
	return list, lines.Err()
}

func (l skipList) find(kernel, pkg, test string) *expectedSkip {
	for i, s := range l {
		if s.pkg == pkg && s.test == test && slices.Contains(s.kernels, kernel) {
			return &l[i]
		}
	}
	return nil
}

// check compares what was skipped in one package on one kernel with the
// list. complete says that all the package's tests ran, so that one in the
// list that was not seen does not exist. It returns a complaint for each test
// that is not as the list says.
//
// The machine's own kernel can be any kernel. There the list says what may
// skip, and a listed test that runs is fine.
func (l skipList) check(kernel, pkg string, results map[string]string, complete bool) map[string]string {
	complaints := map[string]string{}
	for test, verdict := range results {
		if verdict == skipped && l.find(kernel, pkg, test) == nil {
			complaints[test] = "skipped, and no line of skips.txt expects that on " + kernel
		}
	}
	for _, s := range l {
		if s.pkg != pkg || !slices.Contains(s.kernels, kernel) || kernel == hostKernel {
			continue
		}
		verdict, seen := results[s.test]
		switch {
		case verdict == passed || verdict == failed:
			complaints[s.test] = fmt.Sprintf("no longer skips on %s: remove %s from line %d of skips.txt", kernel, kernel, s.line)
		case !seen && complete:
			complaints[s.test] = fmt.Sprintf("does not exist on %s: correct line %d of skips.txt", kernel, s.line)
		}
	}
	return complaints
}
