package varlink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// Conn is a client's connection. Its calls are made one after the other: a call
// waits until the one before it, or the stream, has ended. A connection on which a
// call was given up half-way is of no use any more.
type Conn struct {
	t    *transport
	busy sync.Mutex
	lost error // why it is of no use
}

// Dial connects to the server at a socket. The caller closes the connection.
func Dial(ctx context.Context, path string, limits Limits) (*Conn, error) {
	c, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return NewConn(c, limits), nil
}

// NewConn makes a client of a connection, which it owns from then on.
func NewConn(c *net.UnixConn, limits Limits) *Conn { return &Conn{t: newTransport(c, limits)} }

// Close hangs up. What waits for an answer gets net.ErrClosed.
func (c *Conn) Close() error {
	err := c.t.close()
	if c.busy.TryLock() { // else whoever is at it does the rest
		c.lose(net.ErrClosed)
		c.busy.Unlock()
	}
	return err
}

// lose says why the connection is of no use. busy is held.
func (c *Conn) lose(why error) {
	if c.lost == nil {
		c.lost = why
	}
	c.t.close()
	c.t.drop()
}

// Call calls a method and reads its reply. parameters and reply are what JSON objects
// are made of and read into, or nil; the files stay the caller's. The descriptors that
// come with the reply are the caller's to close, and are never nil without an error.
//
// Errors: [*Error] is the other side's. Any other one leaves it open whether the
// call was carried out. When ctx ends the connection is of no use any more.
func (c *Conn) Call(ctx context.Context, method string, parameters, reply any, files ...*os.File) (*Files, error) {
	c.busy.Lock()
	defer c.busy.Unlock()
	if err := c.send(ctx, call{Method: method}, parameters, files); err != nil {
		return nil, err
	}
	got, continues, err := c.next(ctx, reply)
	if err == nil && continues {
		got.Close()
		c.lose(errors.New("varlink: a reply to one call said that more would follow"))
		return nil, c.lost
	}
	return got, err
}

// OneWay calls a method whose reply nobody wants to have.
func (c *Conn) OneWay(ctx context.Context, method string, parameters any, files ...*os.File) error {
	c.busy.Lock()
	defer c.busy.Unlock()
	return c.send(ctx, call{Method: method, OneWay: true}, parameters, files)
}

// Stream calls a method for more than one reply. Until the stream has come to its
// end, or is closed, other calls on the connection wait.
func (c *Conn) Stream(ctx context.Context, method string, parameters any, files ...*os.File) (*Stream, error) {
	c.busy.Lock()
	if err := c.send(ctx, call{Method: method, More: true}, parameters, files); err != nil {
		c.busy.Unlock()
		return nil, err
	}
	return &Stream{conn: c}, nil
}

// Stream are the replies to one call.
type Stream struct {
	conn  *Conn
	ended bool
}

// Next reads the next reply, as [Conn.Call] does. After the last one the error is
// io.EOF.
func (s *Stream) Next(ctx context.Context, reply any) (*Files, error) {
	if s.ended {
		return nil, io.EOF
	}
	files, continues, err := s.conn.next(ctx, reply)
	if err != nil || !continues {
		s.end()
	}
	return files, err
}

func (s *Stream) end() {
	if !s.ended {
		s.ended = true
		s.conn.busy.Unlock()
	}
}

// Close gives the stream up, and with it the connection, if it has not come to its
// end. A Next that waits must have returned, or be ended by its context.
func (s *Stream) Close() error {
	if !s.ended {
		s.conn.lose(net.ErrClosed)
		s.end()
	}
	return nil
}

func (c *Conn) send(ctx context.Context, m call, parameters any, files []*os.File) (err error) {
	if c.lost != nil {
		return c.lost
	}
	if parameters != nil {
		if m.Parameters, err = json.Marshal(parameters); err != nil {
			return err
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	stop := c.hangUpWith(ctx)
	err = c.t.send(b, files)
	if stop() && err != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		c.lose(err)
	}
	return err
}

// hangUpWith closes the connection when ctx ends. What it returns ends that, and
// tells whether it has happened.
func (c *Conn) hangUpWith(ctx context.Context) func() bool {
	stop := context.AfterFunc(ctx, func() { c.t.close() })
	return func() bool { return !stop() }
}

// next reads a reply.
func (c *Conn) next(ctx context.Context, into any) (files *Files, continues bool, err error) {
	if c.lost != nil {
		return nil, false, c.lost
	}
	stop := c.hangUpWith(ctx)
	b, files, err := c.t.receive()
	if stop() && err != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	var r reply
	if err == nil {
		err = decode(b, c.t.limits.Depth, &r)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // which is not the end of a stream
	}
	if err != nil {
		files.Close()
		c.lose(err)
		return nil, false, err
	}
	if r.Error != "" {
		files.Close()
		return nil, false, &Error{Name: r.Error, Parameters: r.Parameters}
	}
	if into != nil && len(r.Parameters) > 0 {
		if err := json.Unmarshal(r.Parameters, into); err != nil {
			files.Close()
			err = fmt.Errorf("varlink: the reply can't be read: %w", err)
			c.lose(err)
			return nil, false, err
		}
	}
	return files, r.Continues, nil
}
