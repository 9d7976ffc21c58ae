// Package kerneltest is what tests on a real kernel share: private namespaces,
// interfaces, a bpffs, bounded traffic, and checks that nothing was left
// behind.
//
// A package with kernel tests calls [Main] from its TestMain. The tests then run
// in network, mount and process namespaces of their own, whose end takes
// everything with it, and one package at a time, so that what they find on the
// machine is theirs.
package kerneltest

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/testbed"
	"github.com/holdfast-bpf/holdfast/internal/vm"
	"golang.org/x/sys/unix"
)

// commandEnv makes the test binary behave as one of its commands.
const commandEnv = "HOLDFAST_TEST_COMMAND"

// Commands are functions that a test can run as a process of their own, by
// [Command]. They get what follows the name and return the exit code.
type Commands map[string]func(args []string) int

// Main runs the tests of a package. It does not return.
func Main(m *testing.M, commands Commands) {
	if name := os.Getenv(commandEnv); name != "" {
		// It stays set, for a command that starts itself again.
		run, ok := commands[name]
		if !ok {
			fatal(fmt.Errorf("the test binary has no command %q", name))
		}
		os.Exit(run(os.Args[1:]))
	}
	if testbed.Outside() {
		alone()
	}
	inside, code, err := testbed.Enter()
	if err != nil {
		fatal(err)
	}
	if !inside {
		os.Exit(code)
	}
	// Before Linux 5.11 programs and maps count against RLIMIT_MEMLOCK.
	if err := kernel.RemoveMemlock(); err != nil {
		fatal(err)
	}
	os.Exit(m.Run())
}

// kernelEnv names the environment that the tests run in, as vmtest has it: a
// kernel of the matrix, in a virtual machine, or "host"; "go test" sets none.
const kernelEnv = "HOLDFAST_TEST_KERNEL"

// Host is the machine's own kernel, which can be any.
const Host = "host"

// Kernel is the name of the kernel that the tests run on: one of the matrix, in
// a virtual machine, or Host.
func Kernel() string { return cmp.Or(os.Getenv(kernelEnv), Host) }

// InMachine tells whether the tests run in a virtual machine, where all takes
// many times as long.
func InMachine() bool { return Kernel() != Host }

// Rounds is how often a race is run that is to have so many rounds, and that some
// machines' own kernels can't run, because it takes freplace: all of them on the
// machine's own kernel and on one of the matrix, and a quarter on the others. What
// is a race on one is one on all, and eight processes at once are what takes
// longest there.
func Rounds(full int) int {
	if Kernel() == vm.Full {
		return full
	}
	return HostRounds(full)
}

// HostRounds is Rounds for what every machine's own kernel can run: a quarter of it
// is enough on all of the matrix.
func HostRounds(full int) int {
	if InMachine() {
		return full / 4
	}
	return full
}

// Sample says which of many points in a row are taken: not the first Skip ones, and
// then one, and not the next Between.
type Sample struct{ Skip, Between int }

// Takes tells whether the i-th point, counted from 0, is taken.
func (s Sample) Takes(i int) bool { return i >= s.Skip && (i-s.Skip)%(1+s.Between) == 0 }

// OneOf is every n-th point in a virtual machine, on each kernel beginning with
// another one, and all on the machine's own kernel. It takes an odd n: what a test
// does at every second point it would do at all of them or at none otherwise.
func OneOf(n int) Sample {
	if n%2 == 0 {
		panic(fmt.Sprintf("kerneltest: every %d. point is always an odd one, or always an even one", n))
	}
	if !InMachine() {
		return Sample{}
	}
	return Sample{Skip: max(0, slices.Index(vm.Kernels(), Kernel())) % n, Between: n - 1}
}

// OneOfElsewhere is OneOf for what some machines' own kernels can't run: on the kernel
// that makes all of [Rounds] it is all of them.
func OneOfElsewhere(n int) Sample {
	if Kernel() == vm.Full {
		return Sample{}
	}
	return OneOf(n)
}

// Command is a process that runs one of the commands given to Main.
func Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), commandEnv+"="+name)
	// It must not outlive the test that forgot it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// CommandEnv is what makes the test binary run a command, for those who start
// it themselves.
func CommandEnv(name string) string { return commandEnv + "=" + name }

// Drop gives up capabilities of the whole process, for good.
func Drop(caps ...int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	for _, c := range caps {
		data[c/32].Effective &^= 1 << (c % 32)
		data[c/32].Permitted &^= 1 << (c % 32)
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "kerneltest:", err)
	os.Exit(1)
}

// lockDir is what is locked. It is root's: a file where everybody may make files
// could be another user's, and then root may not open it (fs.protected_regular).
const lockDir = "/run/holdfast-kerneltest"

// alone waits until no other package's kernel tests run, and locks them out
// until the process ends.
func alone() {
	if os.Getuid() != 0 {
		fatal(errors.New("tests on a kernel need root"))
	}
	if err := os.Mkdir(lockDir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		fatal(err)
	}
	lock, err := unix.Open(lockDir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		fatal(fmt.Errorf("open %s: %w", lockDir, err))
	}
	for {
		err := unix.Flock(lock, unix.LOCK_EX)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EINTR) {
			fatal(fmt.Errorf("lock %s: %w", lockDir, err))
		}
	}
}
