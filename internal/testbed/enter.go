// Package testbed is a place of one's own to try things on the real kernel:
// namespaces whose end takes everything with it, two interfaces wired to each
// other, and bounded traffic between them. The demo and the tests are made of
// it; tests use it through internal/kerneltest.
package testbed

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

const stageEnv = "HOLDFAST_TESTBED_STAGE"

// Outside tells, before Enter is called, whether it will make the namespaces.
func Outside() bool { return os.Getenv(stageEnv) == "" }

// Enter runs this program once more, with the same arguments, in network, mount
// and process namespaces of its own, with an empty /run, and returns its exit
// code. In the program that it runs Enter returns inside at once: what follows
// happens there, and is gone, processes and pins too, when the program ends.
// It needs root.
func Enter() (inside bool, code int, err error) {
	switch os.Getenv(stageEnv) {
	case "":
		if os.Getuid() != 0 {
			return false, 1, errors.New("making namespaces needs root")
		}
		code, err = again("init", &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
			Pdeathsig:  syscall.SIGKILL,
		})
		return false, code, err
	case "init":
		code, err = initProcess()
		return false, code, err
	}
	return true, 0, os.Unsetenv(stageEnv)
}

// initProcess is process 1: it makes the mounts private and reaps whoever is
// left behind, as a machine's does.
func initProcess() (int, error) {
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"),
	} {
		if err != nil {
			return 1, fmt.Errorf("make private mounts: %w", err)
		}
	}
	return again("inside", &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL})
}

// again runs this binary with the same arguments and returns its exit code.
// It reaps every child, not only that one, and passes on a request to end.
func again(stage string, attr *syscall.SysProcAttr) (int, error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	if err := os.Setenv(stageEnv, stage); err != nil {
		return 1, err
	}
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   attr,
	})
	if err != nil {
		return 1, fmt.Errorf("start in own namespaces: %w", err)
	}
	go func() {
		for s := range signals {
			_ = p.Signal(s)
		}
	}()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait for what runs in own namespaces: %w", err)
		case pid == p.Pid && status.Exited():
			return status.ExitStatus(), nil
		case pid == p.Pid:
			return 1, fmt.Errorf("ended by signal %s", status.Signal())
		}
	}
}
