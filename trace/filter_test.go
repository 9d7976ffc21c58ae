package trace

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// packet makes an Ethernet packet of IP, with ports.
func packet(proto byte, src, dst string) []byte {
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	b := make([]byte, 12)
	if from.Addr().Is4() {
		b = append(b, 0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, proto, 0, 0)
	} else {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, proto, 64)
	}
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	return append(b, 0, 8, 0, 0)
}

// tagged puts a VLAN tag in.
func tagged(b []byte, id uint16) []byte {
	tag := binary.BigEndian.AppendUint16([]byte{0x81, 0}, 0x2000|id)
	return append(append(append([]byte(nil), b[:12]...), tag...), b[12:]...)
}

var (
	dns       = packet(17, "10.1.2.3:4242", "192.0.2.1:53")
	dns6      = packet(17, "[2001:db8::1]:4242", "[2001:db8::2]:53")
	web       = packet(6, "10.9.0.1:50000", "10.1.2.3:443")
	ping      = packet(1, "10.1.2.3:8", "192.0.2.1:0")
	resolving = append(make([]byte, 12), 0x08, 0x06, 0, 1)
)

func TestAFilterMeansWhatItsWordsSay(t *testing.T) {
	fragment := append([]byte(nil), dns...)
	fragment[21] = 1
	// A hop-by-hop header of 8 bytes in between.
	extended := append(append(append([]byte(nil), dns6[:54]...), 17, 0, 1, 4, 0, 0, 0, 0), dns6[54:]...)
	extended[20] = 0
	for _, row := range []struct {
		filter  string
		matches [][]byte
		not     [][]byte
	}{
		{"", [][]byte{dns, dns6, resolving, nil}, nil},
		{"udp", [][]byte{dns, dns6, fragment, extended, tagged(dns, 7)}, [][]byte{web, ping, resolving, nil}},
		{"ip", [][]byte{dns, web, ping}, [][]byte{dns6, resolving}},
		{"ip6", [][]byte{dns6}, [][]byte{dns}},
		{"arp", [][]byte{resolving}, [][]byte{dns}},
		{"udp and dst port 53 and src 10.0.0.0/8", [][]byte{dns, tagged(dns, 7)}, [][]byte{dns6, web, fragment}},
		{"udp dst port 53", [][]byte{dns, dns6, extended}, [][]byte{web, fragment}},
		{"port 53", [][]byte{dns}, [][]byte{web, ping}},
		{"port 40-60", [][]byte{dns}, [][]byte{web}},
		{"src port 40-60", nil, [][]byte{dns}},
		{"host 10.1.2.3", [][]byte{dns, web, ping}, [][]byte{dns6}},
		{"src host 10.1.2.3", [][]byte{dns, ping}, [][]byte{web}},
		{"dst 2001:db8::/64", [][]byte{dns6}, [][]byte{dns}},
		{"dst host 2001:db8::1", nil, [][]byte{dns6}},
		{"net 10.9.0.0/16 or icmp", [][]byte{web, ping}, [][]byte{dns}},
		{"vlan", [][]byte{tagged(dns, 7), tagged(tagged(dns, 7), 8)}, [][]byte{dns}},
		{"vlan 7 and udp", [][]byte{tagged(dns, 7)}, [][]byte{tagged(dns, 8), tagged(web, 7)}},
		{"not port 53", [][]byte{web, ping, fragment, resolving}, [][]byte{dns}},
		{"not (udp or tcp)", [][]byte{ping, resolving}, [][]byte{dns, web}},
		{"!(udp and dst port 53) && ip", [][]byte{web, ping}, [][]byte{dns, dns6}},
		{"proto 17 and not not udp", [][]byte{dns}, [][]byte{web}},
		{"proto icmp or ether proto arp", [][]byte{ping, resolving}, [][]byte{web}},
		{"ether proto 0x806", [][]byte{resolving}, [][]byte{dns}},
	} {
		f, err := ParseFilter(row.filter)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, p := range row.matches {
			if !f.Match(p) {
				t.Errorf("%q does not mean %s", row.filter, hex.EncodeToString(p))
			}
		}
		for _, p := range row.not {
			if f.Match(p) {
				t.Errorf("%q means %s", row.filter, hex.EncodeToString(p))
			}
		}
	}
}

func TestWhatIsNoFilterIsToldInWords(t *testing.T) {
	for filter, want := range map[string]string{
		"frobnicate":               `"frobnicate" is no word that it knows`,
		"udp and":                  "something is missing at its end",
		"(udp":                     ") is missing",
		"udp)":                     `")" is not expected there`,
		"port 70000":               `"70000" is no number from 0 to 65535`,
		"port 5-3":                 `"5-3" ends before it begins`,
		"host 10.0.0.0/8":          "a host is one address",
		"src":                      "something is missing at its end",
		"src nobody":               `"nobody" is neither an address nor a net`,
		"dst fe80::1%eth0":         "neither an address nor a net",
		"ether 5":                  "after ether comes proto and a number",
		"vlan 5000":                `"5000" is no number from 0 to 4095`,
		"proto 256":                `"256" is no number from 0 to 255`,
		strings.Repeat("(", 90):    "nested too deeply",
		strings.Repeat("udp ", 33): "more than 32 tests",
		"(port 1 or port 2) (port 3 or port 4) (port 5 or port 6)": "more than 32 tests",
	} {
		_, err := ParseFilter(filter)
		if !errors.Is(err, ErrFilter) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", filter, err, want)
		}
	}
}

// means is what an expression says, read as it was parsed.
func (e *expression) means(f *fields) bool {
	switch {
	case e.test != nil:
		return e.test.passes(f)
	case e.not:
		return !e.operands[0].means(f)
	}
	for _, o := range e.operands {
		if o.means(f) == e.or {
			return e.or
		}
	}
	return !e.or
}

func FuzzParseFilter(f *testing.F) {
	for _, s := range []string{"udp and dst port 53 and src 10.0.0.0/8", "not (tcp port 22 or arp) vlan 5", "!(host ::1 || proto 3)&&ip"} {
		f.Add(s, dns)
	}
	f.Fuzz(func(t *testing.T, s string, packet []byte) {
		filter, err := ParseFilter(s)
		if err != nil {
			if !errors.Is(err, ErrFilter) {
				t.Error(err)
			}
			return
		}
		if len(filter.tests) > maxTests {
			t.Fatalf("%d tests", len(filter.tests))
		}
		if len(filter.tests) == 0 {
			return
		}
		p := parser{words: split(s)}
		e, err := p.either()
		if err != nil {
			t.Fatal(err)
		}
		found := dissect(packet)
		if got, want := filter.Match(packet), e.means(&found); got != want {
			t.Errorf("%q: the tests say %t, the words %t", s, got, want)
		}
	})
}
