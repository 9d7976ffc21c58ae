package xdp

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestADriverThatOnlySaysInvalidIsNotTakenForABadProgram(t *testing.T) {
	for _, c := range []struct {
		name, extack string
		mtu          int
		says         []string
		not          string
	}{
		{"silent", "", 9000, []string{"driver of eth0", "MTU of 9000", "LRO", "queues", "kernel's log"}, `, "`},
		{"with its own words", "MTU too large for XDP", 9000, []string{"driver of eth0", `"MTU too large for XDP"`}, "kernel's log"},
		{"of an interface that could not be read", "", 0, []string{"the MTU may be too large"}, "of 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &Error{Op: "attach", Hook: "eth0", Errno: unix.EINVAL, Extack: c.extack}
			e.addDriver("eth0", c.mtu)
			if !errors.Is(e, ErrNotSupported) {
				t.Errorf("it is %v", e.Err)
			}
			for _, want := range append(c.says, "xdp.frags", "mode generic") {
				if !strings.Contains(e.Error(), want) {
					t.Errorf("%q does not say %q", e, want)
				}
			}
			if strings.Contains(e.Error(), c.not) {
				t.Errorf("%q says %q", e, c.not)
			}
		})
	}
}
