package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	if err := bench(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench() error {
	docs := flag.String("docs", "docs", "directory of benchmarks.md and its plots, in the module's")
	only := flag.String("only", "", "measure only that and print it: packets, control or trace (in virtual machines, without root), native, load, who or dashboard, which write documents of their own, too")
	interfaces := flag.Int("interfaces", 0, "run one world of that many interfaces and print its results (used by the program itself)")
	inGuest := flag.String("guest", "", "measure chains, control, packets, trace, load or who, with what is there, or play for dashboard, and print the results (used by the program itself)")
	holdfast := flag.String("holdfast", "", "the command to measure, with -interfaces or -guest chains")
	tools := flag.String("tools", "", "directory of prometheus, with -guest dashboard")
	scratch := flag.String("scratch", "", "directory for files, with -interfaces or -guest")
	flag.Parse()
	switch {
	case *interfaces > 0:
		return child(*interfaces, *holdfast, *scratch, os.Stdout)
	case *inGuest == "chains":
		return chains(*holdfast, *scratch, os.Stdout)
	case *inGuest == "control":
		return controlHere(*scratch, os.Stdout)
	case *inGuest == "dashboard":
		return dashboardHere(*docs, *holdfast, *tools, *scratch)
	case *inGuest == "load":
		return loadHere(*holdfast, *scratch, os.Stdout)
	case *inGuest == "who":
		return whoHere(*holdfast, os.Stdout)
	case *inGuest == "trace":
		return traceHere(*scratch, os.Stdout)
	case *inGuest == "packets":
		return packetsHere(*scratch, os.Stdout)
	}
	inMachines := *only == "packets" || *only == "control" || *only == "trace"
	if os.Geteuid() != 0 && !inMachines {
		return errors.New("attaching needs root: run it with sudo")
	}
	for _, tool := range []string{"xdp-loader", "ip"} {
		if _, err := exec.LookPath(tool); err != nil && *only == "" {
			return fmt.Errorf("%w: scripts/deps bench installs it", err)
		}
	}
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module, whose directory this must be started in: %w", err)
	}
	root := strings.TrimSpace(string(module))
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "./cmd/holdfast", "./bench", "./bench/nothing")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build holdfast: %w\n%s", err, output)
	}
	if !filepath.IsAbs(*docs) {
		*docs = filepath.Join(root, *docs)
	}
	if *only == "load" {
		return loadReport(*docs, filepath.Join(dir, "holdfast"), dir)
	}
	if *only == "who" {
		return whoReport(*docs, filepath.Join(dir, "holdfast"), dir)
	}
	if *only == "dashboard" {
		return dashboard(*docs, filepath.Join(dir, "holdfast"), dir)
	}
	if *only != "" {
		return printOnly(*only, dir)
	}
	m := &measured{}
	if m.packets, err = packets(dir); err != nil {
		return err
	}
	if m.native, err = native(dir); err != nil {
		return err
	}
	command := filepath.Join(dir, "holdfast")
	for _, n := range []int{1, 10, 200, 2000} {
		r, err := inWorld(n, command, dir)
		if err != nil {
			return err
		}
		m.worlds = append(m.worlds, r)
	}
	if m.chains, err = inMachine(dir); err != nil {
		return err
	}
	if m.control, err = control(dir); err != nil {
		return err
	}
	return report(*docs, m)
}

// printOnly measures one part and prints what the report would say of it.
func printOnly(part, directory string) error {
	var b bytes.Buffer
	var targets []target
	switch part {
	case "packets":
		c, err := packets(directory)
		if err != nil {
			return err
		}
		packetSection(&b, c)
		targets = packetTargets(c)
	case "native":
		r, err := native(directory)
		if err != nil {
			return err
		}
		nativeSection(&b, r)
		targets = []target{nativeTarget(r)}
	case "control":
		c, err := control(directory)
		if err != nil {
			return err
		}
		controlSection(&b, c)
		targets = controlTargets(c.results)
	case "trace":
		c, err := traced(directory)
		if err != nil {
			return err
		}
		traceSection(&b, c)
	default:
		return fmt.Errorf("there is no part %q; choose packets, native, control, trace, load, who or dashboard", part)
	}
	b.WriteString("\n")
	for _, t := range targets {
		t.print(&b)
	}
	_, err := b.WriteTo(os.Stdout)
	return err
}
