package main

import (
	"encoding/json"
	"fmt"
	"image/color"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/holdfast-bpf/holdfast/packaging"
)

// Sizes in the picture of the dashboard.
const (
	boardWidth  = 13 * vg.Inch
	statHeight  = 0.85 * vg.Inch
	panelHeight = 2.55 * vg.Inch
	legendLine  = 13
	gap         = 7
	panelsInRow = 3
)

var (
	boardColor = color.RGBA{0xf0, 0xf1, 0xf4, 0xff}
	frameColor = color.RGBA{0xd6, 0xd8, 0xde, 0xff}
	quietColor = color.RGBA{0x5a, 0x5f, 0x69, 0xff}
	gridColor  = color.RGBA{0xe8, 0xe9, 0xed, 0xff}
	goodColor  = color.RGBA{0x2a, 0x8a, 0x4a, 0xff}
	badColor   = color.RGBA{0xc4, 0x31, 0x3c, 0xff}

	boardPalette = append(slices.Clone(palette[:5]),
		color.RGBA{0xe6, 0xab, 0x02, 0xff}, color.RGBA{0x17, 0xa2, 0xb0, 0xff}, color.RGBA{0x8c, 0x56, 0x4b, 0xff},
		color.RGBA{0x66, 0x66, 0x66, 0xff}, color.RGBA{0xa6, 0xcb, 0x5d, 0xff})
)

