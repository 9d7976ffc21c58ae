package object

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/internal/verifierlog"
)

// What can be wrong with an object, for errors.Is.
var (
	ErrFormat       = errors.New("not a usable BPF object")
	ErrNoProgram    = errors.New("there is no XDP program")
	ErrAmbiguous    = errors.New("several XDP programs fit")
	ErrVariable     = errors.New("the global variable cannot be set")
	ErrRunConfig    = errors.New("the run configuration is not valid")
	ErrLicense      = errors.New("the program's license does not allow what it calls")
	ErrBTF          = errors.New("the type information (BTF) does not do")
	ErrVerifier     = errors.New("the kernel's verifier refused the program")
	ErrMap          = errors.New("a map cannot be used")
	ErrNotSupported = errors.New("this kernel cannot load it")
	ErrPermission   = errors.New("not permitted")
	// ErrExtension is an ErrNotSupported.
	ErrExtension = fmt.Errorf("%w as an extension of another program (freplace)", ErrNotSupported)
)

const hintCompileBTF = "compile it with clang -g, and strip it with llvm-strip -g only"

// Error is what the functions of this package return. Its text is one sentence
// that says what is wrong and what to do; the verifier's log is in it only by
// its last telling line.
type Error struct {
	Op      string // what was tried, as in "load"
	Object  string // the object's name
	Program string // the program's name, if it was about one
	Err     error  // what is wrong; wraps one of the sentinels where one fits
	Hint    string // what to do, may be empty

	// VerifierLog is all that the kernel's verifier said, of as many lines as
	// it likes; empty if it was not asked.
	VerifierLog string

	cause error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", e.Op, e.Object)
	if e.Program != "" {
		fmt.Fprintf(&b, ", program %s", e.Program)
	}
	fmt.Fprintf(&b, ": %s", e.Err)
	if e.Hint != "" {
		fmt.Fprintf(&b, "; %s", e.Hint)
	}
	return b.String()
}

// Unwrap gives the sentinel and the error beneath, such as the errno.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Err}
	}
	return []error{e.Err, e.cause}
}

// errorf completes an error with what was being done to which object.
func errorf(op, object, program string, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Err: err}
	}
	e.Op, e.Object = op, object
	if e.Program == "" {
		e.Program = program
	}
	return e
}

// explain says in words why the kernel did not load a program or its maps. It
// asks the kernel only after the failure, and only to tell a kernel that lacks
// something from a mistake in the object.
func (p *Prepared) explain(err error) *Error {
	e := &Error{Program: p.Info.Name, cause: err}
	extension := p.opts.Extend != nil
	deviceBound := p.opts.Ifindex != 0 && !p.opts.Offload && !extension

	var ve *ebpf.VerifierError
	var telling string
	if errors.As(err, &ve) {
		e.VerifierLog = strings.Join(ve.Log, "\n")
		telling = verifierlog.Telling(ve.Log)
	}
	text := err.Error()

	switch {
	case errors.Is(err, ebpf.ErrMapIncompatible):
		e.Err = fmt.Errorf("%w: one that is there already differs from the object's: %w", ErrMap, err)
		e.Hint = "unpin the old map, pin in another directory, or load the version of the object that made it"

	case ve != nil && strings.HasPrefix(ve.Error(), "load btf"):
		e.Err = fmt.Errorf("%w: the kernel refused it: %s", ErrBTF, orCause(telling, ve))
		e.Hint = "compile it with an older clang, or use a newer kernel"

	case strings.Contains(text, "CO-RE relocation"):
		if errors.Is(err, ebpf.ErrNotSupported) {
			e.Err = fmt.Errorf("%w: the program adapts itself to the kernel's types and this kernel does not tell them", ErrBTF)
			e.Hint = "use a kernel with CONFIG_DEBUG_INFO_BTF"
			break
		}
		e.Err = fmt.Errorf("%w: the program uses a type or member that this kernel does not have: %s", ErrBTF, orCause(telling, err))
		e.Hint = "guard the access with bpf_core_field_exists, or use a kernel that has it"

	case isLicense(telling):
		e.Err = fmt.Errorf("%w: %s", ErrLicense, telling)
		e.Hint = `give it a GPL-compatible license, as in char _license[] SEC("license") = "GPL", or do without the call`

	case isUnknownFunction(telling), strings.Contains(text, "unknown kfunc"):
		e.Err = fmt.Errorf("%w: the program calls a function that this kernel does not offer to XDP programs: %s", ErrNotSupported, orCause(telling, err))
		e.Hint = "use a newer kernel, or do without the call"

	case p.callbacks() && strings.Contains(telling, "number of funcs in func_info"):
		// It takes the address of a function for a number.
		e.Err = fmt.Errorf("%w: the program hands functions to helpers that call them, such as bpf_loop and timers, which came with Linux 5.13", ErrNotSupported)
		e.Hint = "use a newer kernel, or do without"

	case extension && (telling == "" || strings.Contains(telling, "JITed")) && !canExtend():
		// EPERM from a kernel that is locked down, EINVAL from one that has no
		// such programs or no JIT.
		e.Err = ErrExtension
		if telling != "" {
			e.Err = fmt.Errorf("%w: %s", e.Err, telling)
		}
		e.Hint = "attach the program alone, or use a kernel that takes programs of type BPF_PROG_TYPE_EXT"

	case extension && telling == "" && errors.Is(err, unix.EINVAL) && p.tailCalls():
		// The array belongs to programs of type XDP, as what it holds is.
		e.Err = fmt.Errorf("%w as an extension: it makes tail calls, which this kernel does not let extensions do", ErrNotSupported)
		e.Hint = "attach the program alone, or use a newer kernel (6.1 does)"

	case p.Info.Frags && !extension && errors.Is(err, unix.EINVAL) && telling == "" && !haveFlag(unix.BPF_F_XDP_HAS_FRAGS):
		e.Err = fmt.Errorf("%w: the program is for packets of several buffers (section %s), which needs Linux 5.18", ErrNotSupported, p.Info.Section)
		e.Hint = `put it into SEC("xdp"), or use a newer kernel`

	case deviceBound && errors.Is(err, unix.EINVAL) && telling == "" && !haveFlag(unix.BPF_F_XDP_DEV_BOUND_ONLY):
		e.Err = fmt.Errorf("%w: binding a program to one device needs Linux 6.3", ErrNotSupported)
		e.Hint = "load it unbound, or use a newer kernel"

	case extension && strings.Contains(telling, "requires BTF"):
		e.Err = fmt.Errorf("%w: the object has none, and what extends another program needs it", ErrBTF)
		e.Hint = hintCompileBTF

	case extension && strings.HasPrefix(telling, "Caller passes invalid args"):
		// It does not know that what an extension is given is a packet.
		e.Err = fmt.Errorf("%w: %s", ErrVerifier, telling)
		e.Hint = "make the function static: before Linux 6.1 an extension can't hand the packet to a global one"

	case telling != "":
		e.Err = fmt.Errorf("%w: %s", ErrVerifier, telling)
		if source := verifierlog.Source(ve.Log); source != "" {
			e.Err = fmt.Errorf("%w, at `%s`", e.Err, source)
		}
		e.Hint = "correct the program; the verifier's log shows the way to that line"

	case errors.Is(err, ebpf.ErrNotSupported):
		e.Err = fmt.Errorf("%w: %w", ErrNotSupported, err)
		e.Hint = "use a newer kernel"

	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Err = fmt.Errorf("%w to load BPF programs and maps", ErrPermission)
		e.Hint = "run as root or with CAP_BPF and CAP_NET_ADMIN" + memlockHint()

	case strings.Contains(text, "map create"):
		e.Err = fmt.Errorf("%w: the kernel did not create it: %w", ErrMap, err)

	default:
		e.Err = fmt.Errorf("the kernel did not load it: %w", err)
	}
	return e
}

