package rtnl

import (
	"testing"

	"github.com/mdlayher/netlink"
)

// devGet is an answer as Linux 6.3 and later give it: index, features, and
// attributes that came later.
func devGet(t testing.TB, attrs func(*netlink.AttributeEncoder)) []byte {
	t.Helper()
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(netdevDevIfindex, 7)
	attrs(ae)
	b, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseXDPFeatures(t *testing.T) {
	tests := []struct {
		name  string
		attrs func(*netlink.AttributeEncoder)
		want  XDPFeatures
		fails bool
	}{
		{
			name: "a driver says what it can do",
			attrs: func(ae *netlink.AttributeEncoder) {
				ae.Uint64(netdevDevXDPFeatures, 1|2|32)
				ae.Uint64(5, 3) // xdp-rx-metadata-features, from 6.7 on
			},
			want: XDPBasic | XDPRedirect | XDPRxSG,
		},
		{
			name:  "a driver that can do nothing says so",
			attrs: func(ae *netlink.AttributeEncoder) { ae.Uint64(netdevDevXDPFeatures, 0) },
		},
		{
			name:  "features of later kernels are kept",
			attrs: func(ae *netlink.AttributeEncoder) { ae.Uint64(netdevDevXDPFeatures, 1<<40) },
			want:  1 << 40,
		},
		{
			name:  "an answer without features is no answer",
			attrs: func(*netlink.AttributeEncoder) {},
			fails: true,
		},
		{
			name:  "features of another width are refused",
			attrs: func(ae *netlink.AttributeEncoder) { ae.Uint32(netdevDevXDPFeatures, 1) },
			fails: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseXDPFeatures(devGet(t, tt.attrs))
			if (err != nil) != tt.fails {
				t.Fatalf("got error %v", err)
			}
			if got != tt.want {
				t.Errorf("got %#x, want %#x", got, tt.want)
			}
		})
	}
}

func TestHasWantsAllFeatures(t *testing.T) {
	f := XDPBasic | XDPRxSG
	if !f.Has(XDPBasic) || !f.Has(XDPBasic|XDPRxSG) {
		t.Errorf("%#x lacks what it has", f)
	}
	if f.Has(XDPRedirect) || f.Has(XDPBasic|XDPRedirect) {
		t.Errorf("%#x has what it lacks", f)
	}
}

func FuzzParseXDPFeatures(f *testing.F) {
	f.Add(devGet(f, func(ae *netlink.AttributeEncoder) { ae.Uint64(netdevDevXDPFeatures, 3) }))
	f.Add([]byte{4, 0, 3, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if features, err := ParseXDPFeatures(b); err != nil && features != 0 {
			t.Errorf("features %#x come with an error: %v", features, err)
		}
	})
}
