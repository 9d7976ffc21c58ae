package netns

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// New makes an empty network namespace, which ends when nothing refers to it
// any more: no descriptor, no process, no name. It needs CAP_SYS_ADMIN. The
// caller closes it.
func New() (*NS, error) {
	var ns *NS
	err := away(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		ns, err = Open("")
		return err
	})
	return ns, err
}
