package rtnl

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func TestANotificationIsReadWhereItTellsOfPrograms(t *testing.T) {
	named := func(more func(*netlink.AttributeEncoder)) []byte {
		return newLink(t, 3, 0, func(ae *netlink.AttributeEncoder) {
			ae.String(unix.IFLA_IFNAME, "eth0")
			if more != nil {
				more(ae)
			}
		})
	}
	programs := func(x XDP) []byte {
		return named(func(ae *netlink.AttributeEncoder) { xdpAttrs(ae, unix.XDP_FLAGS_DRV_MODE, x) })
	}
	bridge := programs(XDP{})
	bridge[0] = unix.AF_BRIDGE
	message := func(typ netlink.HeaderType, b []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: typ}, Data: b}
	}
	eth0 := Device{Index: 3, Name: "eth0"}
	with := eth0
	with.XDP.Native = 7
	for name, c := range map[string]struct {
		message netlink.Message
		want    Notification
		ok      bool
	}{
		"a program":          {message(unix.RTM_NEWLINK, programs(XDP{Native: 7})), Notification{Device: with}, true},
		"no program":         {message(unix.RTM_NEWLINK, programs(XDP{})), Notification{Device: eth0}, true},
		"a bridge's port":    {message(unix.RTM_NEWLINK, bridge), Notification{}, false},
		"a wireless event":   {message(unix.RTM_NEWLINK, named(nil)), Notification{Device: eth0}, false},
		"one that is gone":   {message(unix.RTM_DELLINK, named(nil)), Notification{Device: eth0, Gone: true}, true},
		"something else":     {message(unix.RTM_NEWADDR, []byte{1}), Notification{}, false},
		"an acknowledgement": {message(unix.NLMSG_ERROR, make([]byte, 4)), Notification{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok, err := parseNotification(c.message)
			if err != nil {
				t.Fatal(err)
			}
			if ok != c.ok {
				t.Errorf("it is told: %t, want %t", ok, c.ok)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	if _, _, err := parseNotification(message(unix.RTM_NEWLINK, []byte{0, 0, 0})); err == nil {
		t.Error("a short message was read")
	}
}
