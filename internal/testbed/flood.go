package testbed

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/netns"
	"golang.org/x/sys/unix"
)

// Flood is a bounded stream of UDP packets from one namespace to an address in
// another, and the socket there that counts those which no program dropped.
type Flood struct {
	sent     atomic.Uint64
	received atomic.Uint64
	ended    sync.Once
	stop     chan struct{}
	done     chan struct{}
	sink     *net.UDPConn
	drained  chan struct{}
}

// FloodOptions bound a flood: it ends at Packets or after Duration, whichever
// comes first, and neither may be without a bound.
type FloodOptions struct {
	Port     uint16
	Packets  uint64
	Duration time.Duration // a minute at most
	// Rate is in packets a second, 0 for as fast as it goes.
	Rate int
}

// StartFlood starts sending. The caller stops the flood.
func StartFlood(from, to *netns.NS, addr netip.Addr, o FloodOptions) (*Flood, error) {
	if o.Packets == 0 || o.Duration == 0 || o.Duration > time.Minute {
		return nil, errors.New("a flood needs bounds")
	}
	target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, o.Port))
	f := &Flood{stop: make(chan struct{}), done: make(chan struct{}), drained: make(chan struct{})}
	err := to.Do(func() (err error) {
		f.sink, err = net.ListenUDP("udp4", target)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen to a flood: %w", err)
	}
	// Room enough that a packet which got through is not lost before it is
	// counted.
	if err := f.sink.SetReadBuffer(8 << 20); err != nil {
		f.sink.Close()
		return nil, fmt.Errorf("listen to a flood: %w", err)
	}
	var source *net.UDPConn
	err = from.Do(func() (err error) {
		source, err = net.DialUDP("udp4", nil, target)
		return err
	})
	if err != nil {
		f.sink.Close()
		return nil, fmt.Errorf("start a flood: %w", err)
	}
	go f.drain()
	go f.send(source, o)
	return f, nil
}

func (f *Flood) send(c *net.UDPConn, o FloodOptions) {
	defer close(f.done)
	defer c.Close()
	payload := make([]byte, 18) // fills the smallest Ethernet frame
	start := time.Now()
	for n := uint64(0); n < o.Packets; n++ {
		if n%64 == 0 {
			elapsed := time.Since(start)
			if elapsed > o.Duration {
				return
			}
			select {
			case <-f.stop:
				return
			default:
			}
			if o.Rate > 0 {
				time.Sleep(time.Duration(n)*time.Second/time.Duration(o.Rate) - elapsed)
			}
		}
		// A refusal is an answer to an earlier packet that got through, and
		// the sink counts those.
		if _, err := c.Write(payload); err == nil {
			f.sent.Add(1)
		}
	}
}

func (f *Flood) drain() {
	defer close(f.drained)
	buf := make([]byte, 2048)
	for {
		if _, err := f.sink.Read(buf); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
				break
			}
			continue
		}
		f.received.Add(1)
	}
	// After its deadline a Read fails although there may be packets left.
	raw, err := f.sink.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for {
			if _, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT); err != nil {
				return
			}
			f.received.Add(1)
		}
	})
}

// Sent is how many packets have been sent so far.
func (f *Flood) Sent() uint64 { return f.sent.Load() }

// Received is how many packets got through to the socket so far.
func (f *Flood) Received() uint64 { return f.received.Load() }

// AwaitSent waits until so many packets were sent, or the flood has ended.
func (f *Flood) AwaitSent(n uint64) {
	for f.sent.Load() < n {
		select {
		case <-f.done:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// Running tells whether the flood still sends.
func (f *Flood) Running() bool {
	select {
	case <-f.done:
		return false
	default:
		return true
	}
}

// Stop ends the flood, reads what is still under way and returns how many
// packets were sent and how many got through.
func (f *Flood) Stop() (sent, received uint64) {
	f.ended.Do(func() { close(f.stop) })
	<-f.done
	// veth delivers in softirq context, on this machine: a moment is enough.
	_ = f.sink.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	<-f.drained
	f.sink.Close()
	return f.sent.Load(), f.received.Load()
}
