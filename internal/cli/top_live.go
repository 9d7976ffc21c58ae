package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/holdfast-bpf/holdfast/internal/rates"
)

// liveTop shows what happens on a terminal, until somebody ends it.
func liveTop(ctx context.Context, in, out *os.File, look func(context.Context) (rates.Sample, error), o topOptions) error {
	m := &topModel{topOptions: o, ctx: ctx, look: look}
	_, err := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out)).Run()
	return err
}

// topModel is what is on the screen. Bubbletea tells it what happens, one thing after
// the other.
type topModel struct {
	topOptions
	ctx  context.Context
	look func(context.Context) (rates.Sample, error)

	before, now rates.Sample
	err         error // of the last look
	paused      bool
	typing      bool // a filter
	first       int  // the row at the top
	width       int
	height      int
}

// looked is a look that has come back.
type looked struct {
	sample rates.Sample
	err    error
}

// due says that it is time for another.
type due struct{}

func (m *topModel) Init() tea.Cmd { return m.lookNow }

func (m *topModel) lookNow() tea.Msg {
	s, err := m.look(m.ctx)
	return looked{s, err}
}

func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case due:
		return m, m.lookNow
	case looked:
		m.take(msg)
		return m, tea.Tick(m.interval, func(time.Time) tea.Msg { return due{} })
	case tea.KeyPressMsg:
		if m.typing {
			m.edit(msg)
			return m, nil
		}
		return m, m.key(msg.String())
	}
	return m, nil
}

// take takes what was seen, unless nothing is to change on the screen.
func (m *topModel) take(l looked) {
	if m.err = l.err; l.err != nil || m.paused {
		return
	}
	m.before, m.now = m.now, l.sample
}

func (m *topModel) key(k string) tea.Cmd {
	switch k {
	case "q", "ctrl+c":
		return tea.Quit
	case "s":
		m.order = m.order.next()
	case "p":
		m.order = byPlace
	case "/":
		m.typing, m.filter = true, ""
	case "esc":
		m.filter = ""
	case "space":
		m.paused = !m.paused
	case "up":
		m.first--
	case "down":
		m.first++
	case "pgup":
		m.first -= m.room()
	case "pgdown":
		m.first += m.room()
	case "home":
		m.first = 0
	}
	return nil
}

// edit is a key while a filter is typed.
func (m *topModel) edit(k tea.KeyPressMsg) {
	switch k.String() {
	case "enter":
		m.typing = false
	case "esc", "ctrl+c":
		m.typing, m.filter = false, ""
	case "backspace":
		runes := []rune(m.filter)
		m.filter = string(runes[:max(0, len(runes)-1)])
	default:
		m.filter += strings.Map(printable, k.Text)
	}
	m.first = 0
}

// room is how many rows there is room for, beside what is above and below them.
func (m *topModel) room() int { return max(1, m.height-4) }

func (m *topModel) View() tea.View {
	v := tea.NewView(strings.Join(m.screen(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "holdfast top"
	return v
}

const (
	bold  = "\x1b[1m"
	plain = "\x1b[0m"
)

// screen are the lines that are shown.
func (m *topModel) screen() []string {
	if m.before.Time.IsZero() {
		return []string{m.title(), "", m.wait()}
	}
	rows := m.rows(rates.Between(m.before, m.now))
	lines := m.lines(rows, m.width)
	m.first = max(0, min(m.first, len(rows)-m.room()))
	shown := lines[1:][m.first:]
	shown = shown[:min(len(shown), m.room())]
	screen := []string{m.title(), "", bold + lines[0] + plain}
	screen = append(screen, shown...)
	for len(screen) < m.height-1 {
		screen = append(screen, "")
	}
	return append(screen, m.below(len(rows)))
}

// title says what is shown.
func (m *topModel) title() string {
	t := fmt.Sprintf("%sholdfast top%s  %s, every %s, by %s", bold, plain, m.now.Time.Local().Format(time.TimeOnly), m.interval, m.order)
	if m.now.Time.IsZero() {
		t = bold + "holdfast top" + plain
	}
	if m.paused {
		t += ", paused"
	}
	if m.filter != "" && !m.typing {
		t += fmt.Sprintf(", with %q", m.filter)
	}
	return t
}

func (m *topModel) wait() string {
	if m.err != nil {
		return printableLines(m.err)
	}
	return "looking for " + m.interval.String()
}

// below is the last line: what went wrong, what is typed, or what can be.
func (m *topModel) below(rows int) string {
	switch {
	case m.typing:
		return "only with: " + m.filter + "_"
	case m.err != nil:
		return printableLines(m.err)
	case rows == 0 && m.filter != "":
		return "nothing contains that: Esc shows all"
	case rows == 0:
		return "no XDP program is attached here"
	}
	return "s sort  p place  / filter  space pause  ↑↓ scroll  q end"
}
