// Package wire is what the host and the guest of a test machine say to each
// other: the specification that the guest finds in its initramfs, and the
// frames that it sends back over its second serial line.
//
// The kernel's console has the first serial line for itself, so nothing that
// the kernel prints can fall between two frames, and a command's output can
// hold any bytes without being taken for a result.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// SpecPath is where the guest finds its Spec, as JSON.
const SpecPath = "/spec.json"

// Line is the guest's device for frames; the console is /dev/ttyS0.
const Line = "/dev/ttyS1"

// Spec is what the guest does before it powers off.
type Spec struct {
	Modules  []Module          `json:"modules,omitempty"` // in the order to load them
	Sysctls  map[string]string `json:"sysctls,omitempty"` // dotted names, such as net.core.bpf_jit_enable
	Commands []Command         `json:"commands"`
}

// Module is one kernel module in the initramfs, already uncompressed.
type Module struct {
	Path   string `json:"path"`
	Params string `json:"params,omitempty"`
}

// Command is one program to run in the guest, as root, to its end.
type Command struct {
	Path    string        `json:"path"`
	Args    []string      `json:"args,omitempty"` // without the program's own name
	Env     []string      `json:"env,omitempty"`  // added to a small default environment
	Dir     string        `json:"dir,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"` // in nanoseconds; 0 is none
	Merge   bool          `json:"merge,omitempty"`   // stderr goes where stdout goes, in order
}

// Kind says what a frame carries.
type Kind byte

// The kinds of frames. A guest that worked sends one Hello first, for each
// command its output and one Exit, and one End last.
const (
	Hello  Kind = 'H' // payload: the guest's kernel release
	Stdout Kind = 'o' // payload: a piece of the command's standard output
	Stderr Kind = 'e' // payload: a piece of the command's standard error
	Exit   Kind = 'x' // payload: Status as JSON
	End    Kind = 'E' // no payload: every command ran, the guest powers off
)

// Status is how a command ended.
type Status struct {
	Code     int           `json:"code"`             // exit code; -1 if it was killed or did not start
	Signal   string        `json:"signal,omitempty"` // the signal that ended it
	TimedOut bool          `json:"timed_out,omitempty"`
	Error    string        `json:"error,omitempty"` // why it did not start or could not be waited for
	Elapsed  time.Duration `json:"elapsed"`         // in nanoseconds of the guest's clock
}

// OK reports whether the command ended by itself with exit code 0.
func (s Status) OK() bool {
	return s.Code == 0 && s.Signal == "" && !s.TimedOut && s.Error == ""
}

func (s Status) String() string {
	switch {
	case s.TimedOut:
		return fmt.Sprintf("timed out after %s", s.Elapsed.Round(time.Millisecond))
	case s.Error != "":
		return s.Error
	case s.Signal != "":
		return "signal: " + s.Signal
	default:
		return fmt.Sprintf("exit status %d", s.Code)
	}
}

// Frame is one message of the guest.
type Frame struct {
	Kind    Kind
	Command int // index into Spec.Commands; 0 where no command is meant
	Payload []byte
}

// MaxPayload is the longest payload of one frame, in bytes.
const MaxPayload = 32 << 10

const headerLen = 12

var magic = [4]byte{0xf5, 'H', 'F', '1'}

// ErrGarbled means that the line carried something that is not a frame.
var ErrGarbled = errors.New("the guest's line carried something that is not a frame")

// WriteFrame sends f in one Write, so that frames of several goroutines do
// not mix as long as w is used under one lock.
func WriteFrame(w io.Writer, f Frame) error {
	if len(f.Payload) > MaxPayload {
		return fmt.Errorf("frame of %d bytes, at most %d are allowed", len(f.Payload), MaxPayload)
	}
	if f.Command < 0 || f.Command > 0xffff {
		return fmt.Errorf("frame for command %d, the number must be in 0 to 65535", f.Command)
	}
	buf := make([]byte, headerLen, headerLen+len(f.Payload))
	copy(buf, magic[:])
	buf[4] = byte(f.Kind)
	binary.BigEndian.PutUint16(buf[6:], uint16(f.Command))
	binary.BigEndian.PutUint32(buf[8:], uint32(len(f.Payload)))
	_, err := w.Write(append(buf, f.Payload...))
	return err
}

// ReadFrame reads the next frame. It returns io.EOF between frames,
// io.ErrUnexpectedEOF inside one, and ErrGarbled for anything else.
func ReadFrame(r io.Reader) (Frame, error) {
	var head [headerLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(head[8:])
	kind := Kind(head[4])
	if [4]byte(head[:4]) != magic || head[5] != 0 || n > MaxPayload || !kind.known() {
		return Frame{}, fmt.Errorf("%w: header %q", ErrGarbled, head[:])
	}
	f := Frame{Kind: kind, Command: int(binary.BigEndian.Uint16(head[6:]))}
	if n > 0 {
		f.Payload = make([]byte, n)
		if _, err := io.ReadFull(r, f.Payload); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return Frame{}, err
		}
	}
	return f, nil
}

func (k Kind) known() bool {
	switch k {
	case Hello, Stdout, Stderr, Exit, End:
		return true
	}
	return false
}

// Transcript is what the guest said so far, put together from its frames.
type Transcript struct {
	Release  string // the guest's kernel release; empty before Hello
	Statuses []*Status
	Ended    bool
}

// NewTranscript expects the results of n commands.
func NewTranscript(n int) *Transcript {
	return &Transcript{Statuses: make([]*Status, n)}
}

// Add takes the next frame. Output frames are the caller's: Add only checks
// that they belong to a command that has not ended.
func (t *Transcript) Add(f Frame) error {
	switch {
	case t.Ended:
		return fmt.Errorf("the guest went on after its end mark (frame %q)", f.Kind)
	case f.Kind == Hello:
		if t.Release != "" {
			return errors.New("the guest started twice")
		}
		t.Release = string(f.Payload)
		return nil
	case t.Release == "":
		return fmt.Errorf("the guest's first frame is %q, not its greeting", f.Kind)
	case f.Kind == End:
		if i := t.firstOpen(); i >= 0 {
			return fmt.Errorf("the guest ended without the result of command %d", i)
		}
		t.Ended = true
		return nil
	}
	if f.Command >= len(t.Statuses) {
		return fmt.Errorf("the guest reports on command %d of %d", f.Command, len(t.Statuses))
	}
	if t.Statuses[f.Command] != nil {
		return fmt.Errorf("the guest reports on command %d after its exit", f.Command)
	}
	if f.Kind == Exit {
		var s Status
		if err := json.Unmarshal(f.Payload, &s); err != nil {
			return fmt.Errorf("result of command %d: %w", f.Command, err)
		}
		t.Statuses[f.Command] = &s
	}
	return nil
}

func (t *Transcript) firstOpen() int {
	for i, s := range t.Statuses {
		if s == nil {
			return i
		}
	}
	return -1
}
