package kerneltest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"golang.org/x/sys/unix"
)

// patience is how long what the kernel releases later is waited for.
const patience = 10 * time.Second

// NoLeaks fails the test if, once it has cleaned up, a program, a map or a link
// is on the machine that was not there before, or the process has more
// descriptors of BPF objects, of network namespaces, or of sockets. It waits a
// little, because the kernel releases much of that later. Call it first.
func NoLeaks(t testing.TB) {
	t.Helper()
	noLeaks(t, patience)
}

func noLeaks(t testing.TB, patience time.Duration) {
	t.Helper()
	before, err := look()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var left []string
		var err error
		clean := eventually(patience, func() bool {
			var after possessions
			after, err = look()
			left = before.lacks(after)
			if err == nil && len(left) == 0 {
				return true
			}
			runtime.GC() // see CloseLater
			return false
		})
		if !clean {
			t.Errorf("left behind: %s (%v)", strings.Join(left, ", "), err)
		}
	})
}

// possessions are what can be left behind: things of the machine that have a
// name, and how many descriptors of a kind the process has.
type possessions struct {
	things      map[string]bool
	descriptors map[string]int
}

// lacks lists what is in q and not in p.
func (p possessions) lacks(q possessions) []string {
	var list []string
	for thing := range q.things {
		if !p.things[thing] {
			list = append(list, thing)
		}
	}
	for kind, n := range q.descriptors {
		if more := n - p.descriptors[kind]; more > 0 {
			list = append(list, fmt.Sprintf("%d descriptors of %s", more, kind))
		}
	}
	slices.Sort(list)
	return list
}

func look() (possessions, error) {
	p := possessions{things: map[string]bool{}, descriptors: map[string]int{}}
	for _, add := range []func() error{p.addPrograms, p.addMaps, p.addLinks, p.addDescriptors} {
		if err := add(); err != nil {
			return p, err
		}
	}
	return p, nil
}

// addPrograms adds the programs of the types that Holdfast loads. Others come
// and go with whatever else runs on the machine.
func (p possessions) addPrograms() error {
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		id = next
		fd, err := kernel.ProgramByID(uint32(id))
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		info, err := kernel.ReadProgram(fd)
		fd.Close()
		if err != nil {
			return err
		}
		if t := ebpf.ProgramType(info.Type); t == ebpf.XDP || t == ebpf.Extension {
			p.things[fmt.Sprintf("program %d %q", id, info.Name)] = true
		}
	}
}

func (p possessions) addMaps() error {
	for id := ebpf.MapID(0); ; {
		next, err := ebpf.MapGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		p.things[fmt.Sprintf("map %d", next)] = true
		id = next
	}
}

func (p possessions) addLinks() error {
	links, err := kernel.XDPLinks()
	for _, l := range links {
		p.things[fmt.Sprintf("link %+v", l)] = true
	}
	return err
}

func (p possessions) addDescriptors() error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil {
			continue // that of the directory itself
		}
		kind, _, _ := strings.Cut(target, ":[") // as in net:[4026531840]
		switch {
		case strings.HasPrefix(kind, "anon_inode:bpf"), kind == "net", kind == "socket":
			p.descriptors[kind]++
		}
	}
	return nil
}

// Eventually tells whether f becomes true within some seconds.
func Eventually(f func() bool) bool { return eventually(patience, f) }

func eventually(patience time.Duration, f func() bool) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		if f() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
