package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdfast-bpf/holdfast/internal/rates"
)

// topOptions say what is shown, and how.
type topOptions struct {
	order    topOrder
	filter   string
	interval time.Duration
	netns    bool
}

// topOrder is a number of topOrders.
type topOrder int

const (
	byPlace topOrder = iota
	byPackets
	byTime
	byCPU
	byDrops
)

var topOrders = []string{"place", "packets", "ns", "cpu", "drop"}

func (o topOrder) String() string { return topOrders[o] }

func (o topOrder) next() topOrder { return (o + 1) % topOrder(len(topOrders)) }

func parseTopOrder(s string) (topOrder, error) {
	if i := slices.Index(topOrders, s); i >= 0 {
		return topOrder(i), nil
	}
	return 0, usagef("--sort %q: it is place, packets, ns, cpu or drop", s)
}

// of is what rows are ordered by; of what is not known it is less than nothing.
func (o topOrder) of(r rates.Row) float64 {
	const unknown = -1
	switch {
	case r.Rates == nil:
		return unknown
	case o == byPackets:
		return r.Rates.Packets
	case o == byTime:
		return r.Rates.PerPacket
	case o == byCPU:
		return r.Rates.CPU
	case r.Verdicts == nil:
		return unknown
	}
	return share(r.Verdicts.Drop, r.Verdicts.Sum())
}

func share(n, of uint64) float64 {
	if of == 0 {
		return 0
	}
	return float64(n) / float64(of)
}

// rows are those that are shown, in their order.
func (o topOptions) rows(all []rates.Row) []rates.Row {
	var rows []rates.Row
	for _, r := range all {
		what := strings.ToLower(strings.Join([]string{r.Netns, r.Interface, r.Mode, r.Member, r.Program, r.By}, "\n"))
		if strings.Contains(what, strings.ToLower(o.filter)) {
			rows = append(rows, r)
		}
	}
	if o.order != byPlace {
		slices.SortStableFunc(rows, func(x, y rates.Row) int { return cmp.Compare(o.order.of(y), o.order.of(x)) })
	}
	return rows
}

// lines are the table of these rows, its head first.
func (o topOptions) lines(rows []rates.Row, width int) []string {
	head := []string{"INTERFACE", "MEMBER", "PACKETS/S", "NS", "CPU%", "ABORT%", "DROP%", "PASS%", "TX%", "REDIR%", "OTHER%", "BY"}
	const numbers, numbersEnd = 2, 11 // the columns that are aligned to the right
	cells := [][]string{head}
	for _, r := range rows {
		cells = append(cells, topCells(r, o.order == byPlace))
	}
	for column := numbers; column < numbersEnd; column++ {
		widest := 0
		for _, row := range cells {
			widest = max(widest, utf8.RuneCountInString(row[column]))
		}
		for _, row := range cells {
			row[column] = strings.Repeat(" ", widest-utf8.RuneCountInString(row[column])) + row[column]
		}
	}
	if o.netns {
		cells[0] = append([]string{"NETNS"}, cells[0]...)
		for i, r := range rows {
			cells[i+1] = append([]string{cmp.Or(r.Netns, "-")}, cells[i+1]...)
		}
	}
	return tableLines(cells[0], cells[1:], width)
}

// topCells are a row's. Below its hook a member is set back.
func topCells(r rates.Row, below bool) []string {
	member := r.Program
	switch {
	case r.Member != "" && below:
		member = "  " + r.Member
	case r.Member != "":
		member = r.Member
	}
	cells := []string{r.Interface, cmp.Or(member, "-"), "-", "-", "-"}
	if r.Rates != nil {
		cells = append(cells[:2], short(r.Rates.Packets), "-", "-")
		if r.Rates.PerPacket > 0 {
			cells = append(cells[:3], fmt.Sprintf("%.0f", r.Rates.PerPacket), fmt.Sprintf("%.1f", 100*r.Rates.CPU))
		}
	}
	if r.Verdicts == nil {
		return append(cells, "-", "-", "-", "-", "-", "-", r.By)
	}
	v, sum := r.Verdicts, r.Verdicts.Sum()
	for _, n := range []uint64{v.Aborted, v.Drop, v.Pass, v.TX, v.Redirect, v.Other} {
		cells = append(cells, percent(n, sum))
	}
	return append(cells, r.By)
}

// percent is never 0.0 of something, nor 100.0 of less than all.
func percent(n, of uint64) string {
	p := 100 * share(n, of)
	switch {
	case n == 0:
		return "0"
	case n == of:
		return "100"
	case p < 0.1:
		return "<0.1"
	case p > 99.9:
		return ">99.9"
	}
	return fmt.Sprintf("%.1f", p)
}

// short is a number of three digits or so.
func short(n float64) string {
	for _, unit := range []struct {
		size float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if n >= 10*unit.size {
			return fmt.Sprintf("%.1f%s", n/unit.size, unit.name)
		}
		if n >= unit.size {
			return fmt.Sprintf("%.2f%s", n/unit.size, unit.name)
		}
	}
	return fmt.Sprintf("%.0f", n)
}
