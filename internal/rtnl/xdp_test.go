package rtnl

import (
	"bytes"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// byLibrary encodes the request as the netlink library does.
func byLibrary(t testing.TB, index int, r XDPRequest, sequence, port uint32) []byte {
	t.Helper()
	ae := netlink.NewAttributeEncoder()
	ae.Nested(unix.IFLA_XDP, func(nae *netlink.AttributeEncoder) error {
		nae.Int32(unix.IFLA_XDP_FD, r.FD)
		if r.Flags != 0 {
			nae.Uint32(unix.IFLA_XDP_FLAGS, r.Flags)
		}
		if r.Expected != nil {
			nae.Int32(unix.IFLA_XDP_EXPECTED_FD, *r.Expected)
		}
		return nil
	})
	attributes, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	data := append(ifinfo(index, 0, 0), attributes...)
	b, err := netlink.Message{
		Header: netlink.Header{
			Length: uint32(unix.SizeofNlMsghdr + len(data)), Type: unix.RTM_SETLINK,
			Flags: netlink.Request | netlink.Acknowledge, Sequence: sequence, PID: port,
		},
		Data: data,
	}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestXDPRequestsAreTheBytesThatTheLibraryWouldSend(t *testing.T) {
	// One after the other in the same buffer, the long before the short.
	x := xdpRequest{port: 4711, sequence: 1<<32 - 3}
	sequence := x.sequence
	for _, index := range []int{1, 17, 1<<31 - 1} {
		for _, fd := range []int32{-1, 0, 1 << 20} {
			for _, flags := range []uint32{unix.XDP_FLAGS_DRV_MODE | unix.XDP_FLAGS_REPLACE, 0, 1<<32 - 1} {
				for _, expected := range []*int32{new(int32(-1)), new(int32(12)), nil} {
					r := XDPRequest{FD: fd, Flags: flags, Expected: expected}
					sequence++
					got, want := x.encode(index, r), byLibrary(t, index, r, sequence, 4711)
					if !bytes.Equal(got, want) {
						t.Errorf("interface %d, %+v:\ngot  %x\nwant %x", index, r, got, want)
					}
				}
			}
		}
	}
}

func TestOnlyAnAcknowledgementOfTheLastRequestIsOne(t *testing.T) {
	x := xdpRequest{port: 4711}
	x.encode(1, XDPRequest{})
	answer := func(typ netlink.HeaderType, sequence uint32, data []byte) []byte {
		b, err := netlink.Message{
			Header: netlink.Header{Length: uint32(unix.SizeofNlMsghdr + len(data)), Type: typ, Sequence: sequence, PID: 4711},
			Data:   data,
		}.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	done := make([]byte, 4+unix.SizeofNlMsghdr)
	refused := bytes.Clone(done)
	busy := -int32(unix.EBUSY)
	putU32(refused, uint32(busy))
	for _, c := range []struct {
		what string
		b    []byte
		want bool
	}{
		{"an acknowledgement", answer(unix.NLMSG_ERROR, 1, done), true},
		{"an acknowledgement of another request", answer(unix.NLMSG_ERROR, 2, done), false},
		{"a refusal", answer(unix.NLMSG_ERROR, 1, refused), false},
		{"an interface", answer(unix.RTM_NEWLINK, 1, done), false},
		{"half an acknowledgement", answer(unix.NLMSG_ERROR, 1, done)[:18], false},
		{"nothing", nil, false},
	} {
		if got := x.acknowledged(c.b); got != c.want {
			t.Errorf("%s: got %t, want %t", c.what, got, c.want)
		}
	}
}

func BenchmarkXDPRequest(b *testing.B) {
	expected := int32(-1)
	r := XDPRequest{FD: 7, Flags: unix.XDP_FLAGS_DRV_MODE | unix.XDP_FLAGS_REPLACE, Expected: &expected}
	for _, by := range []struct {
		name   string
		encode func(sequence uint32) []byte
	}{
		{"in place", func() func(uint32) []byte {
			var x xdpRequest
			return func(uint32) []byte { return x.encode(17, r) }
		}()},
		{"by the library", func(sequence uint32) []byte { return byLibrary(b, 17, r, sequence, 4711) }},
	} {
		b.Run(by.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				by.encode(uint32(i))
			}
		})
	}
}
