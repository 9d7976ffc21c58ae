// Package object turns one ELF file into one loaded XDP program: it picks the
// program, sets its global variables, reads its run configuration and loads it
// with the maps it needs and nothing else. What goes wrong on the way comes
// back in words, see [Error].
//
//	o, err := object.Open("filter.o")
//	...
//	err = o.Set("drop_port=53")
//	...
//	loaded, err := o.Load(object.LoadOptions{})
//	...
//	defer loaded.Close()
//	// loaded.Program is ready to be attached with package xdp.
//
// # Locked memory
//
// Before Linux 5.11 maps and programs are charged to RLIMIT_MEMLOCK, whose
// default is far too low. The limit belongs to the process, so a library leaves
// it alone: the main program raises it once, early, by calling
// [github.com/cilium/ebpf/rlimit.RemoveMemlock].
package object

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// MaxSize is the size in bytes of the biggest object file that is read. Real
// ones, with all their debug information, stay below a tenth of it.
const MaxSize = 64 << 20

// An Object is a parsed ELF file. It holds nothing of the kernel and need not
// be closed. It may be loaded any number of times. Its methods must not be
// called from several goroutines at once.
type Object struct {
	name string
	elf  []byte
	spec *ebpf.CollectionSpec
	// order has the functions' names as they stand in the file.
	order []string
	// assignments are those that Set has made.
	assignments []string
	// sum is that of elf.
	sum func() [sha256.Size]byte
}

// Open reads the object file at path. A file that is not there is an
// [fs.ErrNotExist], anything but a regular file that holds a BPF object for
// this machine's byte order an [ErrFormat].
func Open(path string) (*Object, error) {
	// Without O_NONBLOCK opening a named pipe would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(path, err)
	}
	defer f.Close()

	st, err := f.Stat()
	if err != nil {
		return nil, openError(path, err)
	}
	if st.IsDir() {
		return nil, formatError(path, "it is a directory", "name the object file in it", nil)
	}
	if !st.Mode().IsRegular() {
		return nil, formatError(path, "it is not a regular file", "name an ELF file made by clang -target bpf", nil)
	}
	return Read(path, f)
}

// Read reads an object from r, from offset 0 to its end. The name stands for
// the object in messages.
func Read(name string, r io.ReaderAt) (*Object, error) {
	b, err := io.ReadAll(io.NewSectionReader(r, 0, MaxSize+1))
	if err != nil {
		return nil, openError(name, err)
	}
	if len(b) > MaxSize {
		return nil, formatError(name, fmt.Sprintf("it is bigger than %d MiB", MaxSize>>20), "strip it of its debug information with llvm-strip -g", nil)
	}
	if what, hint := checkHeader(b); what != "" {
		return nil, formatError(name, what, hint, nil)
	}

	spec, order, err := parse(b)
	switch {
	case err == nil:
	case errors.Is(err, btf.ErrNotFound):
		return nil, &Error{Op: "open", Object: name, Err: fmt.Errorf("%w: %w", ErrBTF, err), Hint: hintCompileBTF, cause: err}
	case errors.Is(err, ebpf.ErrNotSupported):
		return nil, &Error{Op: "open", Object: name, Err: fmt.Errorf("%w: %w", ErrNotSupported, err), cause: err}
	default:
		return nil, formatError(name, "it is damaged, truncated or made in a way that is not understood: "+err.Error(), "compile it anew", err)
	}
	sum := sync.OnceValue(func() [sha256.Size]byte { return sha256.Sum256(b) })
	return &Object{name: name, elf: b, spec: spec, order: order, sum: sum}, nil
}

// parse guards against panics in the ELF and BTF readers: what a client sends
// must never bring down the process that reads it.
func parse(b []byte) (spec *ebpf.CollectionSpec, order []string, err error) {
	defer func() {
		if p := recover(); p != nil {
			spec, err = nil, fmt.Errorf("its contents contradict each other: %v", p)
		}
	}()
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, nil, err
	}
	if err := checkSizes(f); err != nil {
		return nil, nil, err
	}
	if order, err = functions(f); err != nil {
		return nil, nil, err
	}
	spec, err = ebpf.LoadCollectionSpecFromReader(bytes.NewReader(b))
	return spec, order, err
}

