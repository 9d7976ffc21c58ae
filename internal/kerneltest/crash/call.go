package crash

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is a system call that may be a point.
type call struct {
	name   string
	decode decoder
}

// decoder reads Op, On and Query from a call's arguments. It returns false for
// a use of the call that is never a point.
type decoder func(c caller, args [6]uint64) (Point, bool)

// caller is the thread that makes the call, stopped in front of it.
type caller struct {
	tid   int
	pid   int
	pidfd int
}

// calls are all system calls that can be points. Everything else, such as what
// the Go runtime does for memory, threads, timers and polling, never is one.
var calls = map[uint64]call{
	unix.SYS_BPF: {"bpf", bpf},

	unix.SYS_SENDTO:  {"sendto", netlink(func(c caller, a [6]uint64) []byte { return c.bytes(a[1], a[2]) })},
	unix.SYS_SENDMSG: {"sendmsg", netlink(func(c caller, a [6]uint64) []byte { return c.firstVector(a[1]) })},

	unix.SYS_OPENAT:     {"openat", opened(0, 1, 2)},
	unix.SYS_OPENAT2:    {"openat2", openat2},
	unix.SYS_MKDIRAT:    {"mkdirat", path(0, 1)},
	unix.SYS_MKNODAT:    {"mknodat", path(0, 1)},
	unix.SYS_UNLINKAT:   {"unlinkat", path(0, 1)},
	unix.SYS_RENAMEAT2:  {"renameat2", paths(0, 1, 2, 3)},
	unix.SYS_RENAMEAT:   {"renameat", paths(0, 1, 2, 3)},
	unix.SYS_LINKAT:     {"linkat", paths(0, 1, 2, 3)},
	unix.SYS_SYMLINKAT:  {"symlinkat", paths(noArg, 0, 1, 2)},
	unix.SYS_FCHMODAT:   {"fchmodat", path(0, 1)},
	unix.SYS_FCHOWNAT:   {"fchownat", path(0, 1)},
	unix.SYS_FCHMOD:     {"fchmod", descriptor},
	unix.SYS_FCHOWN:     {"fchown", descriptor},
	unix.SYS_FLOCK:      {"flock", flock},
	unix.SYS_CLOSE:      {"close", closed},
	unix.SYS_WRITE:      {"write", written(func(c caller, a [6]uint64) []byte { return c.bytes(a[1], a[2]) })},
	unix.SYS_WRITEV:     {"writev", written(func(c caller, a [6]uint64) []byte { return c.vector(a[1], a[2]) })},
	unix.SYS_SETNS:      {"setns", descriptor},
	unix.SYS_UNSHARE:    {"unshare", flags(0)},
	unix.SYS_MOUNT:      {"mount", mount},
	unix.SYS_UMOUNT2:    {"umount2", path(noArg, 0)},
	unix.SYS_MOVE_MOUNT: {"move_mount", paths(0, 1, 2, 3)},
	unix.SYS_FSMOUNT:    {"fsmount", plain},
	unix.SYS_OPEN_TREE:  {"open_tree", path(0, 1)},

	unix.SYS_CLONE:             {"clone", clone(func(_ caller, a [6]uint64) uint64 { return a[0] })},
	unix.SYS_CLONE3:            {"clone3", clone(func(c caller, a [6]uint64) uint64 { return c.uint64(a[0]) })},
	unix.SYS_EXECVE:            {"execve", path(noArg, 0)},
	unix.SYS_EXECVEAT:          {"execveat", path(0, 1)},
	unix.SYS_KILL:              {"kill", sent(1)},
	unix.SYS_PIDFD_OPEN:        {"pidfd_open", query(number(0))},
	unix.SYS_PIDFD_SEND_SIGNAL: {"pidfd_send_signal", sent(1)},
	unix.SYS_EXIT_GROUP:        {"exit_group", number(0)},
}

func plain(caller, [6]uint64) (Point, bool) { return Point{}, true }

func query(d decoder) decoder {
	return func(c caller, a [6]uint64) (Point, bool) {
		p, ok := d(c, a)
		p.Query = true
		return p, ok
	}
}

func number(arg int) decoder {
	return func(_ caller, a [6]uint64) (Point, bool) {
		return Point{On: strconv.Itoa(int(int32(a[arg])))}, true
	}
}

func flags(arg int) decoder {
	return func(_ caller, a [6]uint64) (Point, bool) {
		return Point{Op: fmt.Sprintf("%#x", a[arg])}, true
	}
}

func descriptor(c caller, a [6]uint64) (Point, bool) {
	return Point{On: c.descriptor(a[0])}, true
}

