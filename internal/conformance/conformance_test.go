package conformance

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { kerneltest.Main(m, commands) }

// row is one fact. Both halves start from given, each in a place of its own.
type row struct {
	name string

	// since is the first kernel that has what the row is about, and lacking
	// what the ones before it lack. The zero version is every kernel.
	since   version
	lacking string

	given func(*place)

	// kernel makes the bare system calls, and want is their answer.
	kernel func(*place) error
	want   answer

	// xdp says the same to package xdp, and gives is what it returns.
	xdp   func(*place) error
	gives result
	// cannot says why it cannot be said to package xdp.
	cannot string

	// differs holds what other kernels do.
	differs []difference
}

// answer is what the kernel does.
type answer struct {
	errno syscall.Errno // 0 for success
	// extack is the kernel's own sentence; bpf(2) has none.
	extack string
	// leaves is what is attached afterwards, in the words of [place.state]. A
	// refusal leaves everything as it was, unless the row says what.
	leaves string
}

func ok(leaves string) answer { return answer{leaves: leaves} }

func refused(errno syscall.Errno, extack string) answer {
	return answer{errno: errno, extack: extack}
}

// result is what package xdp returns.
type result struct {
	err    error // a sentinel, nil for success
	leaves string
	check  func(*place, *xdp.Error)
}

func done(leaves string) result { return result{leaves: leaves} }

// fails is an error. The checks look closer.
func fails(sentinel error, checks ...func(*place, *xdp.Error)) result {
	return result{err: sentinel, check: func(p *place, e *xdp.Error) {
		for _, check := range checks {
			check(p, e)
		}
	}}
}

// difference is what some kernels do instead.
type difference struct {
	on   kernels
	why  string
	want answer
	// gives is what package xdp returns there, and cannot why it cannot be
	// asked.
	gives  result
	cannot string
}

type version struct{ major, minor int }