// functions are the names of the file's functions in the order of its sections,
// and within a section as they stand there.
func functions(f *elf.File) ([]string, error) {
	symbols, err := f.Symbols()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return nil, err
	}
	symbols = slices.DeleteFunc(symbols, func(s elf.Symbol) bool { return elf.ST_TYPE(s.Info) != elf.STT_FUNC })
	slices.SortStableFunc(symbols, func(a, b elf.Symbol) int {
		return cmp.Or(cmp.Compare(a.Section, b.Section), cmp.Compare(a.Value, b.Value))
	})
	names := make([]string, len(symbols))
	for i, s := range symbols {
		names[i] = s.Name
	}
	return names, nil
}

// checkSizes refuses a file whose sections, unpacked, are far bigger than the
// file may be: a .bss of gigabytes takes no room in the file, but in memory.
func checkSizes(f *elf.File) error {
	room := uint64(2 * MaxSize)
	for _, s := range f.Sections {
		if s.Size > room {
			return fmt.Errorf("its sections claim more than %d MiB", 2*MaxSize>>20)
		}
		room -= s.Size
	}
	return nil
}

// checkHeader tells in words what keeps the file from being a BPF object for
// this machine, as far as its first bytes show.
func checkHeader(b []byte) (what, hint string) {
	const (
		recompile  = "compile it with clang -target bpf -g -O2 -c"
		headerSize = 64
	)
	switch {
	case len(b) == 0:
		return "it is empty", recompile
	case !bytes.HasPrefix(b, []byte(elf.ELFMAG)):
		return "it is not an ELF file", recompile
	case len(b) < headerSize:
		return "it is truncated within its ELF header", "copy it again"
	case elf.Class(b[elf.EI_CLASS]) != elf.ELFCLASS64:
		return "it is not a 64-bit ELF file", recompile
	}

	var order binary.ByteOrder = binary.LittleEndian
	built, here, target := "little-endian", "big-endian", "bpfeb"
	if elf.Data(b[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
		built, here, target = "big-endian", "little-endian", "bpfel"
	}
	if one := []byte{0, 1}; order.Uint16(one) != binary.NativeEndian.Uint16(one) {
		return fmt.Sprintf("it is for %s machines and this one is %s", built, here), "compile it with clang -target " + target
	}

	// Old versions of LLVM left the machine empty.
	machine := elf.Machine(order.Uint16(b[18:]))
	if machine != elf.EM_BPF && machine != elf.EM_NONE {
		return fmt.Sprintf("it holds code for another machine (%s) instead of BPF", machine), recompile
	}
	return "", ""
}

// Name returns the name that the object was opened or read by.
func (o *Object) Name() string { return o.name }

// Path returns where the object's file is, for whoever asks from another directory; its
// name where it came from no file.
func (o *Object) Path() string {
	path, err := filepath.Abs(o.name)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return o.name
	}
	return path
}

// ELF returns the object's file, as it was read. Values that were set are not in
// it. It must not be changed.
func (o *Object) ELF() []byte { return o.elf }

