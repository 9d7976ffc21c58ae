package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The groups of races, as one world runs them.
const (
	warmLink    = "by link, warm"
	coldLink    = "by link, cold"
	warmNetlink = "by netlink, warm"
	coldNetlink = "by netlink, cold"
	elsewhere   = "in another namespace"
	fromNames   = "from names"
	process     = "commands"
	crowded     = "commands, without grace periods"
	processList = "status by commands"
)

// results are what one world found out.
type results struct {
	Interfaces int
	Setup      time.Duration // to make the interfaces
	Races      map[string]*outcome
	Memory     map[string]map[string]int // KiB, by command and job
}

// inWorld runs this program again in namespaces of its own, which end with it.
// It ends when this process does, and prints its progress itself.
func inWorld(interfaces int, holdfast, directory string) (*results, error) {
	runtime.LockOSThread() // the child dies with the thread that started it
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe",
		"-interfaces", fmt.Sprint(interfaces), "-holdfast", holdfast, "-scratch", directory)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:    unix.SIGKILL,
	}
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("with %d interfaces: %w", interfaces, err)
	}
	r := &results{}
	return r, json.Unmarshal(output, r)
}

// child is the program that inWorld runs.
func child(interfaces int, holdfast, directory string, out io.Writer) error {
	if err := mounts(); err != nil {
		return err
	}
	w, err := newWorld(interfaces)
	if err != nil {
		return err
	}
	r := &results{Interfaces: interfaces, Setup: w.took, Races: map[string]*outcome{}}
	if err := w.libraryRaces(r); err != nil {
		return err
	}
	if err := w.commandRaces(r, holdfast, directory); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

// run makes one race and says so.
func (r *results) run(group string, rounds int, limit time.Duration, contenders []contender) error {
	start := time.Now()
	o, err := race(rounds, limit, contenders...)
	if err != nil {
		return fmt.Errorf("%s: %w", group, err)
	}
	r.Races[group] = o
	if r.Interfaces > 0 {
		fmt.Fprintf(os.Stderr, "bench: %4d interfaces, ", r.Interfaces)
	} else {
		fmt.Fprint(os.Stderr, "bench: ")
	}
	fmt.Fprintf(os.Stderr, "%s: %d rounds in %.1f s\n", group, o.Rounds, time.Since(start).Seconds())
	return nil
}

func (w *world) libraryRaces(r *results) error {
	n := len(w.hooks)
	limit := 5 * time.Second
	if n > 200 {
		limit *= 3 // a round takes a second there
	}
	two, err := load(2)
	if err != nil {
		return err
	}
	defer closeAll(two)
	if err := w.warm(two...); err != nil {
		return err
	}
	socket, err := dialBare()
	if err != nil {
		return err
	}
	defer socket.close()

	// A turn makes some twenty operations of each kind at least, and a hundred
	// replaces, which are quick.
	repeat, replaces := max(1, 20/n), max(1, 10/n)
	same := pairs(two, n)
	if err := r.run(warmLink, 500, limit, w.byLink(same, repeat, replaces, true)); err != nil {
		return err
	}
	if err := r.run(warmNetlink, 500, limit, w.byNetlink(socket, same, repeat, replaces)); err != nil {
		return err
	}
	if n == 1 {
		contenders, err := w.elsewhere(two[0], repeat)
		if err != nil {
			return err
		}
		if err := r.run(elsewhere, 300, 3*time.Second, contenders); err != nil {
			return err
		}
	}
	if err := r.run(fromNames, 100, 4*time.Second, w.fromNames(two[0])); err != nil {
		return err
	}
	if n > 200 {
		// The kernel keeps 48 programs in its XDP dispatcher, and waits for a
		// grace period when that changes: more programs tell nothing new.
		return nil
	}
	own, err := load(2 * n)
	if err != nil {
		return err
	}
	defer closeAll(own)
	if err := r.run(coldLink, 60, limit, w.byLink(pairs(own, n), 1, 1, false)); err != nil {
		return err
	}
	if n > 10 {
		return nil
	}
	return r.run(coldNetlink, 60, limit, w.byNetlink(socket, pairs(own, n), 1, 1))
}

func (w *world) commandRaces(r *results, holdfast, directory string) error {
	object, err := objectFile(directory)
	if err != nil {
		return err
	}
	commands := tools(holdfast, w.names[0], object)
	if len(w.hooks) == 1 {
		if err := r.run(process, 60, 18*time.Second, w.commands(commands)); err != nil {
			return err
		}
		if r.Memory, err = memory(commands, false); err != nil {
			return err
		}
	}
	program, err := load(1)
	if err != nil {
		return err
	}
	defer closeAll(program)
	remove, err := w.attachEverywhere(program[0])
	if err != nil {
		return err
	}
	if len(w.hooks) > 200 {
		// Its status takes the square of the interfaces: more than ten seconds.
		commands = slices.DeleteFunc(commands, func(t tool) bool { return t.name == xdpLoader })
	}
	if err := r.run(processList, 40, 15*time.Second, statuses(commands)); err != nil {
		return err
	}
	if len(w.hooks) > 1 {
		if r.Memory, err = memory(commands, true); err != nil {
			return err
		}
	}
	if err := remove(); err != nil {
		return err
	}
	if len(w.hooks) > 1 {
		return nil
	}
	// With the kernel's dispatcher full, what commands load does not enter it:
	// nothing is left then but the commands' own time.
	crowd, err := load(dispatcherSize)
	if err != nil {
		return err
	}
	defer closeAll(crowd)
	if err := w.warm(crowd...); err != nil {
		return err
	}
	contenders := append(w.commands(commands), starts(holdfast, filepath.Join(directory, "nothing"))...)
	return r.run(crowded, 60, 12*time.Second, contenders)
}

// dispatcherSize is BPF_DISPATCHER_MAX.
const dispatcherSize = 48

// firstLine runs a command that tells a version, and is empty where it can't.
func firstLine(line []string) string {
	b, err := exec.Command(line[0], line[1:]...).Output()
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(first)
}
