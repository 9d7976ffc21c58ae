package crash

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func attribute(typ uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	return append(binary.NativeEndian.AppendUint16(b, typ), value...)
}

func number32(typ uint16, value int32) []byte {
	return attribute(typ, binary.NativeEndian.AppendUint32(nil, uint32(value)))
}

func TestADetachThatExpectsAnEmptyHookIsAQuestion(t *testing.T) {
	nothing := number32(unix.IFLA_XDP_FD, -1)
	empty := number32(unix.IFLA_XDP_EXPECTED_FD, -1)
	replace := number32(unix.IFLA_XDP_FLAGS, unix.XDP_FLAGS_DRV_MODE|unix.XDP_FLAGS_REPLACE)
	xdp := func(parts ...[]byte) []byte {
		return attribute(unix.IFLA_XDP|unix.NLA_F_NESTED, slices.Concat(parts...))
	}
	for _, c := range []struct {
		what string
		b    []byte
		want bool
	}{
		{"the question", xdp(nothing, replace, empty), true},
		{"a detach of whatever is there", xdp(nothing), false},
		{"an expectation that the kernel ignores", xdp(nothing, number32(unix.IFLA_XDP_FLAGS, unix.XDP_FLAGS_DRV_MODE), empty), false},
		{"a detach of a program", xdp(nothing, replace, number32(unix.IFLA_XDP_EXPECTED_FD, 7)), false},
		{"an attach to an empty hook", xdp(number32(unix.IFLA_XDP_FD, 7), replace, empty), false},
		{"something else beside it", append(xdp(nothing, replace, empty), number32(unix.IFLA_MTU, 1500)...), false},
		{"half of it", xdp(nothing, replace, empty)[:12], false},
		{"no attribute", nil, false},
	} {
		if got := leavesEmpty(c.b); got != c.want {
			t.Errorf("%s: got %t, want %t", c.what, got, c.want)
		}
	}
}