// FileDigest is the SHA-256 of the file, as sha256: and the digits that sha256sum
// prints.
func (o *Object) FileDigest() string {
	sum := o.sum()
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ProgramInfo describes one program of an object.
type ProgramInfo struct {
	Name    string // the function's name
	Section string // the ELF section, as in SEC("xdp.frags")
	Type    ebpf.ProgramType
	Frags   bool // can take packets that span several buffers; needs Linux 5.18
	// Instructions is the program's size, with the functions that it calls.
	Instructions int
}

func (p ProgramInfo) String() string {
	return fmt.Sprintf("%s (section %s)", p.Name, p.Section)
}

// Programs lists all programs of the object, also those that are not for the
// XDP hook, by name.
func (o *Object) Programs() []ProgramInfo {
	var all []ProgramInfo
	for _, name := range slices.Sorted(maps.Keys(o.spec.Programs)) {
		all = append(all, programInfo(o.spec.Programs[name]))
	}
	return all
}

func programInfo(p *ebpf.ProgramSpec) ProgramInfo {
	return ProgramInfo{
		Name:    p.Name,
		Section: p.SectionName,
		Type:    p.Type,
		Frags:   p.Flags&unix.BPF_F_XDP_HAS_FRAGS != 0,

		Instructions: len(p.Instructions),
	}
}

// Choice says which of an object's programs is meant. An empty field says
// nothing, so the empty Choice means the only one there is.
type Choice struct {
	Name    string
	Section string
	// First takes the one that comes first in the file where several fit, also
	// one whose section does not say its type.
	First bool
}

func (c Choice) String() string {
	var s []string
	if c.Name != "" {
		s = append(s, fmt.Sprintf("named %q", c.Name))
	}
	if c.Section != "" {
		s = append(s, fmt.Sprintf("in section %q", c.Section))
	}
	return strings.Join(s, " ")
}

func (c Choice) fits(p *ebpf.ProgramSpec) bool {
	if c.Name != "" && c.Name != p.Name || c.Section != "" && c.Section != p.SectionName {
		return false
	}
	// Programs for devmaps and cpumaps are XDP programs too, but no interface
	// takes them.
	if p.Type == ebpf.XDP {
		return p.AttachType == ebpf.AttachXDP
	}
	// Older objects have section names that say nothing of the type. Whoever
	// picks such a program means it to be an XDP program.
	return p.Type == ebpf.UnspecifiedProgram && c != Choice{}
}

// Cost is what the program of that name takes: instructions, with those of all
// functions that it calls, and the bytes that the elements of its maps take when
// all of them are there. The kernel may need more, for itself.
func (o *Object) Cost(program string) (instructions int, mapMemory uint64, err error) {
	chosen, err := o.choose(Choice{Name: program})
	if err != nil {
		return 0, 0, err
	}
	_, needs, err := o.extract(chosen, LoadOptions{})
	if err != nil {
		return 0, 0, err
	}
	instructions = len(chosen.Instructions)
	for _, p := range needs.Programs {
		instructions += len(p.Instructions)
	}
	for _, m := range needs.Maps {
		bytes, err := MapMemory(m.Type, m.KeySize, m.ValueSize, m.MaxEntries)
		if err != nil {
			return 0, 0, err
		}
		if mapMemory+bytes < bytes {
			return instructions, math.MaxUint64, nil
		}
		mapMemory += bytes
	}
	return instructions, mapMemory, nil
}

// MapMemory is what the elements of a map take when all of them are there, in bytes, and
// the largest number where that is beyond all numbers.
func MapMemory(t ebpf.MapType, keySize, valueSize, maxEntries uint32) (uint64, error) {
	each := uint64(keySize) + uint64(valueSize)
	switch {
	case t == ebpf.RingBuf:
		each = 1 // of which maxEntries says how many bytes there are
	case perCPU(t):
		cpus, err := ebpf.PossibleCPU()
		if err != nil {
			return 0, err
		}
		each = uint64(keySize) + uint64(valueSize)*uint64(cpus)
	}
	high, bytes := bits.Mul64(each, uint64(max(maxEntries, 1)))
	if high != 0 {
		return math.MaxUint64, nil
	}
	return bytes, nil
}

func perCPU(t ebpf.MapType) bool {
	switch t {
	case ebpf.PerCPUHash, ebpf.PerCPUArray, ebpf.LRUCPUHash, ebpf.PerCPUCGroupStorage:
		return true
	}
	return false
}

// Program returns the one XDP program that the choice fits. If none does the
// error is an [ErrNoProgram], if several do an [ErrAmbiguous]; both name the
// programs there are.
func (o *Object) Program(c Choice) (ProgramInfo, error) {
	p, err := o.choose(c)
	if err != nil {
		return ProgramInfo{}, errorf("choose a program of", o.name, "", err)
	}
	return programInfo(p), nil
}

func (o *Object) choose(c Choice) (*ebpf.ProgramSpec, error) {
	var fit, xdp []*ebpf.ProgramSpec
	for _, name := range slices.Sorted(maps.Keys(o.spec.Programs)) {
		p := o.spec.Programs[name]
		if c.fits(p) {
			fit = append(fit, p)
		}
		if (Choice{}).fits(p) {
			xdp = append(xdp, p)
		}
	}
	if c.First && len(fit) > 1 {
		return slices.MinFunc(fit, func(a, b *ebpf.ProgramSpec) int {
			return cmp.Compare(slices.Index(o.order, a.Name), slices.Index(o.order, b.Name))
		}), nil
	}
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(fit) > 1:
		return nil, &Error{
			Err:  fmt.Errorf("%w: %s", ErrAmbiguous, list(fit)),
			Hint: "choose one by its name",
		}
	case len(xdp) > 0:
		return nil, &Error{
			Err:  fmt.Errorf("%w %s, but %s", ErrNoProgram, c, list(xdp)),
			Hint: "choose one of these",
		}
	case len(o.spec.Programs) > 0:
		return nil, &Error{
			Err:  fmt.Errorf("%w, only %s", ErrNoProgram, o.listTypes()),
			Hint: `put the program into SEC("xdp"), or choose it by name if its section says nothing of its type`,
		}
	}
	return nil, &Error{
		Err:  fmt.Errorf("%w, nor any other", ErrNoProgram),
		Hint: `put the program into SEC("xdp")`,
	}
}

