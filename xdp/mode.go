package xdp

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Mode is where in the receive path a program runs.
type Mode uint8

const (
	// Auto is native where the driver can, and generic where it has no native
	// mode. It falls back for no other reason: a program that the driver
	// refuses, because of the MTU for example, is an error.
	Auto Mode = iota
	// Native runs in the driver, before the packet has a socket buffer.
	Native
	// Generic runs in the network stack, on every device, slower.
	Generic
	// Offload runs on the network card.
	Offload
)

var modeNames = [...]string{Auto: "auto", Native: "native", Generic: "generic", Offload: "offload"}

func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// ParseMode reads a mode by its name.
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if s == name {
			return Mode(m), nil
		}
	}
	return 0, fmt.Errorf("%w: no mode %q: it is one of %s", ErrInvalid, s, strings.Join(modeNames[:], ", "))
}

// MarshalText writes the mode's name.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the mode's name.
func (m *Mode) UnmarshalText(b []byte) error {
	parsed, err := ParseMode(string(b))
	if err == nil {
		*m = parsed
	}
	return err
}

// flags are the mode's XDP_FLAGS_*_MODE.
func (m Mode) flags() uint32 {
	switch m {
	case Native:
		return unix.XDP_FLAGS_DRV_MODE
	case Generic:
		return unix.XDP_FLAGS_SKB_MODE
	case Offload:
		return unix.XDP_FLAGS_HW_MODE
	default:
		return 0
	}
}
