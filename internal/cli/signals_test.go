package cli

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNoSignalIsLostForOthers(t *testing.T) {
	all, stop := signals()
	defer stop()
	missing := map[os.Signal]bool{unix.SIGTERM: true, unix.SIGUSR1: true, unix.SIGWINCH: true}
	for s := syscall.Signal(35); s <= lastSignal; s++ {
		missing[s] = true
	}
	for s := range missing {
		if err := unix.Kill(os.Getpid(), s.(syscall.Signal)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.After(time.Minute); len(missing) > 0; {
		select {
		case s := <-all:
			delete(missing, s)
		case <-deadline:
			t.Fatalf("%v did not come", missing)
		}
	}
}

func TestWhatIsIgnoredStaysIgnored(t *testing.T) {
	signal.Ignore(unix.SIGHUP)
	defer signal.Reset(unix.SIGHUP)
	_, stop := signals()
	defer stop()
	if !signal.Ignored(unix.SIGHUP) || signal.Ignored(unix.SIGTERM) {
		t.Errorf("SIGHUP is ignored: %t, SIGTERM: %t", signal.Ignored(unix.SIGHUP), signal.Ignored(unix.SIGTERM))
	}
}
