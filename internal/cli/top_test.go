package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/internal/rates"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func topSample(at time.Time, packets uint64) rates.Sample {
	counters := func(drop, of uint64) *stats.Counters {
		return &stats.Counters{
			Verdicts: stats.Verdicts{Drop: packets * drop / of, Pass: packets - packets*drop/of}, Timed: packets / 64, Time: time.Duration(packets / 64 * 40),
		}
	}
	return rates.Sample{Time: at, Hooks: []rates.Hook{
		{
			Namespace: "c1", Index: 2, Interface: "eth0", Mode: "native", By: "a live chain of 2 members, counting", ProgramID: 7, Program: "holdfast_live",
			Run: &xdp.Run{Count: packets, Time: time.Duration(packets * 90)}, Members: []rates.Member{
				{ID: 16, Name: "ddos", By: "uid 0 holdfast", Counters: counters(1, 1600)},
				{ID: 17, Name: "sample", By: "uid 1000 sampler", Counters: counters(0, 1)},
			},
		},
		{
			Namespace: "c1", Index: 3, Interface: "eth1", Mode: "generic", By: "katran[4711]", ProgramID: 8, Program: "balancer",
			Run: &xdp.Run{Count: packets / 2, Time: time.Duration(packets * 100)},
		},
		{Namespace: "c1", Index: 4, Interface: "eth2", Mode: "native", By: "-", ProgramID: 9, Program: "unread"},
	}}
}

func topRows(o topOptions) []rates.Row {
	return o.rows(rates.Between(topSample(attachedAt, 0), topSample(attachedAt.Add(time.Second), 1_600_000)))
}

func TestTopIsPrintedAsItWas(t *testing.T) {
	top := func(a *app) error { return a.printTop(attachedAt, topRows(topOptions{}), topOptions{}) }
	golden(t, "top.table", printed(t, "table", top))
	golden(t, "top.json", printed(t, "json", top))
	flat := topOptions{order: byCPU, netns: true}
	golden(t, "top-cpu.table", printed(t, "table", func(a *app) error { return a.printTop(attachedAt, topRows(flat), flat) }))
	nothing := func(a *app) error { return a.printTop(attachedAt, nil, topOptions{}) }
	golden(t, "top-empty.json", printed(t, "json", nothing))
}

func TestStatsArePrintedAsTheyWere(t *testing.T) {
	counting := liveChain.Status
	c := *counting.Chain
	c.Stats, c.Packets = true, 1<<40
	c.Members = slices.Clone(c.Members)
	c.Members[0].Counters = &stats.Counters{Verdicts: stats.Verdicts{Drop: 7, Pass: 1<<40 - 7}, Timed: 3, Time: 100}
	c.Members[1].Counters = &stats.Counters{Verdicts: stats.Verdicts{Aborted: 1, TX: 2, Redirect: 3, Other: 4}}
	counting.Chain = &c
	all := []arbiter.Status{counting, fusedChain.Status, permanent}
	print := func(a *app) error { return a.printStats(all, false, false) }
	golden(t, "stats.table", printed(t, "table", print))
	golden(t, "stats.json", printed(t, "json", print))
	golden(t, "stats-netns.table", printed(t, "table", func(a *app) error { return a.printStats(all, true, false) }))
	golden(t, "stats-empty.json", printed(t, "json", func(a *app) error { return a.printStats(all[1:], false, true) }))
}

