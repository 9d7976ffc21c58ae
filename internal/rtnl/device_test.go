package rtnl

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// newLink is the payload of an RTM_NEWLINK message.
func newLink(t testing.TB, index int, flags uint32, attrs func(*netlink.AttributeEncoder)) []byte {
	t.Helper()
	ae := netlink.NewAttributeEncoder()
	if attrs != nil {
		attrs(ae)
	}
	b, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return append(ifinfo(index, flags, 0), b...)
}

// xdpAttrs is IFLA_XDP as the kernel sends it: what is attached, the id again
// where there is only one, and one id for each mode.
func xdpAttrs(ae *netlink.AttributeEncoder, mode uint8, x XDP) {
	ae.Nested(unix.IFLA_XDP, func(nae *netlink.AttributeEncoder) error {
		nae.Uint8(unix.IFLA_XDP_ATTACHED, mode)
		for _, id := range []struct {
			attr uint16
			id   uint32
		}{
			{unix.IFLA_XDP_PROG_ID, max(x.Native, x.Generic, x.Offload)},
			{unix.IFLA_XDP_DRV_PROG_ID, x.Native},
			{unix.IFLA_XDP_SKB_PROG_ID, x.Generic},
			{unix.IFLA_XDP_HW_PROG_ID, x.Offload},
		} {
			if id.id != 0 {
				nae.Uint32(id.attr, id.id)
			}
		}
		return nil
	})
}