func orCause(telling string, err error) string {
	if telling != "" {
		return telling
	}
	return err.Error()
}

func isLicense(telling string) bool {
	return strings.Contains(telling, "GPL-restricted") || strings.Contains(telling, "non-GPL compatible")
}

func isUnknownFunction(telling string) bool {
	return strings.HasPrefix(telling, "invalid func ") || strings.HasPrefix(telling, "unknown func ") ||
		strings.HasPrefix(telling, "program of this type cannot use helper")
}

// haveFlag tries whether the kernel loads XDP programs with the flag.
func haveFlag(flag uint32) bool {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.XDP,
		AttachType:   ebpf.AttachXDP,
		Flags:        flag,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, int32(chain.Pass)), asm.Return()},
	})
	if err != nil {
		return false
	}
	p.Close()
	return true
}

// canExtend tries whether the kernel, which takes XDP programs from this caller,
// takes an extension of one as well.
func canExtend() bool {
	target, extension, err := tryExtension()
	if target == nil {
		return true // It is not only extensions that are refused.
	}
	target.Close()
	if err == nil {
		extension.Close()
	}
	return err == nil
}

func tryExtension() (target, extension *ebpf.Program, err error) {
	context := &btf.Pointer{Target: &btf.Struct{Name: "xdp_md", Size: 24}}
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	function := func(name string) *btf.Func {
		return &btf.Func{
			Name: name, Linkage: btf.GlobalFunc,
			Type: &btf.FuncProto{Return: number, Params: []btf.FuncParam{{Name: "ctx", Type: context}}},
		}
	}
	const name = "target"
	target, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: asm.Instructions{
			btf.WithFuncMetadata(asm.Mov.Imm(asm.R0, int32(chain.Pass)).WithSymbol(name), function(name)),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, nil, err
	}
	extension, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "extension", Type: ebpf.Extension, AttachTarget: target, AttachTo: name, License: "GPL",
		Instructions: asm.Instructions{
			btf.WithFuncMetadata(asm.Mov.Imm(asm.R0, int32(chain.Pass)).WithSymbol("extension"), function("extension")),
			asm.Return(),
		},
	})
	return target, extension, err
}

func memlockHint() string {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil || lim.Cur == unix.RLIM_INFINITY {
		return ""
	}
	return fmt.Sprintf("; before Linux 5.11 also raise the limit of locked memory, which is %d KiB here", lim.Cur>>10)
}
