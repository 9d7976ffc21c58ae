package arbiter

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func example() Record {
	return Record{
		Name: "filter", Interface: "eth0.100", Held: xdp.HeldByLink,
		Owner: Owner{UID: 1, GID: 2, Process: procfs.Process{PID: 3, Start: 4}, Exe: "/bin/a b", Comm: "a b", Cgroup: "/x"},
		Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), ProgramID: 6, Digest: "7", PersistAs: "/sys/fs/bpf/x",
		Pending: &Pending{Op: opReplace, By: procfs.Process{PID: 8, Start: 9}, UID: 1, ProgramID: 10, Digest: "11"},
	}
}

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	b, err := encodeRecord(example())
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != recordSize {
		t.Errorf("it has %d bytes, want %d: all records fit the map", len(b), recordSize)
	}
	got, err := decodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	want := example()
	want.Version = recordVersion
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestARecordThatDoesNotFitIsRefused(t *testing.T) {
	r := example()
	r.Name = strings.Repeat("x", recordSize)
	if _, err := encodeRecord(r); !errors.Is(err, xdp.ErrInvalid) || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
}

func TestARecordOfAnotherVersionIsNotGuessedAt(t *testing.T) {
	for _, s := range []string{`{"version":2,"name":"x"}`, `{}`, `{"version":1`, ``, "\x00", `[]`} {
		if r, err := decodeRecord([]byte(s)); err == nil {
			t.Errorf("%q was read as %+v", s, r)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := encodeRecord(example())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"pending":{}}`))
	f.Add([]byte(`{"version":1,"since":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := encodeRecord(r)
		if errors.Is(err, xdp.ErrInvalid) {
			return // escaped, it has become too long
		}
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		back, err := decodeRecord(again)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(r, back); d != "" {
			t.Errorf("it changes on the way: %s", d)
		}
	})
}

func TestKeysAreToldFromOtherNames(t *testing.T) {
	for _, name := range []string{key("c7", 17, xdp.Native), key("i4026531840", 1, xdp.Offload), movedPrefix + "12"} {
		if !isKey(name) {
			t.Errorf("%q is a key", name)
		}
	}
	for _, name := range []string{"", "ip", "xdp", "c7", "c7-", "c7-1x", "x7-1", "c7-1-native", "moved-", "moved-c7-1"} {
		if isKey(name) {
			t.Errorf("%q is no key", name)
		}
	}
}

func TestTheEntryOfAnAttachmentIsFound(t *testing.T) {
	link := func(id, program uint32) *xdp.LinkInfo { return &xdp.LinkInfo{ID: id, ProgramID: program, Index: 1} }
	here := &entry{key: "c1-1", link: link(10, 100)}
	moved := &entry{key: "c1-2", link: link(20, 100)}
	shared := &entry{key: "c1-3", record: Record{Interface: "eth0", Held: xdp.HeldByNetlink, ProgramID: 300, Pending: &Pending{ProgramID: 301}}}
	sharedToo := &entry{key: "c1-4", record: Record{Interface: "eth0", Held: xdp.HeldByNetlink, ProgramID: 300}}
	strange := &entry{key: "c1-5", err: errNotOurs, record: Record{Held: xdp.HeldByNetlink, ProgramID: 500}}
	all := []*entry{here, moved, shared, sharedToo, strange}
	byLink := func(id, program uint32) *xdp.Attachment {
		return &xdp.Attachment{Held: xdp.HeldByLink, LinkID: id, Program: xdp.Program{ID: program}}
	}
	byNetlink := func(program uint32) *xdp.Attachment {
		return &xdp.Attachment{Held: xdp.HeldByNetlink, Program: xdp.Program{ID: program}}
	}
	const mayHaveMoved = true
	for _, c := range []struct {
		name  string
		place place
		at    *xdp.Attachment
		want  *entry
		moved bool
	}{
		{"nothing is nobody's", place{"c1-1", "c1", "eth0"}, nil, nil, false},
		{"a link by its id", place{"c1-1", "c1", "eth0"}, byLink(10, 100), here, false},
		{"a link by its id, wherever it went", place{"c9-9", "c9", "eth0"}, byLink(20, 100), moved, false},
		{"a link that is not pinned here is somebody else's", place{"c1-1", "c1", "eth0"}, byLink(11, 100), nil, false},
		{"a link without id by the hook", place{"c1-2", "c1", "eth0"}, byLink(0, 100), moved, false},
		{"a link without id elsewhere is anybody's", place{"c9-9", "c9", "eth0"}, byLink(0, 100), nil, false},
		{"how it is held is not known", place{"c1-1", "c1", "eth0"}, &xdp.Attachment{Held: xdp.HeldUnknown, Program: xdp.Program{ID: 100}}, nil, false},
		{"a program by the hook", place{"c1-4", "c1", "eth0"}, byNetlink(300), sharedToo, false},
		{"a program that was being put in place", place{"c1-3", "c1", "eth0"}, byNetlink(301), shared, false},
		{"a program at one hook of another namespace may have moved", place{"c9-9", "c9", "eth0"}, byNetlink(301), shared, mayHaveMoved},
		{"but not where the interface has another name", place{"c9-9", "c9", "eth1"}, byNetlink(301), nil, false},
		{"nor within one namespace", place{"c1-9", "c1", "eth0"}, byNetlink(301), nil, false},
		{"a program that two entries have is neither's elsewhere", place{"c9-9", "c9", "eth0"}, byNetlink(300), nil, false},
		{"another program is somebody else's", place{"c1-3", "c1", "eth0"}, byNetlink(302), nil, false},
		{"what can't be understood is not ours", place{"c1-5", "c1", "eth0"}, byNetlink(500), nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, moved := match(all, c.place, c.at); got != c.want || moved != c.moved {
				t.Errorf("got %+v, %t, want %+v, %t", got, moved, c.want, c.moved)
			}
		})
	}
}
