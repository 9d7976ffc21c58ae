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
	interfaces := flag.Int("interfaces", 0, "run one world of that many interfaces and print its results (used by the program itself)")
	inGuest := flag.Bool("chains", false, "measure shared chains, with what the virtual machine has, and print the results (used by the program itself)")
	holdfast := flag.String("holdfast", "", "the command to measure, with -interfaces or -chains")
	onlyPackets := flag.Bool("packets", false, "measure only what a packet costs in chains, print that, and change no document; needs no root")
	packetsInGuest := flag.Bool("packets-here", false, "measure that, with what the virtual machine has, and print the results (used by the program itself)")
	controlInGuest := flag.Bool("control-here", false, "measure owned chains")
	onlyControl := flag.Bool("control", false, "measure owned chains")
	scratch := flag.String("scratch", "", "directory for files, with -interfaces, -chains or -packets-here")
	flag.Parse()
	if *interfaces > 0 {
		return child(*interfaces, *holdfast, *scratch, os.Stdout)
	}
	if *inGuest {
		return chains(*holdfast, *scratch, os.Stdout)
	}
	if *packetsInGuest {
		return packetsHere(*scratch, os.Stdout)
	}
	if *controlInGuest {
		return controlHere(*scratch, os.Stdout)
	}
	if os.Geteuid() != 0 && !*onlyPackets {
		return errors.New("attaching needs root: run it with sudo")
	}
	for _, tool := range []string{"xdp-loader", "ip"} {
		if _, err := exec.LookPath(tool); err != nil && !*onlyPackets {
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
	if *onlyControl {
		c, err := control(dir)
		if err != nil {
			return err
		}
		for _, g := range controlGroups {
			o := c.Races[g.name]
			fmt.Println(g.name, o.Rounds)
			for _, s := range o.Steps {
				fmt.Print(s)
				for _, n := range []string{permanentMember, heldMember, bareMember} {
					fmt.Print(" ", n, " ", duration(o.of(s, n).mid), " ", ratio(o.ratio(s, n, bareMember)))
				}
				fmt.Println()
			}
		}
		return nil
	}
	costs, err := packets(dir)
	if err != nil {
		return err
	}
	if *onlyPackets {
		var b bytes.Buffer
		packetSection(&b, costs)
		_, err := b.WriteTo(os.Stdout)
		return err
	}
	command := filepath.Join(dir, "holdfast")
	var all []*results
	for _, n := range []int{1, 10, 200, 2000} {
		r, err := inWorld(n, command, dir)
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	chains, err := inMachine(dir)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(*docs) {
		*docs = filepath.Join(root, *docs)
	}
	return report(*docs, all, chains, costs)
}
