package kerneltest

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// MarkPort is where packets go that members leave their marks in: programs of the
// object "mark".
const MarkPort = 7777

// MarkedTraffic is a bounded stream of numbered packets to the near end of a veth, and
// what each of them tells about the members that it met.
type MarkedTraffic struct {
	begun   atomic.Uint64 // the number of the last packet that may be under way
	stop    chan struct{}
	done    chan struct{}
	sink    *net.UDPConn
	arrived chan struct{}
	count   atomic.Uint64 // of packets
	packets []Marked
}

// Marked is a packet that arrived: its number, and the marks of the members that it
// met.
type Marked struct {
	Number uint64
	Marks  []byte
}

const (
	mostPackets = 3_000_000
	mostTime    = 5 * time.Minute
	perSecond   = 5_000
)

// StartMarked starts the packets. They end with the test at the latest.
func StartMarked(t testing.TB, v *Veth) *MarkedTraffic {
	t.Helper()
	f := &MarkedTraffic{stop: make(chan struct{}), done: make(chan struct{}), arrived: make(chan struct{})}
	addr := &net.UDPAddr{IP: v.NearAddr.AsSlice(), Port: MarkPort}
	var source *net.UDPConn
	v.Near.In(t, func() (err error) {
		f.sink, err = net.ListenUDP("udp4", addr)
		return err
	})
	if err := f.sink.SetReadBuffer(8 << 20); err != nil {
		t.Fatal(err)
	}
	v.Far.In(t, func() (err error) {
		source, err = net.DialUDP("udp4", nil, addr)
		return err
	})
	raw, err := source.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// The members change what a checksum would be of.
	var noCheck error
	if err := raw.Control(func(fd uintptr) { noCheck = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) }); err != nil || noCheck != nil {
		t.Fatal(err, noCheck)
	}
	go f.send(source)
	go f.receive()
	t.Cleanup(func() { f.End() })
	return f
}

// Begun is the number of the last packet that may be under way.
func (f *MarkedTraffic) Begun() uint64 { return f.begun.Load() }

// Arrived is how many packets have arrived so far.
func (f *MarkedTraffic) Arrived() uint64 { return f.count.Load() }

// AwaitArrived waits until so many packets have arrived, or the last one was sent.
func (f *MarkedTraffic) AwaitArrived(n uint64) {
	for f.Arrived() < n {
		select {
		case <-f.done:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// End stops sending, and returns what has arrived.
func (f *MarkedTraffic) End() []Marked {
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	<-f.done
	_ = f.sink.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // for what is under way
	<-f.arrived
	f.sink.Close()
	return f.packets
}

func (f *MarkedTraffic) send(c *net.UDPConn) {
	defer close(f.done)
	defer c.Close()
	payload := make([]byte, 8+1+16)
	start := time.Now()
	for n := uint64(1); n <= mostPackets; n++ {
		binary.LittleEndian.PutUint64(payload, n)
		if n%16 == 0 {
			elapsed := time.Since(start)
			select {
			case <-f.stop:
				return
			default:
			}
			if elapsed > mostTime {
				return
			}
			time.Sleep(time.Duration(n)*time.Second/perSecond - elapsed)
		}
		f.begun.Store(n) // before it can meet anything
		_, _ = c.Write(payload)
	}
}

func (f *MarkedTraffic) receive() {
	defer close(f.arrived)
	b := make([]byte, 2048)
	for {
		n, err := f.sink.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
			return
		case err != nil || n != 8+1+16 || b[8] > 16:
			continue
		}
		f.packets = append(f.packets, Marked{binary.LittleEndian.Uint64(b), slices.Clone(b[9 : 9+b[8]])})
		f.count.Add(1)
	}
}
