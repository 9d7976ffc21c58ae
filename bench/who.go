package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/inspect"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
)

// A machine to look at: so many processes, with as many descriptors each beside the
// usual three, and so many links, of which the first are held by a process each and
// the others pinned.
const (
	whoProcesses   = 1000
	whoDescriptors = 20
	whoLinks       = 200
	whoHeld        = whoLinks / 2
	whoRounds      = 21
)

// whoResult is what it takes to find out who holds what.
type whoResult struct {
	kernel    string
	processes int
	// command is how long the command takes, and processor its share of that.
	command, processor, look, scan []time.Duration
}

// whoHere measures in the namespaces of this process, and prints the document.
func whoHere(holdfast string, out io.Writer) error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := mounts(); err != nil {
		return err
	}
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return err
	}
	r := &whoResult{kernel: unix.ByteSliceToString(uname.Release[:])}
	stop, err := populate()
	defer stop()
	if err != nil {
		return err
	}
	if err := r.measure(holdfast); err != nil {
		return err
	}
	var b bytes.Buffer
	r.print(&b)
	_, err = b.WriteTo(out)
	return err
}

// populate makes links, and processes of which the first have one each. They end
// with this process, or when stop is called.
func populate() (stop func(), err error) {
	var processes []*exec.Cmd
	stop = func() {
		for _, p := range processes {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
	}
	w, err := newWorld(whoLinks)
	if err != nil {
		return stop, err
	}
	collection, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpfprog.ELF("pass")))
	if err != nil {
		return stop, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return stop, err
	}
	defer null.Close()
	var links []*os.File
	for i, h := range w.hooks {
		loaded, err := ebpf.NewCollection(collection)
		if err != nil {
			return stop, err
		}
		var program *ebpf.Program
		for _, p := range loaded.Programs {
			program = p
		}
		l, err := h.AttachLink(program)
		loaded.Close()
		if err != nil {
			return stop, err
		}
		if i >= whoHeld {
			if err := l.Persist(fmt.Sprintf("/sys/fs/bpf/link%d", i)); err != nil {
				return stop, err
			}
		} else {
			own, err := unix.FcntlInt(uintptr(l.FD()), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return stop, err
			}
			links = append(links, os.NewFile(uintptr(own), "link"))
		}
		if err := l.Close(); err != nil {
			return stop, err
		}
	}
	for i := range whoProcesses {
		cmd := exec.Command("sleep", "infinity")
		cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
		for range whoDescriptors {
			cmd.ExtraFiles = append(cmd.ExtraFiles, null)
		}
		if i < len(links) {
			cmd.ExtraFiles = append(cmd.ExtraFiles, links[i])
		}
		if err := cmd.Start(); err != nil {
			return stop, err
		}
		processes = append(processes, cmd)
	}
	for _, l := range links {
		l.Close()
	}
	return stop, nil
}

func (r *whoResult) measure(holdfast string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			r.processes++
		}
	}
	for range whoRounds {
		start := time.Now()
		if _, err := procfs.Scan(); err != nil {
			return err
		}
		r.scan = append(r.scan, time.Since(start))

		start = time.Now()
		report, err := inspect.Look(inspect.Options{})
		if err != nil {
			return err
		}
		r.look = append(r.look, time.Since(start))
		held := 0
		for _, f := range report.Findings {
			if f.Interface != "" && len(f.By.Processes)+len(f.By.Pins) == 1 {
				held++
			}
		}
		if held != whoLinks {
			return fmt.Errorf("the holders of %d links were found, instead of %d", held, whoLinks)
		}

		start = time.Now()
		cmd := exec.Command(holdfast, "who", "-o", "json")
		output, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("holdfast who: %w", err)
		}
		r.command = append(r.command, time.Since(start))
		r.processor = append(r.processor, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
		if !json.Valid(output) {
			return errors.New("holdfast who -o json prints no JSON")
		}
	}
	return nil
}

func (r *whoResult) print(b *bytes.Buffer) {
	median := func(all []time.Duration) string { return duration(float64(quantile(all, 0.5))) }
	fmt.Fprintf(b, `# What it takes to see who holds what

`+"`go run ./bench -only who`"+` wrote this file; run it again, as root, for another machine.
Here it was Linux %s, with %d processors.

There are %d processes, %d of which have %d descriptors each, and %d links, each at an
interface of its own: %d are held by a process, the others pinned.

| | median of %d |
|---|---|
| `+"`holdfast who -o json`"+` | %s |
| its processor time | %s |
| `+"`inspect.Look`"+`, in a process that runs already | %s |
| to read the descriptors of all processes, once | %s |
`, r.kernel, runtime.NumCPU(), r.processes, whoProcesses, whoDescriptors+3, whoLinks, whoHeld,
		whoRounds, median(r.command), median(r.processor), median(r.look), median(r.scan))
}

// whoReport measures in namespaces of its own, and writes the document.
func whoReport(docs, holdfast, directory string) error {
	runtime.LockOSThread() // the child dies with the thread that started it
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", "-guest", "who", "-holdfast", holdfast, "-scratch", directory)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:    unix.SIGKILL,
	}
	output, err := cmd.Output()
	if err != nil {
		return err
	}
	fmt.Printf("%s", output)
	return os.WriteFile(filepath.Join(docs, "who-cost.md"), output, 0o644)
}
