package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// envelope is around every JSON result. Fields are added to a version; they
// never change their meaning or go.
type envelope struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`
	Result  any    `json:"result"`
}

const envelopeVersion = 1

func (a *app) json() bool { return a.output == "json" }

func (a *app) printJSON(kind string, result any) error {
	e := json.NewEncoder(a.env.Stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(envelope{envelopeVersion, kind, result})
}

// printAt says what was done at the hook with the program, and whether the hook
// was empty before.
func (a *app) printAt(state *arbiter.Arbiter, h *xdp.Hook, p *object.Loaded, done string, wasEmpty bool) error {
	s, err := state.At(h)
	if err != nil {
		return err
	}
	e := &xdp.Error{Op: "look at", Hook: h.String(), Err: xdp.ErrConflict, Hint: "agree with whoever did that, or own the hook"}
	if s == nil {
		e.Detail = "the program was " + done + ", and somebody has detached it since"
		return e
	}
	id, err := p.ProgramID()
	if err != nil {
		return err
	}
	// A request that was made again has loaded the program once more, and found
	// the one of the first time.
	if id != s.Program.ID && s.Digest != p.Digest {
		e.Detail = "the program was " + done + ", and somebody has replaced it since"
		e.Rival = &s.Attachment
		return e
	}
	if wasEmpty {
		a.tellGeneric(h, s.Mode)
	}
	return a.printAttachment(s, done)
}

// tellGeneric says that the mode is not the one that would have been better. It
// is for a hook that was empty: what comes in place of another program has the
// mode of that one.
func (a *app) tellGeneric(h *xdp.Hook, got xdp.Mode) {
	if h.Mode() == xdp.Auto && got == xdp.Generic {
		a.log.Info("the driver has no native mode, so the program runs in generic mode, which is slower", "interface", h.Name())
	}
}

func (a *app) printAttachment(s *arbiter.Status, done string) error {
	if a.json() {
		return a.printJSON("attachment", s)
	}
	_, err := fmt.Fprintf(a.env.Stdout, "%s %s: program %d %q, mode %s, %s, %s\n",
		done, s.Interface, s.Program.ID, s.Program.Name, s.Mode, heldText(s), s.Lifetime)
	return err
}

func heldText(s *arbiter.Status) string {
	switch {
	case s.Held == xdp.HeldByLink && s.LinkID != 0:
		return fmt.Sprintf("owned by link %d", s.LinkID)
	case s.Held == xdp.HeldByLink:
		return "owned by a link"
	case s.Held == xdp.HeldByNetlink:
		return "shared (netlink)"
	}
	return "held in a way that can't be told without CAP_NET_ADMIN"
}

func (a *app) printDetached(h *xdp.Hook) error {
	return a.printEmptied("detached", h.Namespace().Spec(), h.Name(), h.Index())
}

// printEmptied says that nothing is left at the hook; done is the kind of result.
func (a *app) printEmptied(done, namespace, name string, index int) error {
	if a.json() {
		return a.printJSON(done, map[string]any{"netns": namespace, "interface": name, "ifindex": index})
	}
	_, err := fmt.Fprintf(a.env.Stdout, "%s %s\n", done, name)
	return err
}

// withRecord adds what Holdfast knows of the rival to a conflict.
func (a *app) withRecord(h *xdp.Hook, err error) error {
	var conflict *xdp.Error
	if !errors.Is(err, xdp.ErrConflict) || !errors.As(err, &conflict) {
		return err
	}
	state, openErr := a.look(context.Background())
	if openErr != nil {
		return err
	}
	defer state.Close()
	return state.Explain(h, conflict)
}

// table prints rows in columns. On a terminal it fits them into its width by
// shortening the widest cells; elsewhere nothing is shortened.
func (a *app) table(head []string, rows [][]string) {
	writeTable(a.env.Stdout, head, rows, terminalWidth(a.env.Stdout))
}

// terminalWidth is 0 where it is no terminal.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

const columnGap = "  "

func writeTable(w io.Writer, head []string, rows [][]string, width int) {
	for _, line := range tableLines(head, rows, width) {
		fmt.Fprintln(w, line)
	}
}

// tableLines are the rows in columns, below the head if there is one.
func tableLines(head []string, rows [][]string, width int) []string {
	var all [][]string
	if head != nil {
		all = append(all, head)
	} else if len(rows) > 0 {
		head = make([]string, len(rows[0]))
	}
	for _, row := range rows {
		line := make([]string, len(row))
		for i, cell := range row {
			line[i] = strings.Map(printable, cell)
		}
		all = append(all, line)
	}
	widths := make([]int, len(head))
	for _, row := range all {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	if width > 0 {
		shrink(widths, head, width-len(columnGap)*(len(head)-1))
	}
	var lines []string
	for _, row := range all {
		var line strings.Builder
		for i, cell := range row {
			if i > 0 {
				line.WriteString(columnGap)
			}
			cell = shorten(cell, widths[i])
			line.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		lines = append(lines, strings.TrimRight(line.String(), " "))
	}
	return lines
}

// printable keeps names that others chose, such as those of processes, from
// breaking the table or talking to the terminal.
func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return unicode.ReplacementChar
	}
	return r
}

// printableLines is the text of an error, which may have several lines, and names in it
// that others chose.
func printableLines(err error) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return printable(r)
	}, err.Error())
}

// shrink takes from the widest column, again and again, but never below its
// heading.
func shrink(widths []int, head []string, total int) {
	for {
		sum, widest := 0, -1
		for i, w := range widths {
			sum += w
			if w > utf8.RuneCountInString(head[i]) && (widest < 0 || w > widths[widest]) {
				widest = i
			}
		}
		if sum <= total || widest < 0 {
			return
		}
		widths[widest]--
	}
}

func shorten(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}