func TestTopOrdersAndFilters(t *testing.T) {
	for _, c := range []struct {
		o    topOptions
		want string
	}{
		{topOptions{}, "eth0 eth0/ddos eth0/sample eth1 eth2"},
		{topOptions{order: byPackets}, "eth0 eth0/ddos eth0/sample eth1 eth2"},
		{topOptions{order: byTime}, "eth1 eth0 eth0/ddos eth0/sample eth2"},
		{topOptions{order: byCPU}, "eth1 eth0 eth0/ddos eth0/sample eth2"},
		{topOptions{order: byDrops}, "eth0/ddos eth0/sample eth0 eth1 eth2"},
		{topOptions{filter: "SAMPLE"}, "eth0/sample"},
		{topOptions{filter: "katran"}, "eth1"},
		{topOptions{filter: "generic"}, "eth1"},
		{topOptions{filter: "nothing"}, ""},
	} {
		var got []string
		for _, r := range topRows(c.o) {
			name := r.Interface
			if r.Member != "" {
				name += "/" + r.Member
			}
			got = append(got, name)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("by %s with %q: %s, want %s", c.o.order, c.o.filter, s, c.want)
		}
	}
	for _, name := range topOrders {
		if o, err := parseTopOrder(name); err != nil || o.String() != name {
			t.Errorf("%s: %s, %v", name, o, err)
		}
	}
	if _, err := parseTopOrder("size"); ExitCode(err) != exitUsage {
		t.Error(err)
	}
}

func TestNumbersAreShort(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 0.4: "0", 999: "999", 1000: "1.00k", 12_345: "12.3k", 123_456: "123.5k", 1.5e6: "1.50M", 14.88e6: "14.9M", 2e9: "2.00G"} {
		if got := short(n); got != want {
			t.Errorf("%f is %s, want %s", n, got, want)
		}
	}
	for _, c := range []struct {
		n, of uint64
		want  string
	}{{0, 0, "0"}, {0, 9, "0"}, {9, 9, "100"}, {1, 1e6, "<0.1"}, {999_999, 1e6, ">99.9"}, {1, 3, "33.3"}} {
		if got := percent(c.n, c.of); got != c.want {
			t.Errorf("%d of %d is %s, want %s", c.n, c.of, got, c.want)
		}
	}
}

// keys presses keys on the model.
func (m *topModel) keys(keys ...string) (quits bool) {
	for _, k := range keys {
		msg := tea.KeyPressMsg{Text: k, Code: []rune(k)[0]}
		if code, special := map[string]rune{
			"space": tea.KeySpace, "esc": tea.KeyEscape, "enter": tea.KeyEnter, "backspace": tea.KeyBackspace,
			"up": tea.KeyUp, "down": tea.KeyDown, "pgdown": tea.KeyPgDown, "pgup": tea.KeyPgUp, "home": tea.KeyHome,
		}[k]; special {
			msg = tea.KeyPressMsg{Code: code}
		}
		if _, cmd := m.Update(msg); cmd != nil {
			_, quits = cmd().(tea.QuitMsg)
		}
	}
	return quits
}

func newTopModel(height int) *topModel {
	m := &topModel{topOptions: topOptions{interval: time.Second}, ctx: context.Background()}
	m.Update(tea.WindowSizeMsg{Width: 120, Height: height})
	m.Update(looked{sample: topSample(attachedAt, 0)})
	m.Update(looked{sample: topSample(attachedAt.Add(time.Second), 1_600_000)})
	return m
}

func (m *topModel) shows(t *testing.T, words ...string) {
	t.Helper()
	screen := strings.Join(m.screen(), "\n")
	for _, w := range words {
		without, is := strings.CutPrefix(w, "!")
		if strings.Contains(screen, without) == is {
			t.Errorf("%q in\n%s", w, screen)
		}
	}
}

