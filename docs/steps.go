package docs

import (
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
)

// Run are the pages whose commands docs/docstest runs. It runs the README, too, which
// is not among [Files].
func Run() []string {
	pages, err := fs.Glob(Files, "howto/*.md")
	if err != nil {
		panic(err) // the pattern is wrong
	}
	return append(pages, "tutorial.md", "daemon.md", "policy.md")
}

// Step is a block of commands on a page.
type Step struct {
	// Line is where on the page it begins.
	Line int
	// Code is for sh.
	Code string
	// Hidden tells that readers do not see it: it makes or removes what the page
	// takes for granted, such as an interface.
	Hidden bool
	// NotRun says why the tests can't run it, if they can't.
	NotRun string
	// Where is a command that succeeds where the step can be run: it needs what not
	// every kernel has.
	Where string
	// Until is a command that succeeds when the step has done its work, if it runs
	// until it is stopped; $OUT is a file with what it has printed.
	Until string
	// Exit is the code that its last command ends with.
	Exit int
	// Output is what it prints, if the page says so; see [Matches].
	Output *string
}

const (
	fenceOf      = "```"
	hiddenBegins = "<!-- sh"
	commentEnds  = "-->"
)

var (
	notRun = regexp.MustCompile(`^<!-- not run: (.+) -->$`)
	where  = regexp.MustCompile(`^<!-- where: (.+) -->$`)
	until  = regexp.MustCompile(`^<!-- until: (.+) -->$`)
	fails  = regexp.MustCompile(`^<!-- fails: ([1-9][0-9]*) -->$`)
)

// Steps reads the steps of a page, in order.
//
// A block of sh is a step; one of output that follows it is what it prints. A
// comment "<!-- not run: reason -->" before it says that it can't be run, and
// "<!-- fails: 4 -->" that its last command ends with that code; "<!-- until:
// command -->" says that it runs until it is stopped, which is when that command
// succeeds; "<!-- where: command -->" that it is only run where that succeeds. A comment
// that begins with a line "<!-- sh" is a step that readers do not see.
func Steps(page string) ([]Step, error) {
	var steps []Step
	lines := strings.Split(page, "\n")
	var next Step    // what comments say of the block that follows
	pending := false // a comment said something
	direct := false  // nothing but blank lines since the last step
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		block := func(end string) (string, error) {
			from := i + 1
			for i++; i < len(lines); i++ {
				if lines[i] == end {
					return strings.Join(lines[from:i], "\n") + "\n", nil
				}
			}
			return "", fmt.Errorf("line %d: %s has no end", from, line)
		}
		language, fenced := strings.CutPrefix(line, fenceOf)
		if pending && line != "" && (!fenced || language != "sh") && !about(line) {
			return nil, fmt.Errorf("line %d: a comment before it is about a block of sh, and this is none", i+1)
		}
		switch {
		case line == "":
		case line == hiddenBegins:
			step := Step{Line: i + 1, Hidden: true}
			var err error
			if step.Code, err = block(commentEnds); err != nil {
				return nil, err
			}
			steps, direct = append(steps, step), false
		case notRun.MatchString(line):
			next.NotRun, pending, direct = notRun.FindStringSubmatch(line)[1], true, false
		case where.MatchString(line):
			next.Where, pending, direct = where.FindStringSubmatch(line)[1], true, false
		case until.MatchString(line):
			next.Until, pending, direct = until.FindStringSubmatch(line)[1], true, false
		case fails.MatchString(line):
			next.Exit, _ = strconv.Atoi(fails.FindStringSubmatch(line)[1])
			pending, direct = true, false
		case fenced && language == "sh":
			step := next
			step.Line = i + 1
			var err error
			if step.Code, err = block(fenceOf); err != nil {
				return nil, err
			}
			steps, next, pending, direct = append(steps, step), Step{}, false, true
		case fenced && language == "output":
			if !direct {
				return nil, fmt.Errorf("line %d: this output follows no block of sh", i+1)
			}
			output, err := block(fenceOf)
			if err != nil {
				return nil, err
			}
			steps[len(steps)-1].Output, direct = &output, false
		case fenced:
			if _, err := block(fenceOf); err != nil {
				return nil, err
			}
			direct = false
		default:
			direct = false
		}
	}
	if pending {
		return nil, fmt.Errorf("the last comment is about a block of sh, and none follows")
	}
	return steps, nil
}

// about tells whether the line is a comment about the block that follows.
func about(line string) bool {
	for _, comment := range []*regexp.Regexp{notRun, where, until, fails} {
		if comment.MatchString(line) {
			return true
		}
	}
	return false
}

var number = regexp.MustCompile(`[0-9]{2,}`)

// Matches tells whether what was printed is what a page shows. Numbers of two or
// more digits, such as ids and times, stand for any number, blanks for any blanks,
// and "…" for whatever there is in its line; alone in a line, for any lines.
func Matches(shown, printed string) bool {
	var pattern strings.Builder
	pattern.WriteString(`^`)
	for _, line := range fieldsOfLines(shown) {
		if line == "…" {
			pattern.WriteString(`(?:[^\n]*\n)*?`)
			continue
		}
		for i, part := range strings.Split(line, "…") {
			if i > 0 {
				pattern.WriteString(`[^\n]*`)
			}
			pattern.WriteString(number.ReplaceAllString(regexp.QuoteMeta(part), `[0-9]+`))
		}
		pattern.WriteString(`\n`)
	}
	pattern.WriteString(`$`)
	text := strings.Join(append(fieldsOfLines(printed), ""), "\n")
	return regexp.MustCompile(pattern.String()).MatchString(text)
}

// fieldsOfLines are the lines of a text, with one blank for many, and none at the
// ends.
func fieldsOfLines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}
