package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socket carries messages for a netlink.Conn with one system call each. The
// library's own starts a goroutine for every call, so that a context could
// cancel it, and asks for a message's size before it reads the message: an
// attach takes six times as long that way.
type socket struct {
	dialed *netlink.Conn // opened the descriptor, and closes it
	raw    syscall.RawConn
	// buffer is for one answer at a time: netlink.Conn lets no two callers in.
	buffer []byte
}

// answerSize holds what the kernel puts into one answer: a dump comes in parts
// of 32 KiB at most.
const answerSize = 64 << 10

// direct returns a connection that uses the descriptor of the other, which it
// takes over.
func direct(dialed *netlink.Conn) (*netlink.Conn, error) {
	raw, err := dialed.SyscallConn()
	if err != nil {
		return nil, err
	}
	var address unix.Sockaddr
	var nameErr error
	if err := raw.Control(func(fd uintptr) { address, nameErr = unix.Getsockname(int(fd)) }); err != nil {
		return nil, err
	}
	if nameErr != nil {
		return nil, os.NewSyscallError("getsockname", nameErr)
	}
	own, ok := address.(*unix.SockaddrNetlink)
	if !ok {
		return nil, fmt.Errorf("a netlink socket with an address of type %T", address)
	}
	return netlink.NewConn(&socket{dialed: dialed, raw: raw, buffer: make([]byte, answerSize)}, own.Pid), nil
}

func (s *socket) Close() error { return s.dialed.Close() }

var toKernel = &unix.SockaddrNetlink{Family: unix.AF_NETLINK}

// Send sends one message.
func (s *socket) Send(m netlink.Message) error {
	b, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	var errno error
	err = s.raw.Write(func(fd uintptr) bool {
		errno = unix.Sendto(int(fd), b, 0, toKernel)
		return settled(errno)
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("sendto", errno)
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
		for len(b) > 0 {
			m, rest, err := cut(b)
			if !yield(m, err) || err != nil {
				return
			}
			b = rest
		}
	}
}

func (s *socket) receive() ([]byte, error) {
	var n int
	var errno error
	err := s.raw.Read(func(fd uintptr) bool {
		// With MSG_TRUNC the length is the datagram's, even if it did not fit.
		n, _, errno = unix.Recvfrom(int(fd), s.buffer, unix.MSG_TRUNC)
		return settled(errno)
	})
	switch {
	case err != nil:
		return nil, err
	case errno != nil:
		return nil, os.NewSyscallError("recvfrom", errno)
	case n > len(s.buffer):
		return nil, fmt.Errorf("an answer of %d bytes, more than the kernel puts into one", n)
	}
	b := make([]byte, n)
	copy(b, s.buffer)
	return b, nil
}

// settled tells whether there is an outcome. Without one the runtime waits for
// the descriptor to get ready and calls again.
func settled(errno error) bool {
	return !errors.Is(errno, unix.EAGAIN) && !errors.Is(errno, unix.EINTR)
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
