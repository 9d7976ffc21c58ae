package features

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

func TestJudge(t *testing.T) {
	tests := []struct {
		name   string
		err    error
		want   Answer
		reason string // a part of it
	}{
		{"what worked is there", nil, Yes, ""},
		{"an argument that the kernel does not know is a feature that it lacks", fmt.Errorf("load: %w", unix.EINVAL), No, "(EINVAL); Linux has it from 6.3 on"},
		{"so is a command that it does not know", unix.ENOSYS, No, "(ENOSYS)"},
		{"so is what it says that it does not support", unix.EOPNOTSUPP, No, "(EOPNOTSUPP)"},
		{"also by the number that should not leave the kernel", unix.Errno(524), No, "(ENOTSUPP)"},
		{"also in this project's words", &xdp.Error{Op: "attach", Err: xdp.ErrNotSupported, Errno: unix.EOPNOTSUPP}, No, "(EOPNOTSUPP)"},
		{"what a probe disproved is not there", fmt.Errorf("x: %w", refutation("it lies")), No, "it lies"},
		{"what a probe can't tell is unknown", errors.Join(undecided("who knows"), nil), Unknown, "who knows"},
		{"a lack of memory says nothing", unix.ENOMEM, Unknown, "cannot allocate memory"},
		{
			"a driver's refusal as things are says nothing of what it can",
			refused(&xdp.Error{Op: "attach", Err: xdp.ErrNotSupported, Detail: "the MTU", Errno: unix.EINVAL}), Unknown, "the MTU",
		},
		{
			"a driver's refusal for good says that it lacks it",
			refused(&xdp.Error{Op: "attach", Err: xdp.ErrNotSupported, Errno: unix.EOPNOTSUPP}), No, "(EOPNOTSUPP)",
		},
		{"an interface that is gone says nothing", &xdp.Error{Op: "attach", Err: xdp.ErrNotFound, Errno: unix.ENODEV}, Unknown, "not found"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, reason := judge(tt.err, "6.3")
			if got != tt.want || !strings.Contains(reason, tt.reason) {
				t.Errorf("got %s, %q; want %s, %q", got, reason, tt.want, tt.reason)
			}
			if got == No && reason == "" || strings.Contains(reason, "\n") {
				t.Errorf("bad reason %q", reason)
			}
		})
	}
}

func TestAnInterfaceIsTriedOnlyWhereThatDisturbsNobody(t *testing.T) {
	const index = 5
	tests := []struct {
		name   string
		device rtnl.Device
		others []rtnl.Device
		// hindrances, a part of them each, or "" where it is tried
		want, wantTry string
	}{
		{name: "a veth, although it names its peer", device: rtnl.Device{Kind: "veth", Link: 4}},
		{name: "a tap", device: rtnl.Device{Kind: "tun"}},
		{name: "a port of a bridge", device: rtnl.Device{Kind: "veth", Master: 9}, others: []rtnl.Device{{Index: 9, Kind: "bridge"}}},
		{name: "a bridge without ports", device: rtnl.Device{Kind: "bridge"}, others: []rtnl.Device{{Index: 6, Kind: "veth"}}},
		{
			name:   "a bond with a port would attach to the port",
			device: rtnl.Device{Kind: "bond"}, others: []rtnl.Device{{Index: 6, Name: "eth0", Master: index}},
			want: "it lies over eth0",
		},
		{name: "a vlan lies over a card", device: rtnl.Device{Kind: "vlan", Link: 2}, want: "lies over another"},
		{name: "a macvlan of another namespace's card of the same index", device: rtnl.Device{Kind: "macvlan", Link: index, LinkElsewhere: true}, want: "lies over another"},
		{name: "a macvlan of another namespace's card", device: rtnl.Device{Kind: "macvlan", Link: index + 1, LinkElsewhere: true}, want: "lies over another"},
		{name: "a card", device: rtnl.Device{Parent: "0000:00:1f.6"}, want: "physical device (0000:00:1f.6)"},
		{name: "a card with a kind", device: rtnl.Device{Kind: "ipoib", Parent: "0000:03:00.0"}, want: "physical device (0000:03:00.0)"},
		{name: "a card on a kernel that does not name its bus device", device: rtnl.Device{}, want: "may be a physical device"},
		{
			name:   "a veth with a program",
			device: rtnl.Device{Kind: "veth", XDP: rtnl.XDP{Generic: 7}},
			want:   "a program is attached", wantTry: "a program is attached",
		},
		{
			name:   "a card with a program",
			device: rtnl.Device{Parent: "0000:00:1f.6", XDP: rtnl.XDP{Native: 7}},
			want:   "a program is attached", wantTry: "a program is attached",
		},
	}
	check := func(t *testing.T, got, want string) {
		t.Helper()
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.device.Index = index
			devices := append([]rtnl.Device{{Index: 1, Name: "lo"}, tt.device}, tt.others...)
			check(t, hindrance(index, devices, Options{}), tt.want)
			check(t, hindrance(index, devices, Options{Try: true}), tt.wantTry)
		})
	}
	t.Run("the loopback interface", func(t *testing.T) {
		check(t, hindrance(1, []rtnl.Device{{Index: 1, Name: "lo"}}, Options{}), "")
	})
	t.Run("an interface that is gone", func(t *testing.T) {
		check(t, hindrance(index, nil, Options{Try: true}), "it is gone")
	})
}
