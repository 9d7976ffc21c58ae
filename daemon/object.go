package daemon

import (
	"bytes"
	"context"
	"errors"
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

const (
	// maxObject is the size in bytes of the largest object that is read, of all objects
	// of one call, and of those that a user has read at once.
	maxObject = 16 << 20
	// maxObjects is the size of all that are read at once.
	maxObjects = 4 * maxObject
)

// remote are the file systems whose servers may let a read wait for as long as they
// like, by their numbers in statfs.
var remote = map[int64]string{
	unix.FUSE_SUPER_MAGIC: "fuse", unix.NFS_SUPER_MAGIC: "nfs", unix.V9FS_MAGIC: "9p", unix.CEPH_SUPER_MAGIC: "ceph",
	unix.AFS_FS_MAGIC: "afs", unix.SMB_SUPER_MAGIC: "smb", unix.CIFS_SUPER_MAGIC: "cifs", unix.SMB2_SUPER_MAGIC: "smb2",
	unix.CODA_SUPER_MAGIC: "coda",
}

// work is what a call works with: the objects and programs that came with it. What all
// calls read at once is bounded, and what those of one user do.
type work struct {
	s        *session
	reserved int64
	programs []*ebpf.Program
}

// close gives back what the objects took, and closes the programs.
func (w *work) close() {
	w.s.daemon.objects.give(w.reserved)
	w.s.user.objects.give(w.reserved)
	w.reserved = 0
	for _, program := range w.programs {
		program.Close()
	}
	w.programs = nil
}

// read reads objects, nil for none, into memory. It reads copies: the client can go on
// writing into the files. It is called once.
func (w *work) read(ctx context.Context, c *varlink.Call, objects []*wire.Object) ([][]byte, error) {
	files, sizes := make([]*os.File, len(objects)), make([]int64, len(objects))
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var all int64
	for n, o := range objects {
		if o == nil {
			continue
		}
		var err error
		if files[n], err = c.Files.Take(o.File); err != nil {
			return nil, varlink.InvalidParameter("object.file: " + err.Error())
		}
		if sizes[n], err = size(files[n]); err != nil {
			return nil, refuse(o, err.Error())
		}
		if all += sizes[n]; all > maxObject {
			return nil, refuse(o, fmt.Sprintf("the objects have %d bytes, %d at most", all, maxObject))
		}
	}
	// First of the user's own, so that whoever waits for that has nothing of the others'.
	if err := w.s.user.objects.take(ctx, all); err != nil {
		return nil, err
	}
	if err := w.s.daemon.objects.take(ctx, all); err != nil {
		w.s.user.objects.give(all)
		return nil, err
	}
	w.reserved = all
	read := make([][]byte, len(objects))
	for n, o := range objects {
		if o == nil {
			continue
		}
		var err error
		if read[n], err = readFile(files[n], sizes[n]); err != nil {
			return nil, refuse(o, err.Error())
		}
	}
	return read, nil
}

// parseFor parses an object that a client sent, for a hook.
func parseFor(h *xdp.Hook, o *wire.Object, b []byte) (*object.Object, object.LoadOptions, error) {
	options := object.LoadOptions{Program: object.Choice{Name: o.Program, Section: o.Section, First: o.First}}
	options.Offload = h.Mode() == xdp.Offload
	if o.DeviceBound || options.Offload {
		options.Ifindex = h.Index()
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

// size is a file's, if it is one that can be read.
func size(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("the descriptor is no file (%s)", info.Mode().Type())
	}
	if info.Size() > maxObject {
		return 0, fmt.Errorf("it has %d bytes, %d at most", info.Size(), maxObject)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var fs unix.Statfs_t
	var fsErr error
	if err := raw.Control(func(fd uintptr) { fsErr = unix.Fstatfs(int(fd), &fs) }); err != nil {
		return 0, err
	}
	if fsErr != nil {
		return 0, os.NewSyscallError("fstatfs", fsErr)
	}
	kind := int64(fs.Type) //nolint:unconvert // it has another type on other architectures
	if name, ok := remote[kind]; ok {
		return 0, fmt.Errorf("it is on a file system (%s) that somebody else serves", name)
	}
	return info.Size(), nil
}

// readFile reads a file of that size. It may have become a shorter one.
func readFile(f *os.File, size int64) ([]byte, error) {
	b := make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
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

// program takes a program that a client has loaded itself.
func (w *work) program(c *varlink.Call, number int) (*ebpf.Program, error) {
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
	p, err := ebpf.NewProgramFromFD(fd) // which owns the descriptor from then on
	if err == nil {
		w.programs = append(w.programs, p)
	}
	return p, err
}

// duplicate makes a file of a copy of a descriptor.
func duplicate(fd int, name string) (*os.File, error) {
	own, err := kernel.FD(fd).Dup()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), name), nil
}
