package varlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound what a peer can make this side keep. The zero value of each means
// its default.
type Limits struct {
	// Message is the size of a message in bytes, 1 MiB by default.
	Message int
	// Depth is how deep a message's values may be nested, 32 by default.
	Depth int
	// Files is how many descriptors may come with a message, 64 by default.
	Files int
	// Queue is how many calls a client may have sent that are not handled yet,
	// 16 by default.
	Queue int
	// WriteTimeout is how long a peer may take to read what is sent to it, 10
	// seconds by default.
	WriteTimeout time.Duration
}

func (l Limits) complete() Limits {
	set := func(n *int, to int) {
		if *n == 0 {
			*n = to
		}
	}
	set(&l.Message, 1<<20)
	set(&l.Depth, 32)
	set(&l.Files, 64)
	set(&l.Queue, 16)
	if l.WriteTimeout == 0 {
		l.WriteTimeout = 10 * time.Second
	}
	return l
}

// ErrLimit says that a peer has gone beyond a limit. The connection is of no use
// any more.
var ErrLimit = errors.New("varlink: beyond a limit")

// Files are the descriptors that came with a message, numbered from 0. Whoever
// takes one owns it; Close closes the others.
type Files struct {
	mutex sync.Mutex
	// An [os.File] that does not block is polled from its beginning: what nobody has
	// asked for, and looked at, is none.
	fds []int // taken where it was taken
}

const taken = -1

// Len is how many came.
func (f *Files) Len() int {
	if f == nil {
		return 0
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return len(f.fds)
}

// Take hands a descriptor over, once. One of a file that a process serves (FUSE) is
// refused: to poll it would be to wait for that process, and all of this one with it,
// because the kernel asks for it under the poller's lock (ep_insert, fuse_file_poll).
func (f *Files) Take(n int) (*os.File, error) {
	fd, err := f.take(n)
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err == nil && fs.Type == unix.FUSE_SUPER_MAGIC {
		unix.Close(fd)
		return nil, fmt.Errorf("varlink: descriptor %d is of a file that a process serves (fuse)", n)
	}
	return os.NewFile(uintptr(fd), "received"), nil
}

func (f *Files) take(n int) (int, error) {
	if f == nil {
		return 0, fmt.Errorf("varlink: there is no descriptor %d: none came with the message", n)
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if n < 0 || n >= len(f.fds) {
		return 0, fmt.Errorf("varlink: there is no descriptor %d: %d came with the message", n, len(f.fds))
	}
	fd := f.fds[n]
	if fd == taken {
		return 0, fmt.Errorf("varlink: descriptor %d is named twice", n)
	}
	f.fds[n] = taken
	return fd, nil
}

// Close closes what nobody has taken.
func (f *Files) Close() error {
	if f == nil {
		return nil
	}
	f.mutex.Lock()
	fds := f.fds
	f.fds = nil
	f.mutex.Unlock()
	closeAll(fds)
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd != taken {
			unix.Close(fd)
		}
	}
}

// transport carries messages: bytes that end with a NUL, and descriptors.
//
// Descriptors are sent with the beginning of their message, in a call of sendmsg of
// its own. The kernel (unix_stream_read_generic) ends a read behind the bytes that
// descriptors came with. So what a read brings belongs to the last message in it,
// whatever else the read has brought before that.
type transport struct {
	conn   *net.UnixConn
	limits Limits
	// unread are bytes that were received, and arrived descriptors with the place
	// in unread where their message begins.
	unread  []byte
	arrived []arrival
	files   int // in arrived
	oob     []byte
	writing sync.Mutex
}

type arrival struct {
	begin int
	fds   []int
}

func newTransport(conn *net.UnixConn, limits Limits) *transport {
	return &transport{conn: conn, limits: limits.complete()}
}

// readSize is how much a read asks for at least. It is small, because a connection
// that nobody talks on keeps as much.
const readSize = 1024

// receive returns the next message without its NUL, with its descriptors. The error
// is io.EOF where the peer hung up between two messages. It must be called by one
// goroutine at a time.
func (t *transport) receive() ([]byte, *Files, error) {
	searched := 0
	for {
		if n := bytes.IndexByte(t.unread[searched:], 0); n >= 0 {
			return t.cut(searched + n)
		}
		searched = len(t.unread)
		if searched > t.limits.Message {
			return nil, nil, fmt.Errorf("%w: a message has more than %d bytes", ErrLimit, t.limits.Message)
		}
		if err := t.read(); err != nil {
			if errors.Is(err, io.EOF) && len(t.unread) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, nil, err
		}
	}
}

// cut takes the message off that ends before the byte n.
func (t *transport) cut(n int) ([]byte, *Files, error) {
	if n > t.limits.Message {
		return nil, nil, fmt.Errorf("%w: a message has %d bytes, %d at most", ErrLimit, n, t.limits.Message)
	}
	message := bytes.Clone(t.unread[:n])
	t.unread = append([]byte(nil), t.unread[n+1:]...) // so that a large one is not kept
	files := &Files{}
	var later []arrival
	for _, a := range t.arrived {
		if a.begin <= n {
			files.fds = append(files.fds, a.fds...)
			t.files -= len(a.fds)
			continue
		}
		a.begin -= n + 1
		later = append(later, a)
	}
	t.arrived = later
	return message, files, nil
}

// read reads once.
func (t *transport) read() error {
	if cap(t.unread)-len(t.unread) < readSize {
		larger := make([]byte, len(t.unread), max(2*cap(t.unread), len(t.unread)+readSize))
		copy(larger, t.unread)
		t.unread = larger
	}
	if t.oob == nil {
		t.oob = make([]byte, unix.CmsgSpace(maxPerCall*4))
	}
	free := t.unread[len(t.unread):cap(t.unread)]
	n, oobn, flags, _, err := t.conn.ReadMsgUnix(free, t.oob)
	if err != nil {
		return err
	}
	begin := lastMessage(t.unread, free[:n])
	t.unread = t.unread[:len(t.unread)+n]
	fds, err := parseRights(t.oob[:oobn])
	if err != nil {
		return err
	}
	if len(fds) > 0 {
		t.arrived = append(t.arrived, arrival{begin, fds})
		t.files += len(fds)
	}
	switch {
	case flags&unix.MSG_CTRUNC != 0:
		return fmt.Errorf("%w: some of the descriptors of a message could not be received", ErrLimit)
	case t.files > t.limits.Files:
		return fmt.Errorf("%w: %d descriptors came with a message, %d may", ErrLimit, t.files, t.limits.Files)
	case n == 0:
		return io.EOF
	}
	return nil
}

// lastMessage is where the last message begins of which there are bytes in fresh,
// which comes behind old.
func lastMessage(old, fresh []byte) int {
	if len(fresh) == 0 {
		return len(old)
	}
	if end := bytes.LastIndexByte(fresh[:len(fresh)-1], 0); end >= 0 {
		return len(old) + end + 1
	}
	return bytes.LastIndexByte(old, 0) + 1
}

// parseRights returns the descriptors in a control message, which the caller closes.
func parseRights(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		some, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		for _, fd := range some {
			unix.CloseOnExec(fd)
		}
		fds = append(fds, some...)
	}
	return fds, nil
}