func list(ps []*ebpf.ProgramSpec) string {
	var s []string
	for _, p := range ps {
		s = append(s, programInfo(p).String())
	}
	return strings.Join(s, ", ")
}

func (o *Object) listTypes() string {
	var s []string
	for _, p := range o.Programs() {
		s = append(s, fmt.Sprintf("%s (section %s, type %s)", p.Name, p.Section, p.Type))
	}
	return strings.Join(s, ", ")
}

// digest identifies what a load of the program, as it is extracted, asks for:
// the file, the program with its types and device, and the values of all
// variables.
func (o *Object) digest(p *ebpf.ProgramSpec) string {
	h := sha256.New()
	file := o.sum()
	h.Write(file[:])
	field := func(b []byte) {
		// The length keeps neighbouring fields apart.
		_ = binary.Write(h, binary.LittleEndian, uint64(len(b)))
		h.Write(b)
	}
	field([]byte(p.Name))
	// The flags tell a program that is bound to the device from one that is
	// offloaded to it.
	for _, n := range []uint32{uint32(p.Type), uint32(p.AttachType), p.Ifindex, p.Flags} {
		_ = binary.Write(h, binary.LittleEndian, n)
	}
	for _, name := range slices.Sorted(maps.Keys(o.spec.Variables)) {
		field([]byte(name))
		field(o.spec.Variables[name].Value)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func openError(name string, err error) error {
	e := &Error{Op: "open", Object: name, cause: err}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err // The path stands in the message already.
	}
	e.Err = err
	if errors.Is(err, fs.ErrPermission) {
		e.Err = fmt.Errorf("%w: %w", ErrPermission, err)
		e.Hint = "make the file readable for this user"
	}
	return e
}

func formatError(name, what, hint string, cause error) error {
	return &Error{Op: "open", Object: name, Err: fmt.Errorf("%w: %s", ErrFormat, what), Hint: hint, cause: cause}
}

// Digest is what [Loaded.Digest] will be if the object is loaded so.
func (o *Object) Digest(opts LoadOptions) (string, error) {
	p, _, err := o.prepared(opts)
	if err != nil {
		return "", errorf("read", o.name, "", err)
	}
	return p.Digest, nil
}
