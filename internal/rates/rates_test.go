package rates

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/chain/stats"
	"github.com/holdfast-bpf/holdfast/xdp"
)

var (
	began = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	later = began.Add(2 * time.Second)
)

func run(count uint64, time time.Duration) *xdp.Run { return &xdp.Run{Count: count, Time: time} }

func counters(pass, drop, timed uint64, time time.Duration) *stats.Counters {
	return &stats.Counters{Verdicts: stats.Verdicts{Pass: pass, Drop: drop}, Timed: timed, Time: time}
}

// hook is one whose program was loaded between the two looks.
func hook(program uint32, run *xdp.Run, members ...Member) Hook {
	return Hook{
		Namespace: "c1", Index: 2, Interface: "eth0", Mode: "native", By: "x",
		ProgramID: program, LoadedAt: began.Add(time.Second), Run: run, Members: members,
	}
}

func elsewhere(h Hook) Hook { h.Index = 3; return h }

func old(h Hook) Hook { h.LoadedAt = began.Add(-time.Hour); return h }

func TestRatesAreWhatCameBetween(t *testing.T) {
	row := func(member string, r *Rates, v *stats.Verdicts) Row {
		by := ""
		if member == "" {
			by = "x"
		}
		return Row{Interface: "eth0", Mode: "native", Member: member, By: by, Rates: r, Verdicts: v}
	}
	for name, c := range map[string]struct {
		before, after []Hook
		want          []Row
	}{
		"a hook and its members": {
			before: []Hook{hook(7, run(100, 1000), Member{ID: 1, Name: "a", Counters: counters(50, 50, 2, 100)}, Member{ID: 2, Name: "b"})},
			after:  []Hook{hook(7, run(300, 21_000), Member{ID: 1, Name: "a", Counters: counters(200, 100, 6, 300)}, Member{ID: 2, Name: "b"})},
			want: []Row{
				row("", &Rates{Packets: 100, PerPacket: 100, CPU: 1e-5}, nil),
				row("a", &Rates{Packets: 100, PerPacket: 50, CPU: 5e-6}, &stats.Verdicts{Pass: 150, Drop: 50}),
				row("b", nil, nil),
			},
		},
		"another program has begun with nothing": {
			before: []Hook{hook(7, run(1000, 1000))},
			after:  []Hook{hook(8, run(10, 500))},
			want:   []Row{row("", &Rates{Packets: 5, PerPacket: 50, CPU: 2.5e-7}, nil)},
		},
		"a member that came has begun with nothing": {
			before: []Hook{hook(7, run(0, 0), Member{ID: 1, Name: "a", Counters: counters(9, 0, 0, 0)})},
			after:  []Hook{hook(7, run(0, 0), Member{ID: 3, Name: "a", Counters: counters(4, 0, 1, 10)})},
			want:   []Row{row("", &Rates{}, nil), row("a", &Rates{Packets: 2, PerPacket: 10, CPU: 2e-8}, &stats.Verdicts{Pass: 4})},
		},
		"a chain has begun to count anew": {
			before: []Hook{hook(7, run(0, 0), Member{ID: 1, Name: "a", Counters: counters(9, 0, 5, 50)})},
			after:  []Hook{hook(7, run(0, 0), Member{ID: 1, Name: "a", Counters: counters(2, 0, 0, 0)})},
			want:   []Row{row("", &Rates{}, nil), row("a", &Rates{Packets: 1}, &stats.Verdicts{Pass: 2})},
		},
		"a chain has begun to count anew, and has counted more of something else": {
			before: []Hook{hook(7, run(0, 0), Member{ID: 1, Name: "a", Counters: counters(0, 10, 0, 0)})},
			after:  []Hook{hook(7, run(0, 0), Member{ID: 1, Name: "a", Counters: counters(20, 0, 0, 0)})},
			want:   []Row{row("", &Rates{}, nil), row("a", &Rates{Packets: 10}, &stats.Verdicts{Pass: 20})},
		},
		"a program that runs elsewhere, too, has counted there": {
			before: []Hook{elsewhere(hook(7, run(1000, 1000)))},
			after:  []Hook{hook(7, run(1010, 1500))},
			want:   []Row{row("", &Rates{Packets: 5, PerPacket: 50, CPU: 2.5e-7}, nil)},
		},
		"an old program that nobody has seen yet": {
			after: []Hook{old(hook(7, run(1000, 1000)))},
			want:  []Row{row("", nil, nil)},
		},
		"a hook that is new has no rates of its members yet": {
			after: []Hook{hook(7, run(4, 40), Member{ID: 1, Name: "a", Counters: counters(1000, 0, 5, 50)})},
			want:  []Row{row("", &Rates{Packets: 2, PerPacket: 10, CPU: 2e-8}, nil), row("a", nil, nil)},
		},
		"a hook that has gone is not there": {before: []Hook{hook(7, run(4, 40))}},
		"nobody counts":                     {before: []Hook{hook(7, nil)}, after: []Hook{hook(7, nil)}, want: []Row{row("", nil, nil)}},
	} {
		got := Between(Sample{began, c.before}, Sample{later, c.after})
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	now := Sample{later, []Hook{hook(7, run(4, 40), Member{ID: 1, Name: "a", Counters: counters(1000, 0, 5, 50)})}}
	for _, r := range Between(now, now) {
		if r.Rates != nil {
			t.Errorf("no time has passed, and there are rates: %+v", r.Rates)
		}
	}
}