func TestADeviceIsReadFromItsMessage(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
		want Device
	}{
		{"nothing but its index", newLink(t, 3, 0, nil), Device{Index: 3}},
		{"one that is up", newLink(t, 3, unix.IFF_UP|unix.IFF_LOOPBACK, nil), Device{Index: 3, Up: true}},
		{"a veth whose peer is elsewhere", newLink(t, 2, unix.IFF_UP, func(ae *netlink.AttributeEncoder) {
			ae.String(unix.IFLA_IFNAME, "near0")
			ae.Uint32(unix.IFLA_MTU, 1500)
			ae.Uint32(unix.IFLA_MAX_MTU, 65535)
			ae.Uint32(unix.IFLA_LINK, 2)
			ae.Int32(unix.IFLA_LINK_NETNSID, 0)
			ae.Nested(unix.IFLA_LINKINFO, func(nae *netlink.AttributeEncoder) error {
				nae.String(unix.IFLA_INFO_KIND, "veth")
				return nil
			})
			xdpAttrs(ae, 1, XDP{Native: 70})
		}), Device{Index: 2, Name: "near0", Up: true, MTU: 1500, MaxMTU: 65535, Link: 2, LinkElsewhere: true, Kind: "veth", XDP: XDP{Native: 70}}},
		{"a port of a bridge, with a card behind it", newLink(t, 4, 0, func(ae *netlink.AttributeEncoder) {
			ae.String(unix.IFLA_IFNAME, "eth0")
			ae.Uint32(unix.IFLA_MASTER, 9)
			ae.String(unix.IFLA_PARENT_DEV_NAME, "0000:01:00.0")
			xdpAttrs(ae, 0, XDP{})
		}), Device{Index: 4, Name: "eth0", Master: 9, Parent: "0000:01:00.0"}},
		{"a generic program", newLink(t, 5, 0, func(ae *netlink.AttributeEncoder) { xdpAttrs(ae, 2, XDP{Generic: 71}) }),
			Device{Index: 5, XDP: XDP{Generic: 71}}},
		{"a program on the card and another in the driver", newLink(t, 6, 0, func(ae *netlink.AttributeEncoder) { xdpAttrs(ae, 4, XDP{Native: 70, Offload: 72}) }),
			Device{Index: 6, XDP: XDP{Native: 70, Offload: 72}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseDevice(c.b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestADeviceIsNotReadFromHalfAMessage(t *testing.T) {
	whole := newLink(t, 2, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, "near0")
		xdpAttrs(ae, 1, XDP{Native: 70})
	})
	for what, b := range map[string][]byte{
		"nothing":                      nil,
		"less than a header":           whole[:unix.SizeofIfInfomsg-1],
		"a part of an attribute":       whole[:unix.SizeofIfInfomsg+5],
		"a number of the wrong length": newLink(t, 2, 0, func(ae *netlink.AttributeEncoder) { ae.Uint16(unix.IFLA_MTU, 1500) }),
		"an id of the wrong length": newLink(t, 2, 0, func(ae *netlink.AttributeEncoder) {
			ae.Nested(unix.IFLA_XDP, func(nae *netlink.AttributeEncoder) error {
				nae.Uint8(unix.IFLA_XDP_DRV_PROG_ID, 7)
				return nil
			})
		}),
	} {
		if d, err := ParseDevice(b); err == nil {
			t.Errorf("%s was read as %+v", what, d)
		}
	}
}

// FuzzParseDevice: nothing crashes it, and what is there in a message comes out
// of it, whatever attributes follow that mean nothing here.
func FuzzParseDevice(f *testing.F) {
	f.Add([]byte("short"), "lo", 1, uint32(0), uint32(0))
	f.Add(newLink(f, 2, 1, func(ae *netlink.AttributeEncoder) { xdpAttrs(ae, 1, XDP{Native: 70}) }), "eth0.100", 7, uint32(70), uint32(71))
	f.Fuzz(func(t *testing.T, b []byte, name string, index int, native, generic uint32) {
		if d, err := ParseDevice(b); err != nil && d != (Device{}) {
			t.Errorf("%v, and yet there is %+v", err, d)
		}
		for _, r := range name {
			if r == 0 {
				return // ends a name
			}
		}
		index = int(int32(index))
		want := Device{Index: index, Name: name, XDP: XDP{Native: native, Generic: generic}}
		got, err := ParseDevice(newLink(t, index, 0, func(ae *netlink.AttributeEncoder) {
			ae.String(unix.IFLA_IFNAME, name)
			xdpAttrs(ae, 4, want.XDP)
			ae.Bytes(unix.IFLA_STATS64, b[:min(len(b), 1<<15)])
		}))
		if err != nil || got != want {
			t.Errorf("%+v reads as %+v (%v)", want, got, err)
		}
	})
}

func TestDevicesAreReadByNameByIndexAndAllAtOnce(t *testing.T) {
	c, err := Dial(-1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	all, err := c.Devices()
	if err != nil || len(all) == 0 {
		t.Fatalf("%d interfaces, %v", len(all), err)
	}
	for _, d := range all {
		byName, err := c.Device(d.Name)
		if err != nil || byName.Index != d.Index {
			t.Errorf("%s is interface %d by its name (%v), and %d of all", d.Name, byName.Index, err, d.Index)
		}
		byIndex, err := c.DeviceByIndex(d.Index)
		if err != nil || byIndex.Name != d.Name {
			t.Errorf("interface %d is %s (%v), and %s of all", d.Index, byIndex.Name, err, d.Name)
		}
	}
	for _, err := range []error{second(c.Device("no-such-device")), second(c.DeviceByIndex(1 << 30))} {
		var refusal *Error
		if !IsNotExist(err) || !errors.As(err, &refusal) || refusal.Errno != unix.ENODEV {
			t.Errorf("what is not there: %v", err)
		}
	}
	if IsNotExist(nil) || IsNotExist(os.ErrClosed) {
		t.Error("what is no answer about an interface says that it is not there")
	}
}

func second(_ Device, err error) error { return err }

func TestAConnectionAnswersEachOfManyWhoAskAtOnce(t *testing.T) {
	c, err := Dial(-1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var wait sync.WaitGroup
	for n := range 8 {
		wait.Go(func() {
			for range 100 {
				name, want := "lo", error(nil)
				if n%2 == 1 {
					name, want = fmt.Sprintf("nowhere%d", n), unix.ENODEV
				}
				if d, err := c.Device(name); !errors.Is(err, want) || err == nil && d.Name != name {
					t.Errorf("asked for %s, got %+v (%v)", name, d, err)
				}
			}
		})
	}
	wait.Wait()
}

func TestARefusalSaysTheKernelsOwnWords(t *testing.T) {
	for want, e := range map[string]*Error{
		"file exists": {Errno: unix.EEXIST},
		"device or resource busy (Can't replace active BPF XDP link)": {Errno: unix.EBUSY, Extack: "Can't replace active BPF XDP link"},
	} {
		if e.Error() != want || !errors.Is(e, e.Errno) {
			t.Errorf("%v, want %s", e, want)
		}
	}
	if err := translate(fmt.Errorf("closed: %w", os.ErrClosed)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("what is no refusal became %v", err)
	}
}
