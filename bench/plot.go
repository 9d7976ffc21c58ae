package main

import (
	"fmt"
	"image/color"
	"math"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// plots draws what the tables say.
func plots(docs string, m *measured) error {
	if err := plotPackets(filepath.Join(docs, "benchmarks-packets.svg"), m.packets); err != nil {
		return err
	}
	if err := plotControl(filepath.Join(docs, "benchmarks-control.svg"), m.control.results); err != nil {
		return err
	}
	if err := plotChains(filepath.Join(docs, "benchmarks-chains.svg"), m.chains.results); err != nil {
		return err
	}
	if err := plotLibrary(filepath.Join(docs, "benchmarks-library.svg"), m.worlds); err != nil {
		return err
	}
	return plotCommands(filepath.Join(docs, "benchmarks-commands.svg"), m.worlds[0])
}

var palette = []color.Color{
	color.RGBA{0x1b, 0x62, 0xa5, 0xff},
	color.RGBA{0xd9, 0x5f, 0x02, 0xff},
	color.RGBA{0x2a, 0x8a, 0x4a, 0xff},
	color.RGBA{0x75, 0x70, 0xb3, 0xff},
	color.RGBA{0xc5, 0x1b, 0x7d, 0xff},
	color.RGBA{0x66, 0x66, 0x66, 0xff},
}

func newPlot(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = vg.Points(13)
	p.BackgroundColor = color.White
	p.Legend.Top = true
	return p
}

// plotLibrary shows the ratio of the library to the bare calls over the number
// of interfaces, owned hooks, warm programs.
func plotLibrary(path string, all []*results) error {
	p := newPlot("Library to bare calls, by link, warm program")
	p.X.Label.Text, p.Y.Label.Text = "interfaces", "ratio"
	p.X.Scale = plot.LogScale{}
	var ticks []plot.Tick
	for i, step := range []string{attach, replace, detach, status} {
		points := make(plotter.XYs, len(all))
		for j, r := range all {
			points[j] = plotter.XY{X: float64(r.Interfaces), Y: r.Races[warmLink].ratio(step, library, bare).mid}
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color, dots.Shape = palette[i], palette[i], draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(step, line, dots)
	}
	for _, r := range all {
		ticks = append(ticks, plot.Tick{Value: float64(r.Interfaces), Label: fmt.Sprint(r.Interfaces)})
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	limit := plotter.NewFunction(func(float64) float64 { return 1.1 })
	limit.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	limit.Color = color.Gray{0x80}
	p.Add(limit)
	p.Legend.Add("limit for attach and replace", limit)
	p.Y.Min, p.Y.Max = math.Min(p.Y.Min, 0.9), math.Max(p.Y.Max, 1.3)
	return p.Save(6*vg.Inch, 3.5*vg.Inch, path)
}

// plotCommands shows how long whole commands take, with the kernel's grace
// periods and without.
func plotCommands(path string, r *results) error {
	p := newPlot("Whole commands, at one interface")
	p.Y.Label.Text = "ms"
	const width = 16
	names := []string{ownTool, shared, xdpLoader, ipLink}
	for i, name := range names {
		var values plotter.Values
		for _, group := range []string{process, crowded} {
			for _, step := range []string{attach, detach} {
				values = append(values, r.Races[group].of(step, name).mid/1e6)
			}
		}
		bars, err := plotter.NewBarChart(values, vg.Points(width))
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = palette[i], 0
		bars.Offset = vg.Points(width * (float64(i) - float64(len(names)-1)/2))
		p.Add(bars)
		p.Legend.Add(name, bars)
	}
	p.NominalX("attach", "detach", "attach,\nno grace period", "detach,\nno grace period")
	p.Y.Min = 0
	p.Y.Max *= 1.25 // the legend's place
	p.X.Min, p.X.Max = p.X.Min-0.3, p.X.Max+0.6
	return p.Save(7*vg.Inch, 3.5*vg.Inch, path)
}

// plotChains shows how long it takes to add a member, without the kernel's grace
// period for the program that is swapped.
func plotChains(path string, r *results) error {
	p := newPlot("A member added to a chain, without grace periods")
	p.X.Label.Text, p.Y.Label.Text = "members afterwards", "ms"
	names := []string{library, ownTool}
	for _, line := range chainPeers {
		names = append(names, peerName(line))
	}
	for i, name := range names {
		points := make(plotter.XYs, len(chainSizes))
		for j, size := range chainSizes {
			points[j] = plotter.XY{X: float64(size), Y: r.Races[chainedCrowded].of(adding(size), name).mid / 1e6}
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color, dots.Shape = palette[i], palette[i], draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(name, line, dots)
	}
	var ticks []plot.Tick
	for _, size := range chainSizes {
		ticks = append(ticks, plot.Tick{Value: float64(size), Label: fmt.Sprint(size)})
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	p.Y.Min = 0
	p.Y.Max *= 1.3 // the legend's place
	return p.Save(6*vg.Inch, 3.5*vg.Inch, path)
}
