package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/netns"
)

// socket carries messages for a netlink.Conn, with one system call each. The
// library's own starts a goroutine for every call, so that a context could
// cancel it, asks for a message's size before it reads the message, and has the
// descriptor watched by epoll, which is woken twice by each exchange: an attach
// takes six times as long that way.
//
// Calls block, but never for long: the kernel puts its answer into the socket
// before it returns from sendto, and the next part of a dump when it is asked
// to read one. Only one caller at a time may use it.
type socket struct {
	fd int // -1 once closed
	// toKernel is this socket's alone, because sending writes into it.
	toKernel unix.SockaddrNetlink
	buffer   []byte
	// unread is a datagram that was received and is still to be looked at.
	unread []byte
}

// answerSize holds what the kernel puts into one answer: a dump comes in parts
// of 32 KiB at most.
const answerSize = 64 << 10

// open opens a socket in the network namespace of the descriptor, or the calling
// thread's where it is negative, and returns its address, too.
func open(namespace int) (s *socket, port uint32, err error) {
	in := netns.Ambient
	if namespace >= 0 {
		in = netns.At(namespace)
	}
	s = &socket{buffer: make([]byte, answerSize), toKernel: unix.SockaddrNetlink{Family: unix.AF_NETLINK}}
	err = in.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, 0, err
	}
	if port, err = s.bind(); err != nil {
		return nil, 0, errors.Join(err, s.Close())
	}
	return s, port, nil
}

func (s *socket) bind() (port uint32, err error) {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	address, err := unix.Getsockname(s.fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	own, ok := address.(*unix.SockaddrNetlink)
	if !ok {
		return 0, fmt.Errorf("a netlink socket with an address of type %T", address)
	}
	// Refusals come with a sentence, and requests that the kernel does not
	// understand are refused.
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, option, 1); err != nil {
			return 0, os.NewSyscallError("setsockopt", err)
		}
	}
	return own.Pid, nil
}

// Close closes the descriptor. Closing again does nothing.
func (s *socket) Close() error {
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}

func (s *socket) send(b []byte) error {
	if s.fd < 0 {
		return os.ErrClosed
	}
	for {
		err := unix.Sendto(s.fd, b, 0, &s.toKernel)
		if err != unix.EINTR {
			return os.NewSyscallError("sendto", err)
		}
	}
}

// receive reads one datagram. It is good until the next is read.
func (s *socket) receive() ([]byte, error) {
	if b := s.unread; b != nil {
		s.unread = nil
		return b, nil
	}
	if s.fd < 0 {
		return nil, os.ErrClosed
	}
	for {
		// With MSG_TRUNC the length is the datagram's, even if it did not fit.
		n, _, err := unix.Recvfrom(s.fd, s.buffer, unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		case n > len(s.buffer):
			return nil, fmt.Errorf("an answer of %d bytes, more than the kernel puts into one", n)
		}
		return s.buffer[:n], nil
	}
}

// Send sends one message.
func (s *socket) Send(m netlink.Message) error {
	b, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	return s.send(b)
}

// SendMessages sends the messages one by one.
func (s *socket) SendMessages(messages []netlink.Message) error {
	for _, m := range messages {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// Receive reads the messages of one datagram.
func (s *socket) Receive() ([]netlink.Message, error) {
	var messages []netlink.Message
	for m, err := range s.ReceiveIter() {
		if err != nil {
			return nil, err
		}
		messages = append(messages, m)
	}
	return messages, nil
}

// ReceiveIter reads the messages of one datagram, which stay the caller's.
func (s *socket) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		b, err := s.receive()
		if err != nil {
			yield(netlink.Message{}, err)
			return
		}
		b = append([]byte(nil), b...)
		for len(b) > 0 {
			m, rest, err := cut(b)
			if !yield(m, err) || err != nil {
				return
			}
			b = rest
		}
	}
}

// cut takes the first message off a datagram. Messages are padded to four
// bytes; the last need not be.
func cut(b []byte) (m netlink.Message, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return m, nil, errors.New("a message without a whole header")
	}
	length := uint64(binary.NativeEndian.Uint32(b))
	if length < unix.SizeofNlMsghdr || length > uint64(len(b)) {
		return m, nil, fmt.Errorf("a message of %d bytes in a datagram of %d", length, len(b))
	}
	padded := (length + 3) &^ 3
	whole := b
	if padded > uint64(len(b)) {
		whole = append(b[:len(b):len(b)], make([]byte, padded-uint64(len(b)))...)
	}
	if err := m.UnmarshalBinary(whole[:padded]); err != nil {
		return m, nil, err
	}
	return m, whole[padded:], nil
}
