package procfs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// linkInfo is what Linux 6.18 shows of an XDP link.
const linkInfo = `pos:	0
flags:	02000002
mnt_id:	17
ino:	1057
link_type:	xdp
link_id:	1072152
prog_tag:	614b434cd8324ecc
prog_id:	76964
ifindex:	2
`

func TestTheNumbersOfAnFDInfoAreRead(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       map[string]uint32
	}{
		{"a link", linkInfo, map[string]uint32{"pos": 0, "flags": 2000002, "mnt_id": 17, "ino": 1057, "link_id": 1072152, "prog_id": 76964, "ifindex": 2}},
		{"nothing", "", map[string]uint32{}},
		{"no colon", "link_id 7\n", map[string]uint32{}},
		{"no number", "link_id:\tseven\n", map[string]uint32{}},
		{"no value", "link_id:\n", map[string]uint32{}},
		{"the largest id", "link_id:\t4294967295\n", map[string]uint32{"link_id": 4294967295}},
		{"one more", "link_id:\t4294967296\n", map[string]uint32{}},
		{"a negative one", "link_id:\t-1\n", map[string]uint32{}},
		{"no end of line", "link_id:\t7", map[string]uint32{"link_id": 7}},
		{"a line longer than any buffer before it", strings.Repeat("x", 100_000) + "\nlink_id:\t7\n", map[string]uint32{"link_id": 7}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ParseFDInfo([]byte(c.text)); !maps.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// FuzzFDInfo: every number that is read is in the text, behind its name.
func FuzzFDInfo(f *testing.F) {
	f.Add([]byte(linkInfo))
	f.Add([]byte("link_id:\t+7\nlink_id:7\r\n:1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for key, value := range ParseFDInfo(text) {
			if strings.ContainsAny(key, ":\n") {
				t.Errorf("a name is %q", key)
			}
			if !slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool {
				number, ok := strings.CutPrefix(line, key+":")
				n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32)
				return ok && err == nil && uint32(n) == value
			}) {
				t.Errorf("%s is %d, which is not in %q", key, value, text)
			}
		}
	})
}

// statLine is a line of /proc/PID/stat with that command and start time.
func statLine(comm string, start uint64) []byte {
	return fmt.Appendf(nil, "311 (%s) S 1 311 311 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 %d 9 10\n", comm, start)
}