// maxPerCall is how many descriptors the kernel takes with one call (SCM_MAX_FD).
const maxPerCall = 253

// send sends a message. The files stay the caller's, who may close them afterwards.
func (t *transport) send(message []byte, files []*os.File) error {
	message = append(message, 0)
	if len(files) > maxPerCall*len(message) {
		return fmt.Errorf("%w: %d descriptors with a message of %d bytes", ErrLimit, len(files), len(message))
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	if err := t.conn.SetWriteDeadline(time.Now().Add(t.limits.WriteTimeout)); err != nil {
		return err
	}
	for len(files) > maxPerCall { // each lot needs a byte to come with
		if err := t.sendWith(message[:1], files[:maxPerCall]); err != nil {
			return err
		}
		message, files = message[1:], files[maxPerCall:]
	}
	return t.sendWith(message, files)
}

func (t *transport) sendWith(b []byte, files []*os.File) error {
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fd, err := descriptor(f)
			if err != nil {
				return err
			}
			fds[i] = fd
		}
		n, _, err := t.conn.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	_, err := t.conn.Write(b)
	return err
}

// descriptor is a file's, without making it block as Fd would.
func descriptor(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = raw.Control(func(p uintptr) { fd = int(p) })
	return fd, err
}

// close closes the connection, and what came and was not taken.
func (t *transport) close() error {
	return t.conn.Close()
}

// drop closes the descriptors of messages that nobody will read.
func (t *transport) drop() {
	for _, a := range t.arrived {
		closeAll(a.fds)
	}
	t.arrived = nil
}

// hungUp tells whether the error is no more than the peer having gone.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// Dial connects to a socket.
func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
