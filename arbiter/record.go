package arbiter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Record is what the kernel does not know of an attachment.
type Record struct {
	Version int `json:"version"`
	// Name is what the owner called the attachment.
	Name string `json:"name"`
	// Interface is its name when it was attached. It may have another now.
	Interface string      `json:"interface"`
	Held      xdp.Holding `json:"held"`
	Owner     Owner       `json:"owner"`
	Since     time.Time   `json:"since"`
	// ProgramID and Digest are of the program that Holdfast attached last.
	ProgramID uint32 `json:"program_id"`
	Digest    string `json:"digest"`
	// PersistAs is the path of a second pin, or empty.
	PersistAs string `json:"persist_as,omitempty"`
	// Pending is a change that has begun and was not acknowledged.
	Pending *Pending `json:"pending,omitempty"`
}

// Owner is who asked, as the kernel vouches for it.
type Owner struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
	procfs.Process
	// Exe is the path of the program that asked, and Comm its name.
	Exe    string `json:"exe,omitempty"`
	Comm   string `json:"comm,omitempty"`
	Cgroup string `json:"cgroup,omitempty"`
}

// String names the owner for a message.
func (o Owner) String() string {
	if o.Comm == "" {
		return fmt.Sprintf("uid %d", o.UID)
	}
	return fmt.Sprintf("uid %d (%s, process %d then)", o.UID, o.Comm, o.PID)
}

// Pending is a change under way, or one whose process was killed.
type Pending struct {
	Op        string         `json:"op"`
	By        procfs.Process `json:"by"`
	UID       int            `json:"uid"`
	ProgramID uint32         `json:"program_id,omitempty"`
	Digest    string         `json:"digest,omitempty"`
}

const recordVersion = 1

func (r Record) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q", r.Name)
	fmt.Fprintf(&b, ", by %s, since %s", r.Owner, r.Since.Format(time.RFC3339))
	return b.String()
}

func self() (Owner, error) {
	p, err := procfs.ReadProcess(os.Getpid())
	if err != nil {
		return Owner{}, fmt.Errorf("find out who asks: %w", err)
	}
	exe, _ := os.Readlink("/proc/self/exe") // as good as it gets
	return Owner{
		UID: os.Getuid(), GID: os.Getgid(), Process: p,
		Exe: exe, Comm: procfs.Comm(p.PID), Cgroup: procfs.Cgroup(p.PID),
	}, nil
}

// abandoned tells whether the change is one whose process was killed.
func (p *Pending) abandoned() bool { return p != nil && !p.By.Alive() }

// recordSize bounds a record's JSON, in bytes.
const recordSize = 4096

// recordSpec is a hash and not an array, because replacing an element of one
// that is not preallocated is atomic for whoever reads it.
var recordSpec = ebpf.MapSpec{
	Name: "holdfast_record", Type: ebpf.Hash, Flags: unix.BPF_F_NO_PREALLOC,
	KeySize: 4, ValueSize: recordSize, MaxEntries: 1,
}

// createRecord makes a map with the record and pins it.
func createRecord(path string, r Record) error {
	m, err := ebpf.NewMap(&recordSpec)
	if err != nil {
		return fmt.Errorf("make the record: %w", err)
	}
	defer m.Close()
	if err := putRecord(m, r); err != nil {
		return err
	}
	if err := kernel.Pin(kernel.FD(m.FD()), path); err != nil {
		return fmt.Errorf("pin the record: %w", err)
	}
	return nil
}

func putRecord(m *ebpf.Map, r Record) error {
	b, err := encodeRecord(r)
	if err != nil {
		return err
	}
	if err := m.Put(uint32(0), b); err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	return nil
}

func encodeRecord(r Record) ([]byte, error) {
	r.Version = recordVersion
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(b) > recordSize {
		return nil, fmt.Errorf("%w: name and paths together are too long: the record has %d bytes, %d at most", xdp.ErrInvalid, len(b), recordSize)
	}
	return append(b, make([]byte, recordSize-len(b))...), nil
}

var errNoRecord = errors.New("the record of the attachment is missing; detach it, and attach it anew")

func readRecord(path string) (Record, error) {
	m, err := openRecord(path)
	if err != nil {
		return Record{}, err
	}
	defer m.Close()
	var b []byte
	if err := m.Lookup(uint32(0), &b); err != nil {
		return Record{}, fmt.Errorf("read the record: %w", err)
	}
	return decodeRecord(b)
}

func openRecord(path string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open the record: %w", err)
	}
	if m.Type() != recordSpec.Type || m.ValueSize() != recordSize {
		m.Close()
		return nil, errors.New("what is pinned as the record is another map")
	}
	return m, nil
}

func decodeRecord(b []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(bytes.TrimRight(b, "\x00"), &r); err != nil {
		return Record{}, fmt.Errorf("the record can't be read: %w", err)
	}
	if r.Version != recordVersion {
		return Record{}, fmt.Errorf("the record is of version %d, and this Holdfast knows version %d", r.Version, recordVersion)
	}
	return r, nil
}

func updateRecord(path string, r Record) error {
	m, err := openRecord(path)
	if err != nil {
		return err
	}
	defer m.Close()
	return putRecord(m, r)
}