func TestKeysOfTopDoWhatTheHelpSays(t *testing.T) {
	m := newTopModel(12)
	m.shows(t, "by place", "eth0         ddos", "1.60M", "katran", "q end", "!paused")
	if n := len(m.screen()); n != 12 {
		t.Errorf("%d lines on a screen of 12", n)
	}
	m.keys("s", "s")
	m.shows(t, "by ns", "!eth0         ddos", "eth0       ddos")
	m.keys("p")
	m.shows(t, "by place")

	m.keys("/", "k", "q", "backspace", "a", "t")
	m.shows(t, "only with: kat_", "katran", "!ddos")
	m.keys("enter")
	m.shows(t, `with "kat"`, "!ddos", "q end")
	m.keys("esc")
	m.shows(t, "ddos", "!with \"")
	m.keys("/", "x", "y", "enter")
	m.shows(t, "nothing contains that")
	m.keys("/", "esc")
	m.shows(t, "ddos")

	m.keys("space")
	m.Update(looked{sample: topSample(attachedAt.Add(2*time.Second), 1_600_001)})
	m.shows(t, "paused", "1.60M")
	m.keys("space")
	m.Update(looked{sample: topSample(attachedAt.Add(3*time.Second), 1_600_001)})
	m.shows(t, "!paused", "!1.60M")

	m.Update(looked{err: errors.New("the daemon is gone")})
	m.shows(t, "the daemon is gone", "ddos")
	if m.keys("down") || !m.keys("q") {
		t.Error("q alone ends it")
	}
}

func TestTopScrollsWhereThereIsNotRoomForAll(t *testing.T) {
	m := newTopModel(6) // two rows
	m.shows(t, "ddos", "!katran")
	m.keys("down")
	m.shows(t, "ddos", "sample", "!holdfast_live")
	m.keys("pgdown", "pgdown", "pgdown", "down")
	m.shows(t, "balancer", "unread", "!sample")
	m.keys("pgup")
	m.shows(t, "sample", "!unread")
	m.keys("up", "home", "up")
	m.shows(t, "holdfast_live")
	none := &topModel{topOptions: topOptions{interval: time.Second}}
	none.shows(t, "looking for 1s")
	none.Update(looked{err: errors.New("not permitted")})
	none.shows(t, "not permitted")
	empty := &topModel{}
	empty.Update(looked{sample: rates.Sample{Time: attachedAt}})
	empty.Update(looked{sample: rates.Sample{Time: attachedAt.Add(time.Second)}})
	empty.shows(t, "no XDP program is attached")
}

// The program itself, on a screen that is a file, and with keys from a pipe.
func TestTopEndsWhenItIsTold(t *testing.T) {
	in, keys, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer keys.Close()
	looks := make(chan struct{}, 100)
	m := &topModel{topOptions: topOptions{interval: time.Millisecond}, ctx: t.Context(), look: func(context.Context) (rates.Sample, error) {
		select {
		case looks <- struct{}{}:
		default:
		}
		return topSample(time.Now(), 1), nil
	}}
	done := make(chan error)
	go func() {
		_, err := tea.NewProgram(m, tea.WithContext(t.Context()), tea.WithInput(in), tea.WithOutput(io.Discard), tea.WithoutSignals()).Run()
		done <- err
	}()
	for range 3 {
		<-looks
	}
	if _, err := keys.WriteString("q"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPlainTopEndsAfterSoManyTables(t *testing.T) {
	var out bytes.Buffer
	a := &app{env: Env{Stdout: &out}, log: slog.New(slog.DiscardHandler), output: "table"}
	looks := 0
	look := func(context.Context) (rates.Sample, error) {
		looks++
		return topSample(attachedAt.Add(time.Duration(looks)*time.Second), uint64(looks*1000)), nil
	}
	if err := a.plainTop(t.Context(), look, topOptions{interval: time.Millisecond}, 3); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "INTERFACE"); n != 3 || looks != 4 || !strings.Contains(out.String(), "1.00k") {
		t.Errorf("%d tables of %d looks:\n%s", n, looks, out.String())
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := a.plainTop(stopped, look, topOptions{interval: time.Hour}, 0); err != nil {
		t.Error(err)
	}
	broken := func(context.Context) (rates.Sample, error) { return rates.Sample{}, errors.New("no") }
	if err := a.plainTop(t.Context(), broken, topOptions{interval: time.Hour}, 0); err == nil {
		t.Error("what can't be looked at is shown")
	}
}
