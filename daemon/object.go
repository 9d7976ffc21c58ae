package daemon

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// maxObject is the size in bytes of the largest object that is read.
const maxObject = 16 << 20

// remote are the file systems whose servers may let a read wait for as long as they
// like, by their numbers in statfs.
var remote = map[int64]string{
	unix.FUSE_SUPER_MAGIC: "fuse", unix.NFS_SUPER_MAGIC: "nfs", unix.V9FS_MAGIC: "9p", unix.CEPH_SUPER_MAGIC: "ceph",
	unix.AFS_FS_MAGIC: "afs", unix.SMB_SUPER_MAGIC: "smb", unix.CIFS_SUPER_MAGIC: "cifs", unix.SMB2_SUPER_MAGIC: "smb2",
	unix.CODA_SUPER_MAGIC: "coda",
}

// object reads an object that a client sent. It reads a copy: the client can go on
// writing into the file.
func (s *session) object(c *varlink.Call, o *wire.Object, h *xdp.Hook) (*object.Object, object.LoadOptions, error) {
	options := object.LoadOptions{Program: object.Choice{Name: o.Program, Section: o.Section, First: o.First}}
	options.Offload = h.Mode() == xdp.Offload
	if o.DeviceBound || options.Offload {
		options.Ifindex = h.Index()
	}
	f, err := c.Files.Take(o.File)
	if err != nil {
		return nil, options, varlink.InvalidParameter("object.file: " + err.Error())
	}
	defer f.Close()
	b, err := readFile(f)
	if err != nil {
		return nil, options, refuse(o, err.Error())
	}
	file, err := parse(displayed(o.Name), b)
	if err != nil {
		return nil, options, err
	}
	for _, v := range o.Variables {
		if err := file.Set(v); err != nil {
			return nil, options, err
		}
	}
	return file, options, nil
}

func refuse(o *wire.Object, detail string) error {
	return &xdp.Error{Op: "read", Hook: "the object " + displayed(o.Name), Err: xdp.ErrInvalid, Detail: detail, Hint: "send a file, or a memfd with its contents"}
}

func readFile(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("the descriptor is no file (%s)", info.Mode().Type())
	}
	if info.Size() > maxObject {
		return nil, fmt.Errorf("it has %d bytes, %d at most", info.Size(), maxObject)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	var fsErr error
	if err := raw.Control(func(fd uintptr) { fsErr = unix.Fstatfs(int(fd), &fs) }); err != nil {
		return nil, err
	}
	if fsErr != nil {
		return nil, os.NewSyscallError("fstatfs", fsErr)
	}
	kind := int64(fs.Type) //nolint:unconvert // it has another type on other architectures
	if name, ok := remote[kind]; ok {
		return nil, fmt.Errorf("it is on a file system (%s) that somebody else serves", name)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxObject+1))
	if err == nil && len(b) > maxObject {
		err = fmt.Errorf("it has more than %d bytes", maxObject)
	}
	return b, err
}

// parse parses an object. The parsers were not made for what anybody sends: they must
// not bring down the daemon.
func parse(name string, b []byte) (o *object.Object, err error) {
	defer func() {
		if p := recover(); p != nil {
			o, err = nil, &object.Error{Op: "read", Object: name, Err: object.ErrFormat, Hint: "compile it anew"}
		}
	}()
	return object.Read(name, bytes.NewReader(b))
}

// displayed is what is said of a name that somebody else gave.
func displayed(name string) string {
	const most = 200
	if len(name) > most {
		name = name[:most]
	}
	name = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
	if name == "" {
		return "without a name"
	}
	return name
}

// program takes a program that a client has loaded itself. The caller closes it.
func (s *session) program(c *varlink.Call, number int) (*ebpf.Program, error) {
	f, err := c.Files.Take(number)
	if err != nil {
		return nil, varlink.InvalidParameter("extension: " + err.Error())
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if !kernel.IsProgram(kernel.FD(fd)) {
		unix.Close(fd)
		return nil, &xdp.Error{Op: "take", Hook: "the extension", Err: xdp.ErrInvalid, Detail: "the descriptor is of no program", Hint: "load one against what Slot returns"}
	}
	// It owns the descriptor from then on.
	return ebpf.NewProgramFromFD(fd)
}

// duplicate makes a file of a copy of a descriptor.
func duplicate(fd int, name string) (*os.File, error) {
	own, err := kernel.FD(fd).Dup()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), name), nil
}