func TestTheStartOfAProcessIsReadWhateverItsName(t *testing.T) {
	for _, comm := range []string{"sleep", "", "a b", "a) S 1 (b", ")", "((((", "tab\there"} {
		if got, err := parseStat(statLine(comm, 4711)); err != nil || got != (stat{'S', 1, 311, 4711}) {
			t.Errorf("command %q: %+v (%v)", comm, got, err)
		}
	}
	for what, text := range map[string]string{
		"nothing":        "",
		"no name":        "311 S 1 311",
		"too few fields": "311 (sleep) S 1 311",
		"no number":      strings.Replace(string(statLine("sleep", 4711)), "4711", "soon", 1),
		"a negative one": strings.Replace(string(statLine("sleep", 4711)), "4711", "-1", 1),
	} {
		if got, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

func TestAZombieIsNotAlive(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	p, err := ReadProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	// Nobody waits for it yet, so it stays a zombie.
	for deadline := time.Now().Add(10 * time.Second); p.Alive(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it has ended, or should have, and is alive")
		}
	}
	if _, err := ReadProcess(p.PID); err != nil {
		t.Errorf("it is no zombie: %v", err)
	}
}

// FuzzStat: the start is read behind every name, and nothing crashes it.
func FuzzStat(f *testing.F) {
	f.Add("sleep", uint64(1), []byte("311 (sleep"))
	f.Add("a) S 1 2 3 (b", uint64(1<<63), statLine("x", 1))
	f.Fuzz(func(t *testing.T, comm string, start uint64, text []byte) {
		parseStat(text) // must only not crash
		if got, err := parseStat(statLine(comm, start)); err != nil || got != (stat{'S', 1, 311, start}) {
			t.Errorf("command %q, started at %d, reads as %+v (%v)", comm, start, got, err)
		}
	})
}

// fakeProcess makes a directory like /proc/PID, with descriptors by number.
func fakeProcess(t *testing.T, proc, pid, comm string, fds map[string][2]string) {
	t.Helper()
	dir := filepath.Join(proc, pid)
	for _, sub := range []string{"fd", "fdinfo"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "comm"), []byte(comm+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for fd, d := range fds {
		if err := os.Symlink(d[0], filepath.Join(dir, "fd", fd)); err != nil {
			t.Fatal(err)
		}
		if d[1] == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "fdinfo", fd), []byte(d[1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHoldersAreFoundOnceByProcessAndObject(t *testing.T) {
	proc := t.TempDir()
	fakeProcess(t, proc, "10", "guard", map[string][2]string{
		"0": {"/dev/null", ""},
		"3": {"anon_inode:bpf_link", "link_id:\t7\nprog_id:\t70\n"},
		"4": {"anon_inode:bpf_link", "link_id:\t7\nprog_id:\t70\n"}, // a second one
		"5": {"anon_inode:bpf-link", "link_id:\t8\n"},               // as Linux before 5.9 names it
		"6": {"anon_inode:bpf-prog", "prog_id:\t70\n"},
		"7": {"anon_inode:bpf-map", "map_id:\t1\n"},
		"8": {"anon_inode:bpf_link", ""}, // closed meanwhile
	})
	fakeProcess(t, proc, "9", "helper", map[string][2]string{"3": {"anon_inode:bpf_link", "link_id:\t7\n"}})
	fakeProcess(t, proc, "self", "not a pid", map[string][2]string{"3": {"anon_inode:bpf_link", "link_id:\t7\n"}})
	if err := os.Mkdir(filepath.Join(proc, "11"), 0o700); err != nil { // ends meanwhile
		t.Fatal(err)
	}
	got, err := scan(proc)
	if err != nil {
		t.Fatal(err)
	}
	for _, holders := range got.Links {
		Sort(holders)
	}
	guard, helper := Holder{10, "guard"}, Holder{9, "helper"}
	if want := map[uint32][]Holder{7: {helper, guard}, 8: {guard}}; fmt.Sprint(got.Links) != fmt.Sprint(want) {
		t.Errorf("links are held by %v, want %v", got.Links, want)
	}
	if want := map[uint32][]Holder{70: {guard}}; fmt.Sprint(got.Programs) != fmt.Sprint(want) {
		t.Errorf("programs are held by %v, want %v", got.Programs, want)
	}
}

func TestAProcessIsTheOneThatHasItsPidAndStart(t *testing.T) {
	self, err := ReadProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.Alive() {
		t.Error("this process is not alive")
	}
	if before := (Process{PID: self.PID, Start: self.Start - 1}); before.Alive() {
		t.Error("a process that started earlier is alive under the same pid")
	}
	const none = 1 << 22 // PID_MAX_LIMIT, one too many
	if _, err := ReadProcess(none); !errors.Is(err, ErrNoProcess) {
		t.Errorf("process %d: %v", none, err)
	}
	if Comm(none) != "" || Cgroup(none) != "" {
		t.Error("a process that is not there has a name or a cgroup")
	}
	if Comm(self.PID) == "" {
		t.Error("this process has no name")
	}
}

func BenchmarkScan(b *testing.B) {
	for b.Loop() {
		if _, err := Scan(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTheUIDsOfAProcessAreRead(t *testing.T) {
	for _, c := range []struct {
		name, status string
		want         []int // nil: an error
	}{
		{"as the kernel has it", "Name:\tx\nUmask:\t0022\nState:\tS (sleeping)\nUid:\t1000\t0\t0\t4294967295\nGid:\t1\t2\t3\t4\n", []int{1000, 0, 0, 4294967295}},
		{"a name that looks like the line", "Name:\tUid:\t0\nUid:\t1\t1\t1\t1\n", []int{1, 1, 1, 1}},
		{"none", "Name:\tx\n", nil},
		{"three", "Uid:\t1\t1\t1\n", nil},
		{"no number", "Uid:\t1\t1\t1\tx\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseUIDs(c.status)
			if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
				t.Errorf("got %v (%v), want %v", got, err, c.want)
			}
		})
	}
	if got, err := UIDs(os.Getpid()); err != nil || got[0] != os.Getuid() || got[1] != os.Geteuid() {
		t.Errorf("the own ones are %v (%v)", got, err)
	}
	if _, err := UIDs(1 << 30); !errors.Is(err, ErrNoProcess) {
		t.Errorf("of no process: %v", err)
	}
}
