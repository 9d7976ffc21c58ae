package trace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// What can go wrong beside package xdp's sentinels, for errors.Is. Each is
// wrapped by an [*xdp.Error].
var (
	// ErrUntraceable: the kernel attaches nothing to the program. It is an
	// ErrNotSupported.
	ErrUntraceable = fmt.Errorf("%w: the program can't be traced", xdp.ErrNotSupported)
	// ErrFused: the member is no program of its own, but a part of the chain's.
	// It is what [Trace.Unseen] tells, bare.
	ErrFused = errors.New("the member is fused with others into one program")
)

// Options say what is traced.
type Options struct {
	// Hook is where packets come to. Nil is any: all that runs the program.
	Hook *xdp.Hook
	// Program is the id of what is attached there: a dispatcher, a fused chain
	// or a program alone.
	Program uint32
	// Members are those of the chain, in order. A program alone is one, with
	// the same id.
	Members []Member
	// Filter is which packets, nil for all.
	Filter *Filter
	// Count is after how many packets the trace ends, at least 1.
	Count uint32
	// Snap is how many bytes of each packet are kept, MaxSnap at most.
	Snap uint32
}

// MaxSnap is how much can be kept of a packet, in bytes.
const MaxSnap = maxSnap

// Trace is a trace that is on.
type Trace struct {
	members  []Member
	seen     []bool
	refused  []error
	alone    bool
	left     uint32
	boot     time.Time
	links    []kernel.FD
	reader   *ringbuf.Reader
	counters *ebpf.Map
}

// Open begins a trace, which ends with Close and with the process. It needs
// CAP_SYS_ADMIN, and a kernel that compiles programs and has BTF (Linux 5.10; on
// arm64 6.0). Members that the kernel does not let be watched are told by
// [Trace.Unseen].
//
// Errors: ErrUntraceable, xdp.ErrNotFound, xdp.ErrPermission, xdp.ErrInvalid.
func Open(o Options) (*Trace, error) {
	if o.Count == 0 || o.Snap > MaxSnap {
		return nil, &xdp.Error{
			Op: "trace", Err: xdp.ErrInvalid, Detail: fmt.Sprintf("%d packets, %d bytes of each", o.Count, o.Snap),
			Hint: fmt.Sprintf("ask for a packet at least, and for %d bytes of it at most", MaxSnap),
		}
	}
	t := &Trace{
		members: o.Members, seen: make([]bool, len(o.Members)), refused: make([]error, len(o.Members)), left: o.Count,
		alone: len(o.Members) == 1 && (o.Members[0].ProgramID == o.Program || o.Members[0].ProgramID == 0),
	}
	err := t.open(o)
	if errors.Is(err, unix.EBUSY) && len(o.Members) == 1 && !t.alone {
		// The only member of a libxdp chain takes the place of the dispatcher's
		// main function, so that packets meet nothing else.
		t.Close()
		t.alone, o.Program = true, o.Members[0].ProgramID
		err = t.open(o)
	}
	if err != nil {
		t.Close()
		return nil, explain(o, err)
	}
	return t, nil
}

