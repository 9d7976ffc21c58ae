package cli

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// signals gives every signal that the process gets, until stop is called. Sent
// again before it was taken, a signal comes once, as from the kernel; none is
// lost because of another.
//
// What the process was told to ignore, by nohup say, it goes on to ignore, and
// so does what it starts. Go keeps to that for SIGHUP and SIGINT only.
func signals() (all <-chan os.Signal, stop func()) {
	merged, done := make(chan os.Signal), make(chan struct{})
	var each []chan os.Signal
	for s := syscall.Signal(1); s <= lastSignal; s++ {
		// Go's scheduler sends SIGURG to itself.
		if s == unix.SIGURG || signal.Ignored(s) {
			continue
		}
		one := make(chan os.Signal, 1)
		signal.Notify(one, s)
		each = append(each, one)
		go func() {
			for {
				select {
				case s := <-one:
					select {
					case merged <- s:
					case <-done:
						return
					}
				case <-done:
					return
				}
			}
		}()
	}
	return merged, func() {
		for _, one := range each {
			signal.Stop(one)
		}
		close(done)
	}
}

const lastSignal = 64 // SIGRTMAX
