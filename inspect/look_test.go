package inspect

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/xdp"
)

// sighted is one attachment by a link that nobody seems to have.
func sighted(link uint32) *sight {
	return &sight{
		namespaces: []namespace{space("", "c1", at("eth0", 2, native(42, xdp.HeldByLink, link)))},
		links:      []xdp.LinkInfo{{ID: link, ProgramID: 42, Index: 2}},
		complete:   true,
	}
}

func TestSocketsAreSearchedBeforeTheyAreSaidToHaveNothing(t *testing.T) {
	socket := Socket{Process: process(9), Inode: 4711, Descriptors: 2}
	for name, c := range map[string]struct {
		link  func(n int) uint32
		looks int
	}{
		"the same twice":       {func(int) uint32 { return 7 }, 2},
		"another at each look": {func(n int) uint32 { return uint32(n) }, looks},
	} {
		t.Run(name, func(t *testing.T) {
			for _, sockets := range [][]Socket{nil, {socket}} {
				n, searched := 0, 0
				r, err := settle(nil, func() (*sight, error) { n++; return sighted(c.link(n)), nil },
					func() ([]Socket, error) { searched++; return sockets, nil }, func(int) {})
				if err != nil {
					t.Fatal(err)
				}
				f := only(t, r)
				if n != c.looks || searched != 1 || !slices.Equal(f.By.Sockets, sockets) {
					t.Errorf("looked %d times, searched %d times, found %+v", n, searched, f)
				}
			}
		})
	}
}

func TestSocketsThatCanNotBeSearchedAreNotSaidToHaveNothing(t *testing.T) {
	r, err := settle(nil, func() (*sight, error) { return sighted(7), nil },
		func() ([]Socket, error) { return nil, errors.New("no /proc") }, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if f := only(t, r); len(f.Notes) != 0 || len(r.Limits) != 1 || !strings.Contains(r.Limits[0], "no /proc") {
		t.Errorf("the notes are %q, the limits %q", f.Notes, r.Limits)
	}
}

func TestADefunctLinkUnderWayIsTold(t *testing.T) {
	socket := Socket{Process: process(9), Inode: 4711, Descriptors: 1}
	gone := func() (*sight, error) {
		return &sight{links: []xdp.LinkInfo{{ID: 7, ProgramID: 42}}, complete: true}, nil
	}
	r, err := settle(nil, gone, func() ([]Socket, error) { return []Socket{socket}, nil }, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if f := only(t, r); f.LinkID != 7 || !slices.Equal(f.How, []How{Defunct, InFlight}) || !slices.Equal(f.By.Sockets, []Socket{socket}) {
		t.Errorf("it is %+v, want link 7 with the socket", f)
	}
	r, err = settle(nil, gone, func() ([]Socket, error) { return nil, nil }, func(int) {})
	if err != nil || len(r.Findings) != 0 {
		t.Errorf("one that is about to go is told: %+v (%v)", r, err)
	}
}

func TestWhatIsTooMuchIsLookedAtOnce(t *testing.T) {
	n, searched := 0, 0
	_, err := settle(nil, func() (*sight, error) {
		n++
		s := sighted(7)
		s.cut = true
		return s, nil
	}, func() ([]Socket, error) { searched++; return nil, nil }, func(int) {})
	if err != nil || n != 1 || searched != 1 {
		t.Errorf("looked %d times, searched %d times (%v)", n, searched, err)
	}
}