func (t *Trace) open(o Options) error {
	spec, err := loadPrograms()
	if err != nil {
		return err
	}
	options, err := o.forProgram()
	if err != nil {
		return err
	}
	target, err := openFunction(o.Program)
	if err != nil {
		return err
	}
	defer target.program.Close()
	part := prepare(spec, target, []string{programsMapStates, programsMapPackets, mapOptions, mapCounters}, programsProgBegin, programsProgEnd)
	part.Maps[mapOptions].Contents = []ebpf.MapKV{{Key: uint32(0), Value: options}}
	shared, err := ebpf.NewCollection(part)
	if err != nil {
		return err
	}
	defer shared.Close()
	if t.reader, err = ringbuf.NewReader(shared.Maps[programsMapPackets]); err != nil {
		return err
	}
	if t.counters, err = shared.Maps[mapCounters].Clone(); err != nil {
		return err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	t.boot = time.Now().Add(-time.Duration(now.Nano()))
	// The first is the last that is attached, so that no packet is followed which
	// not all look at.
	if err := t.attach(shared.Programs[programsProgEnd]); err != nil {
		return err
	}
	for i, m := range o.Members {
		if t.alone {
			t.seen[i] = true
			break
		}
		if m.ProgramID == 0 {
			t.refused[i] = ErrFused
			continue
		}
		if err := t.watch(spec, shared.Maps[programsMapStates], uint32(i), m.ProgramID); err != nil {
			t.refused[i] = explain(Options{Program: m.ProgramID}, err)
			continue
		}
		t.seen[i] = true
	}
	return t.attach(shared.Programs[programsProgBegin])
}

// forProgram are the options as the kernel's program has them.
func (o Options) forProgram() (programOptions, error) {
	p := programOptions{Limit: o.Count, Snap: o.Snap}
	if o.Filter != nil {
		p.Tests = uint32(copy(p.Test[:], o.Filter.tests))
	}
	if o.Hook == nil {
		return p, nil
	}
	p.Ifindex = uint32(o.Hook.Index())
	f, err := o.Hook.Namespace().File()
	if err != nil {
		return p, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return p, err
	}
	p.Netns = uint32(info.Sys().(*syscall.Stat_t).Ino)
	return p, nil
}

// function is the main function of a program, which others can be attached to.
type function struct {
	program *ebpf.Program
	name    string
}

var errNoTypes = errors.New("it has no type information (BTF)")

// openFunction opens a program, which the caller closes.
func openFunction(id uint32) (f function, err error) {
	fd, err := kernel.ProgramByID(id)
	if err != nil {
		return f, err
	}
	info, err := kernel.ReadProgram(fd)
	if err != nil {
		fd.Close()
		return f, err
	}
	if f.program, err = ebpf.NewProgramFromFD(int(fd)); err != nil {
		return f, err
	}
	defer func() {
		if err != nil {
			f.program.Close()
		}
	}()
	if info.BTFID == 0 {
		return f, errNoTypes
	}
	handle, err := btf.NewHandleFromID(btf.ID(info.BTFID))
	if err != nil {
		return f, err
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return f, err
	}
	main, err := types.TypeByID(btf.TypeID(info.Function))
	if err != nil {
		return f, err
	}
	f.name = main.TypeName()
	return f, nil
}

// The sections that the programs' variables are maps of.
const (
	mapOptions  = ".rodata"
	mapNumber   = ".rodata.member"
	mapCounters = ".bss"
)

// prepare makes a copy of the programs, with these of their maps only, to be
// attached to the function.
func prepare(spec *ebpf.CollectionSpec, f function, maps []string, programs ...string) *ebpf.CollectionSpec {
	part := spec.Copy()
	for name := range part.Maps {
		if !slices.Contains(maps, name) {
			delete(part.Maps, name)
		}
	}
	// The loader maps variables into memory, until the garbage collector comes by.
	clear(part.Variables)
	for name, p := range part.Programs {
		p.AttachTarget, p.AttachTo = f.program, f.name
		if !slices.Contains(programs, name) {
			delete(part.Programs, name)
		}
	}
	return part
}

// watch has what the member returns be told.
func (t *Trace) watch(spec *ebpf.CollectionSpec, states *ebpf.Map, number, id uint32) error {
	f, err := openFunction(id)
	if err != nil {
		return err
	}
	defer f.program.Close()
	part := prepare(spec, f, []string{programsMapStates, mapNumber}, programsProgMember)
	part.Maps[mapNumber].Contents = []ebpf.MapKV{{Key: uint32(0), Value: number}}
	c, err := ebpf.NewCollectionWithOptions(part, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{programsMapStates: states},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	return t.attach(c.Programs[programsProgMember])
}

func (t *Trace) attach(p *ebpf.Program) error {
	link, err := kernel.AttachTracing(p.FD())
	if err != nil {
		return err
	}
	t.links = append(t.links, link)
	return nil
}

func explain(o Options, err error) error {
	var known *xdp.Error
	if errors.As(err, &known) {
		return err
	}
	e := &xdp.Error{Op: "trace", Hook: fmt.Sprintf("program %d", o.Program), Err: xdp.ErrUnexpected, Detail: err.Error(), Hint: "try again"}
	if o.Hook != nil {
		e.Hook = o.Hook.String()
	}
	var verifier *ebpf.VerifierError
	switch {
	// The verifier refuses with these errnos, too, and then says why.
	case errors.As(err, &verifier) && len(verifier.Log) > 0:
		e.Err, e.Hint = ErrUntraceable, "the sentence is the kernel's verifier's; a newer kernel may take the program"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Err, e.Detail, e.Hint = xdp.ErrPermission, "the kernel does not let this process trace programs", "run as root; where root is refused, the kernel or a security module takes no programs of type BPF_PROG_TYPE_TRACING"
	case errors.Is(err, os.ErrNotExist) && errors.Is(err, unix.ENOENT):
		e.Err, e.Detail, e.Hint = xdp.ErrNotFound, fmt.Sprintf("program %d is not loaded", o.Program), "look at what is attached now"
	case errors.Is(err, errNoTypes):
		e.Err, e.Detail = ErrUntraceable, fmt.Sprintf("program %d was loaded without type information (BTF), which the kernel asks for", o.Program)
		e.Hint = "build it with debug information (clang -g)"
	case errors.Is(err, unix.EBUSY):
		e.Err, e.Detail = ErrUntraceable, "an extension (freplace) has the place of its main function"
		e.Hint = "trace the extension"
	case errors.Is(err, ebpf.ErrNotSupported), verifier != nil, errors.Is(err, unix.Errno(524)), errors.Is(err, unix.EINVAL):
		e.Err, e.Hint = ErrUntraceable, "it takes a kernel that compiles programs (net.core.bpf_jit_enable) and has BTF"
	}
	errors.As(err, &e.Errno)
	return e
}

// Members are those that the trace was opened with.
func (t *Trace) Members() []Member { return t.members }

// Unseen tells why what the member returns can't be told, nil if it can be: ErrFused,
// or an [*xdp.Error] as Open returns them.
func (t *Trace) Unseen(member int) error { return t.refused[member] }

// Next waits for a packet. It returns an io.EOF after as many as were asked for,
// and the context's error if it is over before.
func (t *Trace) Next(ctx context.Context) (*Packet, error) {
	if t.left == 0 {
		return nil, io.EOF
	}
	reader := t.reader // which Close forgets, maybe before the function below runs
	stop := context.AfterFunc(ctx, func() { reader.Flush() })
	defer stop()
	for {
		record, err := reader.Read()
		if errors.Is(err, ringbuf.ErrFlushed) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			continue // that was an earlier context's
		}
		if err != nil {
			return nil, fmt.Errorf("wait for a packet: %w", err)
		}
		p, err := parseRecord(record.RawSample, t.boot, len(t.members))
		if err != nil {
			return nil, err
		}
		t.left--
		if t.alone {
			p.Met = []Step{{0, p.Verdict}}
		}
		p.judge(t.members, t.seen)
		return p, nil
	}
}

// Lost is how many packets matched that there was no room for, because nobody
// took those before.
func (t *Trace) Lost() (uint64, error) {
	var c counters
	if err := t.counters.Lookup(uint32(0), &c); err != nil {
		return 0, err
	}
	return c.Lost, nil
}

// Close ends the trace. Nothing may be asked of it then.
func (t *Trace) Close() error {
	var err error
	for _, link := range slices.Backward(t.links) {
		err = errors.Join(err, link.Close())
	}
	if t.reader != nil {
		err = errors.Join(err, t.reader.Close())
	}
	if t.counters != nil {
		err = errors.Join(err, t.counters.Close())
	}
	t.links, t.reader, t.counters = nil, nil, nil
	return err
}
