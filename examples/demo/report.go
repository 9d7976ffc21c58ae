package main

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// report prints the demo as it goes, and counts its proofs.
type report struct {
	out          *os.File
	color        bool
	start        time.Time
	steps        int
	held, failed int
}

func newReport(out *os.File) *report {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &report{out: out, color: err == nil && os.Getenv("NO_COLOR") == "", start: time.Now()}
}

const (
	bold  = "1"
	dim   = "2"
	green = "32"
	red   = "1;31"
)

func (r *report) paint(code, s string) string {
	if !r.color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (r *report) opening() {
	fmt.Fprintf(r.out, `
%s

    client %s ───── veth pair ───── %s %s server

Everything below happens in namespaces of this demo's own, on Linux %s.
Lines with $ are commands, what they print is below them; ok is a proof that held.
`, r.paint(bold, "Holdfast: one interface, one owner."), farAddr, ifName, nearAddr, release())
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "?"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func (r *report) step(title string) {
	r.steps++
	fmt.Fprintf(r.out, "\n%s\n", r.paint(bold, fmt.Sprintf("%2d  %s", r.steps, title)))
}

// command shows what is run, as one would type it.
func (r *report) command(line string) { fmt.Fprintf(r.out, "    $ %s\n", line) }

// says shows what a command printed.
func (r *report) says(text string) {
	if text == "" {
		return
	}
	for _, line := range wrap(strings.TrimSpace(text), 92) {
		fmt.Fprintf(r.out, "      %s\n", r.paint(dim, line))
	}
}

// proof shows whether what was claimed is so.
func (r *report) proof(ok bool, format string, args ...any) {
	mark := r.paint(green, "ok")
	if ok {
		r.held++
	} else {
		r.failed++
		mark = r.paint(red, "FAILED")
	}
	for i, line := range wrap(fmt.Sprintf(format, args...), 92) {
		if i > 0 {
			mark = "  "
		}
		fmt.Fprintf(r.out, "    %s  %s\n", mark, line)
	}
}

// summary tells whether every proof held.
func (r *report) summary() bool {
	took := time.Since(r.start).Seconds()
	if r.failed > 0 {
		fmt.Fprintf(r.out, "\n%s of %d proofs in %d steps, in %.1f s.\n",
			r.paint(red, fmt.Sprintf("FAILED: %d", r.failed)), r.held+r.failed, r.steps, took)
		return false
	}
	fmt.Fprintf(r.out, "\n%s in %d steps held, in %.1f s.\n", r.paint(green, fmt.Sprintf("All %d proofs", r.held)), r.steps, took)
	return true
}

// wrap breaks text at blanks into lines of that many characters. Blanks within
// a line stay.
func wrap(text string, width int) []string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		for utf8.RuneCountInString(line) > width {
			runes := []rune(line)
			at := strings.LastIndexByte(string(runes[:width+1]), ' ')
			if at <= 0 {
				at = len(string(runes[:width]))
			}
			lines = append(lines, strings.TrimRight(line[:at], " "))
			line = strings.TrimLeft(line[at:], " ")
		}
		lines = append(lines, line)
	}
	return lines
}
