// Package procfs is the door to /proc: which processes hold descriptors of a
// BPF link or program, and which process is which although pids are used
// again.
package procfs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holder is a process with a descriptor of a link or program.
type Holder struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
}

// Objects are the processes that hold each link and each program, by id.
type Objects struct {
	Links    map[uint32][]Holder
	Programs map[uint32][]Holder
}

// Processes are the pids of all processes that can be seen, in order.
func Processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.ParseUint(e.Name(), 10, 31); err == nil {
			pids = append(pids, int(pid))
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// Scan looks through the descriptors of all processes that the caller may
// look into; others, and those that end meanwhile, are left out. Descriptors
// under way in a socket are in no process.
func Scan() (Objects, error) { return scan("/proc") }

func scan(proc string) (Objects, error) {
	found := Objects{Links: map[uint32][]Holder{}, Programs: map[uint32][]Holder{}}
	var d directory
	if err := d.open(unix.AT_FDCWD, proc); err != nil {
		return found, fmt.Errorf("open %s: %w", proc, err)
	}
	defer d.close()
	entries, err := d.names()
	if err != nil {
		return found, fmt.Errorf("read %s: %w", proc, err)
	}
	var fds directory
	for _, name := range entries {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if fds.open(d.fd, name+"/fd") == nil {
			found.scanProcess(&fds, filepath.Join(proc, name), pid)
			fds.close()
		}
	}
	return found, nil
}

func (o *Objects) scanProcess(fds *directory, dir string, pid int) {
	names, err := fds.names()
	if err != nil {
		return
	}
	var comm string
	seen := map[string]bool{}
	for _, fd := range names {
		// readlink is cheap and nearly always the end of it; only a BPF
		// descriptor has its fdinfo read.
		var holders map[uint32][]Holder
		var key string
		target, err := fds.link(fd)
		if errors.Is(err, unix.EACCES) {
			return // a process that may not be looked into: it is so for all
		}
		switch string(target) {
		case "anon_inode:bpf_link", "anon_inode:bpf-link":
			holders, key = o.Links, "link_id"
		case "anon_inode:bpf-prog":
			holders, key = o.Programs, "prog_id"
		default:
			continue
		}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd))
		if err != nil {
			continue
		}
		id, ok := ParseFDInfo(info)[key]
		if !ok || seen[key+strconv.FormatUint(uint64(id), 10)] {
			continue
		}
		seen[key+strconv.FormatUint(uint64(id), 10)] = true
		if comm == "" {
			b, _ := os.ReadFile(filepath.Join(dir, "comm"))
			comm = strings.TrimSpace(string(b))
		}
		holders[id] = append(holders[id], Holder{PID: pid, Comm: comm})
	}
}

// Descriptor is a descriptor of a process.
type Descriptor struct {
	PID int
	// Path leads to what it is of, and Target is how the kernel calls that.
	Path, Target string
}

// Descriptors are the descriptors of all processes that the caller may look into,
// of what the kernel calls by a name that begins so, such as "net:[", by pid.
func Descriptors(prefix string) ([]Descriptor, error) {
	var all directory
	if err := all.open(unix.AT_FDCWD, "/proc"); err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	defer all.close()
	names, err := all.names()
	if err != nil {
		return nil, fmt.Errorf("read /proc: %w", err)
	}
	var found []Descriptor
	var fds directory
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || fds.open(all.fd, name+"/fd") != nil {
			continue
		}
		numbers, _ := fds.names()
		for _, fd := range numbers {
			target, err := fds.link(fd)
			if errors.Is(err, unix.EACCES) {
				break // it is so for all of this process
			}
			if err == nil && bytes.HasPrefix(target, []byte(prefix)) {
				found = append(found, Descriptor{pid, filepath.Join("/proc", name, "fd", fd), string(target)})
			}
		}
		fds.close()
	}
	slices.SortFunc(found, func(a, b Descriptor) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Path, b.Path))
	})
	return found, nil
}

// directory is an open directory whose links are read by name, with no more
// calls than that takes: a machine has thousands of descriptors.
type directory struct {
	fd      int
	entries []byte    // of one getdents
	found   []string  // of the last names
	target  [128]byte // of one link
}

