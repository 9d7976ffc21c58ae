package rtnl

import (
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

func TestAListThatChangedMeanwhileIsReadAnew(t *testing.T) {
	for _, c := range []struct {
		name        string
		interrupted int // lists, of those asked for first
		wantAsked   int
		fails       bool
	}{
		{"a list in one piece is read once", 0, 1, false},
		{"a list that changed is read again", 1, 2, false},
		{"and again", dumpTries - 1, dumpTries, false},
		{"but not for ever", dumpTries + 5, dumpTries, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := 0
			conn := &Conn{route: nltest.Dial(func(requests []netlink.Message) ([]netlink.Message, error) {
				if len(requests) == 0 {
					return nil, nil // the end of a list
				}
				asked++
				var list []netlink.Message
				for index := range 3 {
					m := netlink.Message{
						Header: netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Multi, Sequence: requests[0].Header.Sequence, PID: nltest.PID},
						Data:   ifinfo(index+asked, 0, 0),
					}
					if index == 1 && asked <= c.interrupted {
						m.Header.Flags |= netlink.DumpInterrupted
					}
					list = append(list, m)
				}
				return nltest.Multipart(append(list, netlink.Message{Header: list[0].Header}))
			})}
			devices, err := conn.Devices()
			if asked != c.wantAsked {
				t.Errorf("it was asked for %d times, want %d", asked, c.wantAsked)
			}
			switch {
			case c.fails:
				if err == nil || !strings.Contains(err.Error(), "try again") {
					t.Errorf("got %v, %v", devices, err)
				}
			case err != nil || len(devices) != 3 || devices[0].Index != asked:
				t.Errorf("got %+v (%v), want the last list", devices, err)
			}
		})
	}
}