// drawDashboard asks Prometheus what the dashboard would, and draws its panels.
func drawDashboard(path string, from, to time.Time) error {
	var d packaging.Dashboard
	if err := json.Unmarshal([]byte(packaging.GrafanaDashboard), &d); err != nil {
		return err
	}
	var stats, graphs []packaging.Panel
	for _, p := range d.Panels {
		if p.Type == "stat" {
			stats = append(stats, p)
		} else {
			graphs = append(graphs, p)
		}
	}
	rows := (len(graphs) + panelsInRow - 1) / panelsInRow
	height := statHeight + vg.Length(rows)*panelHeight + vg.Length(rows+2)*gap
	canvas := vgsvg.New(boardWidth, height)
	c := draw.New(canvas)
	fill(c, boardColor)
	width := (boardWidth - vg.Length(len(stats)+1)*gap) / vg.Length(len(stats))
	for i, p := range stats {
		x := gap + vg.Length(i)*(width+gap)
		if err := drawStat(box(c, x, height-gap-statHeight, width, statHeight), p, from, to); err != nil {
			return err
		}
	}
	width = (boardWidth - (panelsInRow+1)*gap) / panelsInRow
	for i, p := range graphs {
		x := gap + vg.Length(i%panelsInRow)*(width+gap)
		y := height - 2*gap - statHeight - vg.Length(i/panelsInRow+1)*panelHeight - vg.Length(i/panelsInRow)*gap
		if err := drawGraph(box(c, x, y, width, panelHeight), p, from, to); err != nil {
			return err
		}
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := canvas.WriteTo(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func fill(c draw.Canvas, with color.Color) {
	c.FillPolygon(with, []vg.Point{c.Min, {X: c.Max.X, Y: c.Min.Y}, c.Max, {X: c.Min.X, Y: c.Max.Y}})
}

// box is a white part of the canvas with a frame.
func box(c draw.Canvas, x, y, width, height vg.Length) draw.Canvas {
	b := draw.Canvas{Canvas: c.Canvas, Rectangle: vg.Rectangle{Min: vg.Point{X: x, Y: y}, Max: vg.Point{X: x + width, Y: y + height}}}
	fill(b, color.White)
	b.StrokeLines(draw.LineStyle{Color: frameColor, Width: 0.75}, []vg.Point{
		b.Min, {X: b.Max.X, Y: b.Min.Y}, b.Max, {X: b.Min.X, Y: b.Max.Y}, b.Min,
	})
	return b
}

// style is of text that begins at its point: who looks at the picture may have another
// font, in which a text is as long as it likes.
func style(size vg.Length, c color.Color) text.Style {
	return text.Style{
		Color: c, Font: font.From(font.Font{Variant: "Sans"}, size), XAlign: text.XLeft, YAlign: text.YBottom, Handler: plot.DefaultTextHandler,
	}
}

// drawStat writes the last value of a panel of one number.
func drawStat(c draw.Canvas, p packaging.Panel, from, to time.Time) error {
	lines, err := query(p.Targets[0], from, to)
	if err != nil {
		return err
	}
	value, tone := "none", color.Color(color.Black)
	if len(lines) > 0 {
		last := lines[0].points[len(lines[0].points)-1][1]
		value = fmt.Sprint(last)
		if thresholds := p.FieldConfig.Defaults.Thresholds.Steps; len(thresholds) > 0 {
			tone = goodColor
			for _, s := range thresholds {
				if s.Value == nil || last >= *s.Value {
					tone = goodColor
					if s.Color == "red" {
						tone = badColor
					}
				}
			}
		}
		for _, m := range p.FieldConfig.Defaults.Mappings {
			if option, ok := m.Options[value]; ok {
				value = option.Text
			}
		}
	}
	left := c.Min.X + 10
	c.FillText(style(10, quietColor), vg.Point{X: left, Y: c.Max.Y - 18}, p.Title)
	c.FillText(style(24, tone), vg.Point{X: left, Y: c.Min.Y + 10}, value)
	return nil
}

// drawGraph draws the lines of a panel, one upon the other where it stacks them.
func drawGraph(c draw.Canvas, p packaging.Panel, from, to time.Time) error {
	var lines []series
	for _, t := range p.Targets {
		more, err := query(t, from, to)
		if err != nil {
			return err
		}
		lines = append(lines, more...)
	}
	if len(lines) == 0 {
		return fmt.Errorf("the panel %q has nothing to show", p.Title)
	}
	c.FillText(style(11, color.Black), vg.Point{X: c.Min.X + 8, Y: c.Max.Y - 18}, p.Title)
	below := drawLegend(c, lines)
	g := plot.New()
	g.BackgroundColor = color.Transparent
	g.X.Min, g.X.Max = 0, to.Sub(from).Seconds()
	g.X.Tick.Marker = plot.TickerFunc(minutes)
	g.Y.Min, g.Y.Max = 0, 0
	for _, a := range []*plot.Axis{&g.X, &g.Y} {
		a.Width, a.Padding = 0, 2
		a.Tick.Width, a.Tick.Length = 0, 0
		a.Tick.Label.Font = font.From(font.Font{Variant: "Sans"}, 8)
		a.Tick.Label.Color = quietColor
	}
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = gridColor, gridColor
	g.Add(grid)
	var top float64
	var add func() error
	if p.FieldConfig.Defaults.Custom.Stacking.Mode == "normal" {
		top, add = stack(g, lines)
	} else {
		top, add = beside(g, lines)
	}
	if top == 0 {
		top = 1
	}
	g.Y.Max = 1.08 * top
	g.Y.Tick.Marker = unitTicks(p.FieldConfig.Defaults.Unit)
	if err := add(); err != nil {
		return err
	}
	g.Y.Min, g.Y.Max = 0, 1.08*top // which Add has changed
	g.X.Min, g.X.Max = 0, to.Sub(from).Seconds()
	g.Draw(draw.Crop(c, 4, -10, below, -24))
	return nil
}

// beside draws each line by itself, with gaps where it has no values.
func beside(g *plot.Plot, lines []series) (top float64, add func() error) {
	for _, s := range lines {
		for _, p := range s.points {
			top = math.Max(top, p[1])
		}
	}
	return top, func() error {
		for i, s := range lines {
			for _, part := range parts(s.points) {
				l, err := plotter.NewLine(part)
				if err != nil {
					return err
				}
				l.Color, l.Width = boardPalette[i%len(boardPalette)], 1.3
				g.Add(l)
			}
		}
		return nil
	}
}

// parts are the points between gaps. One alone is as long as a step.
func parts(points [][2]float64) []plotter.XYs {
	const step = 1
	var all []plotter.XYs
	for i, p := range points {
		if i == 0 || p[0]-points[i-1][0] > 1.5*step {
			all = append(all, nil)
		}
		last := &all[len(all)-1]
		*last = append(*last, plotter.XY{X: p[0], Y: p[1]})
	}
	for i, part := range all {
		if len(part) == 1 {
			all[i] = append(part, plotter.XY{X: part[0].X + step, Y: part[0].Y})
		}
	}
	return all
}

// stack draws the lines one upon the other. One without a value is as high as nothing.
func stack(g *plot.Plot, lines []series) (top float64, add func() error) {
	sums := map[float64]float64{}
	stacked := make([]map[float64]float64, len(lines))
	for i, s := range lines {
		for _, p := range s.points {
			sums[p[0]] += p[1]
		}
		stacked[i] = maps.Clone(sums)
	}
	at := slices.Sorted(maps.Keys(sums))
	for _, v := range sums {
		top = math.Max(top, v)
	}
	return top, func() error {
		for i := range slices.Backward(lines) { // the highest is behind all others
			points := make(plotter.XYs, len(at))
			for j, x := range at {
				points[j] = plotter.XY{X: x, Y: stacked[i][x]}
			}
			l, err := plotter.NewLine(points)
			if err != nil {
				return err
			}
			tone := boardPalette[i%len(boardPalette)]
			l.Color, l.Width, l.FillColor = tone, 1, pale(tone)
			g.Add(l)
		}
		return nil
	}
}

// pale is a color with much white, which covers what is behind.
func pale(c color.Color) color.Color {
	r, g, b, _ := c.RGBA()
	mix := func(v uint32) uint8 { return uint8((v>>8)/3 + 170) }
	return color.RGBA{mix(r), mix(g), mix(b), 0xff}
}

// drawLegend names the lines below the graph, and returns how high that is.
func drawLegend(c draw.Canvas, lines []series) vg.Length {
	s := style(8, quietColor)
	type place struct {
		row int
		x   vg.Length
	}
	var places []place
	row, x := 0, vg.Length(0)
	for _, l := range lines {
		width := s.Width(l.name)*1.2 + 22
		if x > 0 && x+width > c.Max.X-c.Min.X-12 {
			row, x = row+1, 0
		}
		places = append(places, place{row, x})
		x += width
	}
	for i, l := range lines {
		left := c.Min.X + 10 + places[i].x
		base := c.Min.Y + 6 + vg.Length(row-places[i].row)*legendLine
		tone := boardPalette[i%len(boardPalette)]
		c.FillPolygon(tone, []vg.Point{{X: left, Y: base + 2}, {X: left + 9, Y: base + 2}, {X: left + 9, Y: base + 5}, {X: left, Y: base + 5}})
		c.FillText(s, vg.Point{X: left + 12, Y: base}, l.name)
	}
	return vg.Length(row+1)*legendLine + 8
}

// minutes are ticks of an axis in seconds.
func minutes(from, to float64) []plot.Tick {
	var ticks []plot.Tick
	for at := from; at <= to; at += 30 {
		ticks = append(ticks, plot.Tick{Value: at, Label: fmt.Sprintf("%d:%02d", int(at)/60, int(at)%60)})
	}
	return ticks
}

// unitTicks are ticks whose numbers have Grafana's units.
func unitTicks(unit string) plot.Ticker {
	return plot.TickerFunc(func(from, to float64) []plot.Tick {
		scale, suffix := 1.0, ""
		switch unit {
		case "s":
			suffix = " s"
			for _, s := range []struct {
				below  float64
				factor float64
				name   string
			}{{1e-6, 1e9, " ns"}, {1e-3, 1e6, " µs"}, {1, 1e3, " ms"}} {
				if to < s.below*3 {
					scale, suffix = s.factor, s.name
					break
				}
			}
		case "bytes":
			scale, suffix = 1.0/(1<<20), " MiB"
		case "reqps", "cps":
			suffix = " /s"
		}
		var ticks []plot.Tick
		for _, t := range (plot.DefaultTicks{}).Ticks(from*scale, to*scale) {
			if !t.IsMinor() {
				ticks = append(ticks, plot.Tick{Value: t.Value / scale, Label: strings.TrimSuffix(t.Label, ".0") + suffix})
			}
		}
		return ticks
	})
}