func (d *directory) open(at int, path string) (err error) {
	d.fd, err = unix.Openat(at, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return err
}

func (d *directory) close() { unix.Close(d.fd) }

// names are the entries, without "." and "..", until the next call.
func (d *directory) names() ([]string, error) {
	if d.entries == nil {
		d.entries = make([]byte, 16<<10)
	}
	d.found = d.found[:0]
	for {
		n, err := unix.ReadDirent(d.fd, d.entries)
		if n <= 0 || err != nil {
			return d.found, err
		}
		_, _, d.found = unix.ParseDirent(d.entries[:n], -1, d.found)
	}
}

// link is where the link of that name points to, until the next call, and cut
// off where that is long.
func (d *directory) link(name string) ([]byte, error) {
	n, err := unix.Readlinkat(d.fd, name, d.target[:])
	if err != nil {
		return nil, err
	}
	return d.target[:n], nil
}

// ParseFDInfo reads the numbers from an fdinfo file of a BPF object, such as
// link_id, prog_id and ifindex. Lines that are no number are left out.
func ParseFDInfo(b []byte) map[string]uint32 {
	values := map[string]uint32{}
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
		if err == nil {
			values[key] = uint32(n)
		}
	}
	return values
}

// Sort orders holders by pid.
func Sort(h []Holder) { sort.Slice(h, func(i, j int) bool { return h[i].PID < h[j].PID }) }

// Process names one process for as long as the machine runs: the pid and when
// it started, in clock ticks since boot.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// ErrNoProcess says that no process has that pid.
var ErrNoProcess = errors.New("no such process")

// ReadProcess reads when the process started.
func ReadProcess(pid int) (Process, error) {
	s, err := readStat(pid)
	return Process{PID: pid, Start: s.start}, err
}

// Stopped tells whether the process has been stopped by a signal.
func Stopped(pid int) bool {
	s, err := readStat(pid)
	return err == nil && s.state == 'T'
}

// stat is what is read of /proc/PID/stat.
type stat struct {
	state   byte   // field 3: R, S, T, Z and so on
	parent  int    // field 4
	session int    // field 6
	start   uint64 // field 22, starttime
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return stat{}, fmt.Errorf("%w: %d", ErrNoProcess, pid)
	}
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// parseStat reads what follows the command's name, which is in parentheses and
// may contain anything, parentheses and spaces too.
func parseStat(b []byte) (stat, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return stat{}, errors.New("/proc/PID/stat: no command name")
	}
	fields := strings.Fields(string(b[i+1:]))
	const starttime = 22 - 3 // the first field after the name is number 3
	if len(fields) <= starttime {
		return stat{}, errors.New("/proc/PID/stat: too few fields")
	}
	parent, err1 := strconv.Atoi(fields[4-3])
	session, err2 := strconv.Atoi(fields[6-3])
	start, err3 := strconv.ParseUint(fields[starttime], 10, 64)
	return stat{fields[0][0], parent, session, start}, errors.Join(err1, err2, err3)
}

// Alive tells whether this very process still runs. One that has ended and
// waits for its parent to notice does not.
func (p Process) Alive() bool {
	s, err := readStat(p.PID)
	return err == nil && s.start == p.Start && s.state != 'Z' && s.state != 'X'
}

// Comm is the process's command name, empty where it can't be read.
func Comm(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Cgroup is the process's path in the unified cgroup hierarchy, empty where
// there is none.
func Cgroup(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path
		}
	}
	return ""
}

// UIDs are the process's real, effective, saved and file system's uid.
func UIDs(pid int) ([]int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("%w: %d", ErrNoProcess, pid)
	}
	if err != nil {
		return nil, err
	}
	return parseUIDs(string(b))
}

func parseUIDs(status string) ([]int, error) {
	for line := range strings.Lines(status) {
		// The command's name comes before, with its line ends escaped.
		value, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		fields := strings.Fields(value)
		uids := make([]int, len(fields))
		for n, field := range fields {
			uid, err := strconv.ParseUint(field, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("/proc/PID/status: %w", err)
			}
			uids[n] = int(uid)
		}
		if len(uids) == 4 {
			return uids, nil
		}
	}
	return nil, errors.New("/proc/PID/status: no four uids")
}
