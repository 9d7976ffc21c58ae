package trace

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Writer writes packets in the format pcapng, with their ways as comments, which
// Wireshark shows. No library that is looked after writes comments of packets.
type Writer struct{ to io.Writer }

// The blocks and options of pcapng (draft-ietf-opsawg-pcapng).
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6

	optionComment     = 1
	optionApplication = 4 // of a section
	optionName        = 2 // of an interface
	optionResolution  = 9 // of an interface
	optionVerdict     = 7 // of a packet
	resolution        = 9 // times are in nanoseconds
	ethernet          = 1 // the link type
	verdictXDP        = 2 // what kind of verdict it is
	magicNumber       = 0x1a2b3c4d
)

// NewWriter begins a file, of packets of an interface of which MaxSnap bytes are
// kept at most.
func NewWriter(to io.Writer, iface string) (*Writer, error) {
	w := &Writer{to}
	order := binary.LittleEndian
	section := order.AppendUint32(nil, magicNumber)
	section = order.AppendUint16(section, 1)                  // version 1.0
	section = order.AppendUint16(section, 0)                  //
	section = order.AppendUint64(section, 0xffffffffffffffff) // of a length that is not known
	section = endOptions(option(section, optionApplication, []byte("holdfast")))
	if err := w.block(blockSection, section); err != nil {
		return nil, err
	}
	about := order.AppendUint16(nil, ethernet)
	about = order.AppendUint16(about, 0)
	about = order.AppendUint32(about, MaxSnap)
	about = option(about, optionName, []byte(iface))
	about = endOptions(option(about, optionResolution, []byte{resolution}))
	if err := w.block(blockInterface, about); err != nil {
		return nil, err
	}
	return w, nil
}

// Write writes a packet that went through a chain of these members.
func (w *Writer) Write(p *Packet, members []Member) error {
	order := binary.LittleEndian
	time := uint64(p.Time.UnixNano())
	b := order.AppendUint32(nil, 0) // the interface
	b = order.AppendUint32(b, uint32(time>>32))
	b = order.AppendUint32(b, uint32(time))
	b = order.AppendUint32(b, uint32(len(p.Data)))
	b = order.AppendUint32(b, uint32(p.Length))
	b = pad(append(b, p.Data...))
	comment := p.Explain(members)
	if path := p.Path(members); path != "" {
		comment += ": " + path
	}
	b = option(b, optionComment, []byte(comment))
	b = endOptions(option(b, optionVerdict, order.AppendUint64([]byte{verdictXDP}, uint64(p.Verdict))))
	return w.block(blockPacket, b)
}

func (w *Writer) block(kind uint32, body []byte) error {
	order := binary.LittleEndian
	length := uint32(len(body) + 12)
	b := order.AppendUint32(nil, kind)
	b = order.AppendUint32(b, length)
	b = order.AppendUint32(append(b, body...), length)
	if _, err := w.to.Write(b); err != nil {
		return fmt.Errorf("write the packets: %w", err)
	}
	return nil
}

// option appends an option. Its length is a number of 16 bits, so what is longer
// is cut off.
func option(b []byte, code uint16, value []byte) []byte {
	value = value[:min(len(value), 0xffff)]
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

func endOptions(b []byte) []byte { return append(b, 0, 0, 0, 0) }

func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
