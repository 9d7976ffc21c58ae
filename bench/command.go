package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// The commands that do the same job.
const (
	ownTool   = "holdfast"
	shared    = "holdfast --single"
	xdpLoader = "xdp-loader"
	ipLink    = "ip link"
	doNothing = "a Go program that does nothing"
)

// tool is a command that attaches, in the words of its command line; an empty
// line is a job that it can't do.
type tool struct {
	name                                     string
	attach, replace, detach, status, version []string
}

func tools(holdfast, iface, object string) []tool {
	return []tool{
		{
			name:    ownTool,
			attach:  []string{holdfast, "attach", iface, object, "--mode", "native"},
			replace: []string{holdfast, "replace", iface, object, "--expect", "any"},
			detach:  []string{holdfast, "detach", iface},
			status:  []string{holdfast, "status"},
		},
		{
			name:    shared,
			attach:  []string{holdfast, "attach", iface, object, "--mode", "native", "--shared", "--single"},
			replace: []string{holdfast, "replace", iface, object, "--mode", "native", "--expect", "any"},
			detach:  []string{holdfast, "detach", iface},
		},
		{
			name:    xdpLoader,
			attach:  []string{"xdp-loader", "load", "-m", "native", iface, object},
			detach:  []string{"xdp-loader", "unload", iface, "--all"},
			status:  []string{"xdp-loader", "status"},
			version: []string{"dpkg-query", "-W", "-f", "xdp-tools ${Version}", "xdp-tools"}, // it does not tell itself
		},
		{
			name:    ipLink,
			attach:  []string{"ip", "link", "set", iface, "xdpdrv", "obj", object, "sec", "xdp"},
			replace: []string{"ip", "-force", "link", "set", iface, "xdpdrv", "obj", object, "sec", "xdp"},
			detach:  []string{"ip", "link", "set", iface, "xdpdrv", "off"},
			status:  []string{"ip", "link"},
			version: []string{"ip", "-V"},
		},
	}
}

// command is a command line to run here, in the world's namespaces.
func command(line []string) *exec.Cmd {
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(os.Environ(),
		// The dispatcher would be another job: a chain, not a program.
		"LIBXDP_SKIP_DISPATCHER=1",
		// Otherwise the state is where process 1 sees it.
		"HOLDFAST_BPFFS=/run/bench/bpf",
	)
	return cmd
}

func run(line []string) error { return finish(command(line)) }

// finish runs the command to its end.
func finish(cmd *exec.Cmd) error {
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

// commands are whole processes, from their start to their exit, at the first
// interface.
func (w *world) commands(tools []tool) []contender {
	var contenders []contender
	for _, t := range tools {
		contenders = append(contenders, contender{t.name, func(c *clock) error {
			for _, job := range []struct {
				step     string
				line     []string
				attached bool // afterwards
			}{{attach, t.attach, true}, {replace, t.replace, true}, {detach, t.detach, false}} {
				if len(job.line) == 0 {
					continue
				}
				rest()
				if err := c.time(job.step, 1, func() error { return run(job.line) }); err != nil {
					return err
				}
				if err := w.await(job.attached); err != nil {
					return fmt.Errorf("%s: %w", job.step, err)
				}
			}
			return nil
		}})
	}
	return contenders
}

// starts are commands that start and end, and do next to nothing in between.
func starts(holdfast, nothing string) []contender {
	var contenders []contender
	for _, s := range []struct {
		name string
		line []string
	}{{ownTool, []string{holdfast, "version"}}, {doNothing, []string{nothing}}} {
		contenders = append(contenders, contender{s.name, func(c *clock) error {
			rest()
			return c.time(start, 1, func() error { return run(s.line) })
		}})
	}
	return contenders
}

// rest lets the kernel finish what it does behind the last command, so that the
// next one does not pay for it.
func rest() { time.Sleep(15 * time.Millisecond) }

// await checks that the command has done its job: a hook whose link was closed
// is empty some milliseconds later.
func (w *world) await(attached bool) error {
	for range 200 {
		s, err := w.hooks[0].Query()
		if err != nil {
			return err
		}
		if (s.At(xdp.Native) != nil) == attached {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("a program is attached: %t, a second after the command", !attached)
}

// statuses compares how long it takes to show all interfaces.
func statuses(tools []tool) []contender {
	var contenders []contender
	for _, t := range tools {
		if len(t.status) > 0 {
			contenders = append(contenders, contender{t.name, func(c *clock) error {
				rest()
				return c.time(status, 1, func() error { return run(t.status) })
			}})
		}
	}
	return contenders
}

// memory returns the peak of every job of every tool, in KiB. Only status runs
// where the interfaces have programs already.
func memory(tools []tool, statusOnly bool) (map[string]map[string]int, error) {
	peaks := map[string]map[string]int{}
	for _, t := range tools {
		jobs := []struct {
			step string
			line []string
		}{{attach, t.attach}, {replace, t.replace}, {detach, t.detach}, {status, t.status}}
		if statusOnly {
			jobs = jobs[3:]
		}
		peaks[t.name] = map[string]int{}
		for _, job := range jobs {
			if len(job.line) == 0 {
				continue
			}
			rest()
			n, err := peakMemory(command(job.line))
			if err != nil {
				return nil, err
			}
			peaks[t.name][job.step] = n
		}
	}
	return peaks, nil
}

// objectFile writes the smallest program there is to a file for the commands.
func objectFile(dir string) (string, error) {
	path := filepath.Join(dir, "pass.o")
	return path, os.WriteFile(path, bpfprog.ELF("pass"), 0o644)
}

// attachEverywhere attaches the program to all interfaces, by links.
func (w *world) attachEverywhere(program *ebpf.Program) (remove func() error, err error) {
	links := make([]*xdp.Link, len(w.hooks))
	for i, h := range w.hooks {
		if links[i], err = h.AttachLink(program); err != nil {
			return nil, err
		}
	}
	return func() error {
		return inOrder(
			func() error { return each(links, (*xdp.Link).Detach) },
			func() error { return each(links, (*xdp.Link).Close) },
		)
	}, nil
}
