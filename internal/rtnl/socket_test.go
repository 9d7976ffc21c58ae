package rtnl

import (
	"sync"
	"testing"

	"github.com/mdlayher/netlink"
)

func message(t testing.TB, data []byte) []byte {
	t.Helper()
	m := netlink.Message{Header: netlink.Header{Type: 16, Length: uint32(16 + (len(data)+3)&^3)}, Data: data}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestADatagramIsCutIntoItsMessages(t *testing.T) {
	datagram := append(message(t, []byte("abcd")), message(t, []byte("efghijkl"))...)
	var got []string
	for len(datagram) > 0 {
		m, rest, err := cut(datagram)
		if err != nil {
			t.Fatal(err)
		}
		got, datagram = append(got, string(m.Data)), rest
	}
	if len(got) != 2 || got[0] != "abcd" || got[1] != "efghijkl" {
		t.Fatalf("got %q", got)
	}
}

func TestAMessageThatIsNotWholeIsAnError(t *testing.T) {
	whole := message(t, []byte("abcd"))
	for n := range len(whole) {
		if _, _, err := cut(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes were taken for a message", n, len(whole))
		}
	}
}

func TestPaddingAtTheEndOfADatagramMayBeMissing(t *testing.T) {
	b := message(t, []byte("abcd"))
	b = b[:len(b)-1]
	b[0]--
	m, rest, err := cut(b)
	if err != nil || string(m.Data) != "abc" || len(rest) != 0 {
		t.Fatalf("got %q, %d bytes left, error %v", m.Data, len(rest), err)
	}
}

// The race detector sees whatever sockets share.
func TestSocketsShareNothing(t *testing.T) {
	var all sync.WaitGroup
	for range 4 {
		c, err := Dial(-1)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all.Go(func() {
			for range 50 {
				if _, err := c.Device("lo"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func FuzzCut(f *testing.F) {
	f.Add(message(f, []byte("abcd")))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			_, rest, err := cut(b)
			if err != nil {
				break
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			b = rest
		}
	})
}