func (v version) less(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

// kernels says which kernels are meant.
type kernels struct {
	name string
	are  func(version) bool
}

func before(v version) kernels {
	return kernels{"before Linux " + v.String(), func(k version) bool { return k.less(v) }}
}

// since619 are the kernels from 6.19 on, and those of the 6.12 series, which got
// the same by way of the stable tree (seen in 6.12.117 and 7.3.4, and not in
// 6.1.0-56 of Debian 12 nor in 6.18.44).
var since619 = kernels{"Linux 6.12.y and from 6.19 on", func(k version) bool {
	return k == version{6, 12} || !k.less(version{6, 19})
}}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

var running = func() version {
	var uts unix.Utsname
	var v version
	if err := unix.Uname(&uts); err != nil {
		panic(err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &v.major, &v.minor); err != nil {
		panic(fmt.Sprintf("kernel release %q: %v", release, err))
	}
	return v
}()

// environment is where the test runs: a kernel of the matrix by its name, or
// "host".
func environment() string {
	if name := os.Getenv("HOLDFAST_TEST_KERNEL"); name != "" {
		return name
	}
	return "host"
}

func TestConformance(t *testing.T) {
	name := environment()
	if name != "host" && name != "newest" && name != running.String() {
		t.Fatalf("this is said to be kernel %s, and it is %s", name, running)
	}
	rows := 0
	for _, section := range []struct {
		name string
		rows []row
	}{
		{"1 netlink", netlinkRows},
		{"2 link", linkRows},
		{"2 link lifetime", lifetimeRows},
		{"3 actors", actorRows()},
		{"5 gap", gapRows()},
	} {
		t.Run(section.name, func(t *testing.T) {
			seen := map[string]bool{}
			for _, r := range section.rows {
				if seen[r.name] {
					t.Errorf("two rows are called %q", r.name)
				}
				seen[r.name] = true
				t.Run(r.name, func(t *testing.T) {
					r.run(t)
					rows++
				})
			}
		})
	}
	t.Logf("COUNT conformance rows %d", rows)
}

func (r row) run(t *testing.T) {
	if (r.xdp == nil) == (r.cannot == "") {
		t.Fatal("a row has either what package xdp returns or why it cannot be asked")
	}
	if running.less(r.since) {
		t.Skipf("needs Linux %s, for %s", r.since, r.lacking)
	}
	want, gives, cannot := r.want, r.gives, r.cannot
	for _, d := range r.differs {
		if d.on.are(running) {
			t.Logf("%s: %s", d.on.name, d.why)
			want, gives, cannot = d.want, d.gives, d.cannot
			break
		}
	}
	kerneltest.NoLeaks(t)
	r.runHalf(newPlace(t, "kernel"), r.kernel, func(p *place, err error) string { return want.verify(p, err) })
	if cannot == "" {
		r.runHalf(newPlace(t, "xdp"), r.xdp, func(p *place, err error) string { return gives.verify(p, err) })
	}
}

// runHalf makes the calls and compares their answer, and what they leave
// attached.
func (r row) runHalf(p *place, calls func(*place) error, verify func(*place, error) string) {
	p.Helper()
	if r.given != nil {
		r.given(p)
	}
	before := p.state()
	leaves := verify(p, calls(p))
	if leaves == unchanged {
		leaves = before
	}
	// A link lets go some milliseconds after its last descriptor closed.
	var now string
	if !kerneltest.Eventually(func() bool { now = p.state(); return now == leaves || leaves == before }) || now != leaves {
		p.Errorf("%s: attached is %q, want %q", p.half, now, leaves)
	}
}

const (
	empty = ""
	// unchanged is whatever was attached before.
	unchanged = "unchanged"
	// gone says that there is no such interface.
	gone = "no interface"
)

// verify compares the kernel's answer and returns what must be attached.
func (a answer) verify(p *place, err error) string {
	p.Helper()
	var errno syscall.Errno
	var said string
	var answered *rtnl.Error
	switch {
	case err == nil:
	case errors.As(err, &answered):
		errno, said = answered.Errno, answered.Extack
	case !errors.As(err, &errno):
		p.Fatalf("kernel: %v", err)
	}
	if errno != a.errno || a.extack != "" && said != a.extack {
		p.Errorf("kernel: the answer is %s, want %s", describe(errno, said), describe(a.errno, a.extack))
	}
	if a.errno != 0 && a.leaves == "" {
		return unchanged
	}
	return a.leaves
}

func describe(errno syscall.Errno, extack string) string {
	words := []string{"OK"}
	if errno != 0 {
		words[0] = unix.ErrnoName(errno)
	}
	if extack != "" {
		words = append(words, fmt.Sprintf("%q", extack))
	}
	return strings.Join(words, " ")
}

// verify compares what package xdp returned and returns what must be attached.
func (r result) verify(p *place, err error) string {
	p.Helper()
	if !errors.Is(err, r.err) {
		p.Errorf("xdp: returned %v, want %v", err, r.err)
	}
	if r.err == nil {
		return r.leaves
	}
	var e *xdp.Error
	if !errors.As(err, &e) {
		p.Fatalf("xdp: %v is no *xdp.Error", err)
	}
	p.Logf("xdp: %v", e)
	if r.check != nil {
		r.check(p, e)
	}
	if r.leaves == "" {
		return unchanged
	}
	return r.leaves
}

// rival checks that the error names the program that is in the way.
func rival(name string, mode xdp.Mode, held xdp.Holding) func(*place, *xdp.Error) {
	return func(p *place, e *xdp.Error) {
		p.Helper()
		r := e.Rival
		if r == nil {
			p.Errorf("xdp: %v names no rival, want program %q", e, name)
			return
		}
		if r.Program.ID != p.id(name) || r.Program.Name != name || r.Mode != mode || r.Held != held {
			p.Errorf("xdp: the rival is %+v, want program %d %q in mode %s, held by %s", *r, p.id(name), name, mode, held)
		}
		if held == xdp.HeldByLink && r.LinkID == 0 {
			p.Errorf("xdp: the rival %+v has no link id", *r)
		}
	}
}

// noRival checks that the error does not invent one.
func noRival(p *place, e *xdp.Error) {
	p.Helper()
	if e.Rival != nil {
		p.Errorf("xdp: %v names a rival on an empty hook", e)
	}
}

// says checks that the message has these words in it.
func says(words ...string) func(*place, *xdp.Error) {
	return func(p *place, e *xdp.Error) {
		p.Helper()
		for _, w := range words {
			if !strings.Contains(e.Error(), w) {
				p.Errorf("xdp: %q does not say %q", e, w)
			}
		}
	}
}