// noArg stands for the directory argument of a call that has none.
const noArg = -1

func path(dir, name int) decoder {
	return func(c caller, a [6]uint64) (Point, bool) {
		return Point{On: c.path(a, dir, name)}, true
	}
}

func paths(dir, name, newDir, newName int) decoder {
	return func(c caller, a [6]uint64) (Point, bool) {
		return Point{On: c.path(a, dir, name) + " " + c.path(a, newDir, newName)}, true
	}
}

func mount(c caller, a [6]uint64) (Point, bool) {
	return Point{Op: c.text(a[2]), On: c.text(a[1])}, true
}

// opened decodes an open, which changes something only where it may create or
// truncate a file.
func opened(dir, name, flags int) decoder {
	return func(c caller, a [6]uint64) (Point, bool) {
		return Point{On: c.path(a, dir, name), Query: !makes(a[flags])}, true
	}
}

func openat2(c caller, a [6]uint64) (Point, bool) {
	how := c.uint64(a[2]) // the flags are the first field of struct open_how
	return Point{On: c.path(a, 0, 1), Query: !makes(how)}, true
}

func makes(flags uint64) bool {
	return flags&(unix.O_CREAT|unix.O_TRUNC) != 0 || flags&unix.O_TMPFILE == unix.O_TMPFILE
}

func flock(c caller, a [6]uint64) (Point, bool) {
	op := map[uint64]string{unix.LOCK_SH: "LOCK_SH", unix.LOCK_EX: "LOCK_EX", unix.LOCK_UN: "LOCK_UN"}[a[1]&^unix.LOCK_NB]
	if a[1]&unix.LOCK_NB != 0 {
		op += "|LOCK_NB"
	}
	return Point{Op: op, On: c.descriptor(a[0])}, true
}

// closed decodes the close of a descriptor of a program, map or link: the last
// one to be closed is the end of what it stands for.
func closed(c caller, a [6]uint64) (Point, bool) {
	name, ok := strings.CutPrefix(c.descriptor(a[0]), "anon_inode:")
	return Point{On: name}, ok && strings.HasPrefix(name, "bpf")
}

// written decodes what goes to standard output, where a command acknowledges
// what it has done.
func written(text func(caller, [6]uint64) []byte) decoder {
	return func(c caller, a [6]uint64) (Point, bool) {
		if a[0] != 1 {
			return Point{}, false
		}
		const enough = 60
		s := text(c, a)
		if len(s) > enough {
			s = append(s[:enough:enough], "..."...)
		}
		return Point{Op: "stdout", On: strconv.Quote(string(s))}, true
	}
}

// clone decodes the start of a process; that of a thread is no point.
func clone(flags func(caller, [6]uint64) uint64) decoder {
	return func(c caller, a [6]uint64) (Point, bool) {
		return Point{}, flags(c, a)&unix.CLONE_THREAD == 0
	}
}

func sent(arg int) decoder {
	return func(_ caller, a [6]uint64) (Point, bool) {
		sig := unix.Signal(a[arg])
		return Point{Op: unix.SignalName(sig), Query: sig == 0}, true
	}
}

// netlink decodes the first message of what is sent on a netlink socket.
func netlink(message func(caller, [6]uint64) []byte) decoder {
	return func(c caller, a [6]uint64) (Point, bool) {
		protocol, ok := c.netlinkProtocol(int(a[0]))
		if !ok {
			return Point{}, false
		}
		m := message(c, a)
		if len(m) < unix.SizeofNlMsghdr {
			return Point{Op: "netlink"}, true
		}
		typ, payload := binary.NativeEndian.Uint16(m[4:]), m[unix.SizeofNlMsghdr:]
		if protocol != unix.NETLINK_ROUTE {
			return generic(protocol, typ, payload), true
		}
		p := Point{Op: rtnetlink(typ), Query: isGet(typ)}
		if strings.HasSuffix(p.Op, "LINK") && len(payload) >= unix.SizeofIfInfomsg {
			p.On = fmt.Sprintf("ifindex %d", int32(binary.NativeEndian.Uint32(payload[4:])))
			p.Query = p.Query || typ == unix.RTM_SETLINK && leavesEmpty(payload[unix.SizeofIfInfomsg:])
		}
		return p, true
	}
}

