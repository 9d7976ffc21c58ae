package clitest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/packaging"
)

// limited runs the command as systemd starts a service: with no other capabilities
// than those of the first argument, of which no other process gets more.
func limited(args []string) int {
	runtime.LockOSThread() // they are the thread's, which then becomes the process
	keep := strings.Split(args[0], ",")
	for c := range unix.CAP_LAST_CAP + 1 {
		if slices.Contains(keep, strconv.Itoa(c)) {
			continue
		}
		// A kernel may have fewer.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	name, value, _ := strings.Cut(kerneltest.CommandEnv("holdfast"), "=")
	os.Setenv(name, value)
	fmt.Fprintln(os.Stderr, unix.Exec(self, append([]string{self}, args[1:]...), os.Environ()))
	return 1
}

// capabilities are those that the unit of the daemon leaves.
var capabilities = map[string]int{
	"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE,
	"CAP_SYS_CHROOT": unix.CAP_SYS_CHROOT, "CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
}

func TestTheCapabilitiesOfTheUnitAreEnoughAndNoneIsTooMuch(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { unix.Unmount(arbiter.DefaultDir, unix.MNT_DETACH); os.RemoveAll("/run/holdfast") })
	object := kerneltest.ObjectFile(t, "pass")

	// Somebody else's link, which a process of another user holds, in another
	// network namespace.
	theirs := kerneltest.Pass(t, "theirs", nil)
	if err := m.Near.Conn.AddVethAt(1000, "foreign0", 1001, "foreign0p"); err != nil {
		t.Fatal(err)
	}
	var link kernel.FD
	m.Near.In(t, func() (err error) {
		link, err = kernel.LinkCreateXDP(theirs.FD(), 1000, 0)
		return err
	})
	other := kerneltest.Command("holdfast", "child", "until killed")
	other.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	held := os.NewFile(uintptr(link), "link")
	other.ExtraFiles = []*os.File{held}
	holder := m.Far.Start(t, other)
	holder.Lines.Scan()
	held.Close()
	netns := strconv.Itoa(holder.PID())

	// all does what the daemon has to, and says what failed first.
	all := func(keep []string) string {
		command := func(args ...string) result {
			var numbers []string
			for _, name := range keep {
				numbers = append(numbers, strconv.Itoa(capabilities[name]))
			}
			cmd := m.command(append([]string{strings.Join(numbers, ",")}, args...)...)
			name, value, _ := strings.Cut(kerneltest.CommandEnv("limited"), "=")
			cmd.Env = append(cmd.Env, name+"="+value, "HOLDFAST_BPFFS=")
			// As ProtectSystem= does.
			cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
			return m.finish(m.Near, cmd)
		}
		for _, args := range [][]string{
			{"attach", m.NearName, object, "--name", "one"},
			{"attach", m.NearName, object, "--name", "two"},
			{"replace", m.NearName, "two", object},
			{"attach", m.FarName, object, "--netns", netns},
			{"detach", m.FarName, "--netns", netns},
			{"attach", "foreign0p", object, "--shared"},
			{"status"},
			{"gc"},
			{"features"},
			{"detach", m.NearName, "two"},
			{"detach", m.NearName, "one"},
			{"detach", "foreign0p"},
		} {
			if r := command(args...); r.code != 0 {
				return r.String()
			}
		}
		if r := command("status", "-o", "json"); !strings.Contains(r.out, fmt.Sprintf(`"pid": %d,`, holder.PID())) {
			return "status does not show who holds the link: " + r.String()
		}
		return ""
	}
	unit := strings.Fields(packaging.Values(packaging.Service, "CapabilityBoundingSet")[0])
	if failed := all(unit); failed != "" {
		t.Errorf("with all capabilities of the unit: %s", failed)
	}
	for _, c := range unit {
		if _, ok := capabilities[c]; !ok {
			t.Errorf("the test does not know %s", c)
		}
		without := slices.DeleteFunc(slices.Clone(unit), func(o string) bool { return o == c })
		if all(without) == "" {
			t.Errorf("%s is not needed", c)
		}
		// What could be done is undone.
		for _, args := range [][]string{{m.NearName, "two"}, {m.NearName, "one"}, {"foreign0p"}} {
			m.holdfast(append([]string{"detach", "--bpffs", arbiter.DefaultDir}, args...)...)
		}
	}
}