// leavesEmpty says whether the attributes of an RTM_SETLINK ask to detach what is
// at an XDP hook that is empty, and for nothing else: the kernel's refusal tells
// who holds it, and where there is none nothing happens either.
func leavesEmpty(b []byte) bool {
	link := attributes(b)
	xdp := attributes(link[unix.IFLA_XDP])
	is := func(typ uint16, value int32) bool {
		v := xdp[typ]
		return len(v) == 4 && int32(binary.NativeEndian.Uint32(v)) == value
	}
	flags := xdp[unix.IFLA_XDP_FLAGS]
	return len(link) == 1 && len(xdp) == 3 && is(unix.IFLA_XDP_FD, -1) && is(unix.IFLA_XDP_EXPECTED_FD, -1) &&
		len(flags) == 4 && binary.NativeEndian.Uint32(flags)&unix.XDP_FLAGS_REPLACE != 0
}

// attributes takes netlink attributes apart, by type. What is malformed ends
// them.
func attributes(b []byte) map[uint16][]byte {
	all := map[uint16][]byte{}
	for len(b) >= unix.SizeofNlAttr {
		size, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < unix.SizeofNlAttr || size > len(b) {
			break
		}
		all[typ&^unix.NLA_F_NESTED] = b[unix.SizeofNlAttr:size]
		b = b[min((size+3)&^3, len(b)):]
	}
	return all
}

func generic(protocol int, typ uint16, payload []byte) Point {
	if protocol != unix.NETLINK_GENERIC || len(payload) == 0 {
		return Point{Op: fmt.Sprintf("netlink %d", protocol), On: fmt.Sprintf("message %d", typ)}
	}
	return Point{
		Op: fmt.Sprintf("genetlink family %d", typ),
		On: fmt.Sprintf("command %d", payload[0]),
		// The numbers of the other families differ from boot to boot.
		Query: typ == unix.GENL_ID_CTRL && payload[0] == unix.CTRL_CMD_GETFAMILY,
	}
}

// isGet says whether an rtnetlink message only asks: the types of an object
// come in fours, NEW, DEL, GET and SET.
func isGet(typ uint16) bool { return typ >= unix.RTM_BASE && (typ-unix.RTM_BASE)%4 == 2 }

func rtnetlink(typ uint16) string {
	objects := map[uint16]string{
		unix.RTM_NEWLINK: "LINK", unix.RTM_NEWADDR: "ADDR", unix.RTM_NEWROUTE: "ROUTE",
		unix.RTM_NEWNEIGH: "NEIGH", unix.RTM_NEWNSID: "NSID", unix.RTM_NEWQDISC: "QDISC",
	}
	verb := (typ - unix.RTM_BASE) % 4
	object, ok := objects[typ-verb]
	if !ok {
		return fmt.Sprintf("rtnetlink %d", typ)
	}
	return "RTM_" + []string{"NEW", "DEL", "GET", "SET"}[verb] + object
}

// bpfCommands are the commands of bpf(2) in the order of their numbers.
var bpfCommands = []struct {
	name  string
	query bool
}{
	{"BPF_MAP_CREATE", false},
	{"BPF_MAP_LOOKUP_ELEM", true},
	{"BPF_MAP_UPDATE_ELEM", false},
	{"BPF_MAP_DELETE_ELEM", false},
	{"BPF_MAP_GET_NEXT_KEY", true},
	{"BPF_PROG_LOAD", false},
	{"BPF_OBJ_PIN", false},
	{"BPF_OBJ_GET", true},
	{"BPF_PROG_ATTACH", false},
	{"BPF_PROG_DETACH", false},
	{"BPF_PROG_TEST_RUN", false},
	{"BPF_PROG_GET_NEXT_ID", true},
	{"BPF_MAP_GET_NEXT_ID", true},
	{"BPF_PROG_GET_FD_BY_ID", true},
	{"BPF_MAP_GET_FD_BY_ID", true},
	{"BPF_OBJ_GET_INFO_BY_FD", true},
	{"BPF_PROG_QUERY", true},
	{"BPF_RAW_TRACEPOINT_OPEN", false},
	{"BPF_BTF_LOAD", false},
	{"BPF_BTF_GET_FD_BY_ID", true},
	{"BPF_TASK_FD_QUERY", true},
	{"BPF_MAP_LOOKUP_AND_DELETE_ELEM", false},
	{"BPF_MAP_FREEZE", false},
	{"BPF_BTF_GET_NEXT_ID", true},
	{"BPF_MAP_LOOKUP_BATCH", true},
	{"BPF_MAP_LOOKUP_AND_DELETE_BATCH", false},
	{"BPF_MAP_UPDATE_BATCH", false},
	{"BPF_MAP_DELETE_BATCH", false},
	{"BPF_LINK_CREATE", false},
	{"BPF_LINK_UPDATE", false},
	{"BPF_LINK_GET_FD_BY_ID", true},
	{"BPF_LINK_GET_NEXT_ID", true},
	{"BPF_ENABLE_STATS", false},
	{"BPF_ITER_CREATE", false},
	{"BPF_LINK_DETACH", false},
	{"BPF_PROG_BIND_MAP", false},
	{"BPF_TOKEN_CREATE", false},
	{"BPF_PROG_STREAM_READ_BY_FD", false},
	{"BPF_PROG_ASSOC_STRUCT_OPS", false},
}

func bpf(c caller, a [6]uint64) (Point, bool) {
	cmd, attr := a[0], c.bytes(a[1], a[2])
	if cmd >= uint64(len(bpfCommands)) {
		return Point{Op: fmt.Sprintf("command %d", cmd)}, true
	}
	p := Point{Op: bpfCommands[cmd].name, Query: bpfCommands[cmd].query}
	word := func(offset int) uint32 {
		if len(attr) < offset+4 {
			return 0
		}
		return binary.NativeEndian.Uint32(attr[offset:])
	}
	name := func(offset int) string {
		if len(attr) < offset+unix.BPF_OBJ_NAME_LEN {
			return ""
		}
		return unix.ByteSliceToString(attr[offset : offset+unix.BPF_OBJ_NAME_LEN])
	}
	// The offsets are those of union bpf_attr, which never change.
	switch cmd {
	case unix.BPF_MAP_CREATE:
		p.On = name(28)
	case unix.BPF_PROG_LOAD:
		p.On = name(48)
	case unix.BPF_OBJ_PIN, unix.BPF_OBJ_GET:
		p.On = c.text(uint64(word(0)) | uint64(word(4))<<32)
	case unix.BPF_LINK_CREATE:
		p.On = fmt.Sprintf("target %d type %d", int32(word(4)), word(8))
	}
	return p, true
}

// bytes reads the caller's memory, as far as it can be read: up to 4096 bytes.
func (c caller) bytes(addr, size uint64) []byte {
	b := make([]byte, min(size, 4096))
	return b[:c.read(addr, b)]
}

func (c caller) read(addr uint64, b []byte) int {
	if addr == 0 || len(b) == 0 {
		return 0
	}
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}
	n, err := unix.ProcessVMReadv(c.tid, local, remote, 0)
	if err != nil {
		return 0
	}
	return n
}

func (c caller) uint64(addr uint64) uint64 {
	b := c.bytes(addr, 8)
	if len(b) < 8 {
		return 0
	}
	return binary.NativeEndian.Uint64(b)
}

// text reads a string. It reads page by page, because the page behind the one
// that the string ends in may not be there.
func (c caller) text(addr uint64) string {
	page := uint64(os.Getpagesize())
	var s []byte
	for len(s) < unix.PathMax {
		part := c.bytes(addr, page-addr%page)
		if end := bytes.IndexByte(part, 0); end >= 0 {
			return string(append(s, part[:end]...))
		}
		if len(part) == 0 {
			break
		}
		s = append(s, part...)
		addr += uint64(len(part))
	}
	return string(s)
}

// path reads a path with the directory that it is relative to, if that is
// given by a descriptor.
func (c caller) path(a [6]uint64, dir, name int) string {
	s := c.text(a[name])
	if dir == noArg || strings.HasPrefix(s, "/") || int32(a[dir]) == unix.AT_FDCWD {
		return s
	}
	return strings.TrimSuffix(c.descriptor(a[dir])+"/"+s, "/")
}

// descriptor says what a descriptor of the caller stands for.
func (c caller) descriptor(fd uint64) string {
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.tid, int32(fd)))
	if err != nil {
		return fmt.Sprintf("descriptor %d", int32(fd))
	}
	return s
}

// vector reads the first part of an array of count struct iovec.
func (c caller) vector(addr, count uint64) []byte {
	if count == 0 {
		return nil
	}
	return c.bytes(c.uint64(addr), c.uint64(addr+8))
}

// firstVector reads the first part of what a struct msghdr sends.
func (c caller) firstVector(msghdr uint64) []byte {
	var m unix.Msghdr
	iov := c.uint64(msghdr + uint64(unsafe.Offsetof(m.Iov)))
	return c.vector(iov, c.uint64(msghdr+uint64(unsafe.Offsetof(m.Iovlen))))
}

// netlinkProtocol tells a netlink socket's protocol. /proc does not say what
// kind of socket a descriptor is, so it is borrowed for the question.
func (c caller) netlinkProtocol(fd int) (int, bool) {
	own, err := unix.PidfdGetfd(c.pidfd, fd, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(own)
	domain, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_NETLINK {
		return 0, false
	}
	protocol, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return protocol, err == nil
}
