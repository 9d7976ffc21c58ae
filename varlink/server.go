package varlink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// Method handles a call. The context ends when the client hangs up, and when the
// server ends. An [*Error] that it returns is the reply, and any other error is as
// [Server.ErrorOf] says. A method that returns nil without having replied has replied
// without parameters. Descriptors that it has not taken are closed when it returns.
type Method func(ctx context.Context, c *Call) error

// Server serves interfaces.
type Server struct {
	// Vendor, Product, Version and URL are what org.varlink.service says.
	Vendor, Product, Version, URL string
	// Limits bound what each client can make the server keep.
	Limits Limits
	// Connections is how many there may be at once, 4096 where it is 0. Whoever
	// comes then is hung up on.
	Connections int
	// Connected, if there is one, looks at a new connection, and returns what calls
	// of it have as Peer; an error hangs up. If the value is an io.Closer, it is
	// closed when the connection has ended.
	Connected func(*net.UnixConn) (any, error)
	// ErrorOf makes a reply of an error that a method returned.
	ErrorOf func(error) *Error
	// Answered, if there is one, is told of each call when its first reply is about to be
	// sent, with its method's name, which may be any, and how long it took. The error is
	// an [*Error] where that is the reply, and another one where there will be none.
	Answered func(method string, err error, took time.Duration)
	// Patience is how long calls may take when the server ends, as long as they like
	// where it is 0. What waits for somebody else's file can't be called off.
	Patience time.Duration
	// Log, if there is one, is told of what goes wrong, as slog.Warn would be.
	Log func(msg string, args ...any)

	interfaces []*served
}

// served is an interface with its methods.
type served struct {
	description *Description
	methods     map[string]Method
}

// Handle adds an interface: its description, in Varlink's language, and a function
// for each method that there is in it, by its name without the interface's. It must
// be called before Serve.
func (s *Server) Handle(description string, methods map[string]Method) error {
	d, err := Parse(description)
	if err != nil {
		return err
	}
	if s.find(d.Name) != nil {
		return fmt.Errorf("varlink: there is interface %s already", d.Name)
	}
	for name := range methods {
		if d.Method(name) == nil {
			return fmt.Errorf("varlink: interface %s has no method %s", d.Name, name)
		}
	}
	for _, m := range d.Methods {
		if methods[m.Name] == nil {
			return fmt.Errorf("varlink: method %s.%s is not served", d.Name, m.Name)
		}
	}
	s.interfaces = append(s.interfaces, &served{d, methods})
	return nil
}

func (s *Server) find(name string) *served {
	for _, i := range s.interfaces {
		if i.description.Name == name {
			return i
		}
	}
	return nil
}

// Serve answers calls until ctx ends, or the listener fails, and closes the listener.
// It returns when all calls have been handled, whose contexts have ended then, or when
// it has no more [Server.Patience] with them. The error is nil if it was ctx that ended.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	if s.find(serviceName) == nil {
		if err := s.handleService(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer s.await(&all)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	most := s.Connections
	if most == 0 {
		most = 4096
	}
	places := make(chan struct{}, most)
	for {
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // no descriptors left, or the like
			if !s.pause(ctx, err) {
				return nil
			}
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			s.log("a client was turned away: there are too many connections", "most", most)
			conn.Close()
			continue
		}
		all.Go(func() {
			defer func() { <-places }()
			s.serve(ctx, conn)
		})
	}
}

// await waits for the connections, as long as there is patience with them.
func (s *Server) await(all *sync.WaitGroup) {
	if s.Patience == 0 {
		all.Wait()
		return
	}
	ended := make(chan struct{})
	go func() {
		all.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(s.Patience):
		s.log("some calls have not come to an end, and are left", "waited", s.Patience)
	}
}

func (s *Server) log(msg string, args ...any) {
	if s.Log != nil {
		s.Log(msg, args...)
	}
}

// received is a message that waits to be handled.
type received struct {
	message []byte
	files   *Files
}

// serve handles the calls of a connection, one after the other. Messages are read
// meanwhile, because only who reads notices that the client has hung up.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	t := newTransport(conn, s.Limits)
	ctx, cancel := context.WithCancelCause(ctx)
	// Whatever ends it, nobody waits for the peer any more.
	stop := context.AfterFunc(ctx, func() { t.close() })
	defer stop()
	defer t.close()

	var peer any
	if s.Connected != nil {
		var err error
		if peer, err = s.Connected(conn); err != nil {
			s.log("a client was turned away", "error", err)
			cancel(nil)
			return
		}
		if c, ok := peer.(io.Closer); ok {
			defer c.Close()
		}
	}
	// A stream ends when the client has nothing more to say; a call that it made
	// before that is still answered.
	streams, endStreams := context.WithCancelCause(ctx)
	queue := make(chan received, t.limits.Queue)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel(nil)
	reader.Go(func() {
		defer close(queue)
		defer t.drop()
		err := read(t, queue)
		endStreams(err)
		if !hungUp(err) {
			s.hangUp(ctx, cancel, err)
		}
	})
	for r := range queue {
		if ctx.Err() == nil {
			if err := s.handle(ctx, streams, t, peer, r); err != nil {
				s.hangUp(ctx, cancel, err)
			}
		}
		r.files.Close()
	}
}

func (s *Server) hangUp(ctx context.Context, cancel context.CancelCauseFunc, why error) {
	if !hungUp(why) && ctx.Err() == nil {
		s.log("a client was hung up on", "error", why)
	}
	cancel(why)
}

// read puts messages into the queue until it can't.
func read(t *transport, queue chan<- received) error {
	for {
		message, files, err := t.receive()
		if err != nil {
			return err
		}
		select {
		case queue <- received{message, files}:
		default:
			files.Close()
			return fmt.Errorf("%w: %d calls wait to be handled", ErrLimit, cap(queue))
		}
	}
}

// Call is a call that is to be handled.
type Call struct {
	// Method is its name with the interface's.
	Method string
	// Parameters are what Decode reads. They fit the method's description.
	Parameters json.RawMessage
	// More tells that the client takes several replies, and OneWay none.
	More, OneWay bool
	// Files came with the call.
	Files *Files
	// Peer is what [Server.Connected] made.
	Peer any

	t       *transport
	replied bool
	// answered is nil once it was called.
	answered func(error)
}

// Decode reads the parameters.
func (c *Call) Decode(into any) error {
	if err := json.Unmarshal(c.Parameters, into); err != nil {
		return invalidParameter(err.Error())
	}
	return nil
}

// Reply sends the only reply, or the last one, and returns when it is written. The
// files stay the method's. Parameters are what a JSON object is made of, or nil.
func (c *Call) Reply(parameters any, files ...*os.File) error {
	if c.replied {
		return errors.New("varlink: a call was replied to twice")
	}
	c.replied = true
	c.answer(nil)
	return c.send(reply{}, parameters, files)
}

// Continue sends a reply that others follow. The client must have asked for more.
func (c *Call) Continue(parameters any, files ...*os.File) error {
	if !c.More {
		return ExpectedMore()
	}
	c.answer(nil)
	return c.send(reply{Continues: true}, parameters, files)
}

// answer says how the call was answered, the first time.
func (c *Call) answer(err error) {
	if c.answered != nil {
		c.answered(err)
		c.answered = nil
	}
}

func (c *Call) send(r reply, parameters any, files []*os.File) (err error) {
	if c.OneWay {
		return nil
	}
	head, err := json.Marshal(r)
	if err != nil {
		return err
	}
	body := []byte("{}")
	if parameters != nil {
		if body, err = json.Marshal(parameters); err != nil {
			return err
		}
	}
	// A list can be long: it is not to be gone through once more as a part of the
	// message. head is {} or {"...":...}.
	const begin = `{"parameters":`
	b := make([]byte, 0, len(begin)+len(body)+len(head)+1)
	b = append(append(b, begin...), body...)
	if len(head) > len("{}") {
		b = append(b, ',')
	}
	if err := c.t.send(append(b, head[1:]...), files); err != nil {
		return unsentError{err}
	}
	return nil
}

// unsentError is that of a reply that could not be sent, which is the end of the
// connection. A method's own errors can be of the same kinds, such as io.EOF.
type unsentError struct{ error }

func (e unsentError) Unwrap() error { return e.error }

// handle handles a call. An error is the end of the connection.
func (s *Server) handle(ctx, streams context.Context, t *transport, peer any, r received) error {
	var m call
	if err := decode(r.message, t.limits.Depth, &m); err != nil {
		return err
	}
	c := &Call{Method: m.Method, Parameters: m.Parameters, More: m.More, OneWay: m.OneWay, Files: r.files, Peer: peer, t: t}
	if len(c.Parameters) == 0 || string(c.Parameters) == "null" {
		c.Parameters = json.RawMessage("{}")
	}
	if c.More {
		ctx = streams
	}
	if s.Answered != nil {
		began := time.Now()
		c.answered = func(err error) { s.Answered(c.Method, err, time.Since(began)) }
	}
	err := s.call(ctx, c)
	var unsent unsentError
	switch {
	case c.More && !c.replied && ctx.Err() != nil:
		c.answer(context.Cause(ctx))
		return context.Cause(ctx) // it has not come to its end
	case err == nil && !c.replied:
		return c.Reply(nil)
	case err == nil:
		return nil
	case errors.As(err, &unsent):
		return unsent.error
	case c.replied:
		s.log("a call failed after it was replied to", "method", c.Method, "error", err)
		return nil
	case ctx.Err() != nil:
		c.answer(context.Cause(ctx))
		return context.Cause(ctx)
	}
	c.replied = true
	var e *Error
	if !errors.As(err, &e) {
		if s.ErrorOf == nil {
			c.answer(err)
			return err
		}
		e = s.ErrorOf(err)
	}
	c.answer(e)
	if len(e.Parameters) == 0 {
		return c.send(reply{Error: e.Name}, nil, nil)
	}
	return c.send(reply{Error: e.Name}, e.Parameters, nil)
}

// call finds the method and calls it.
func (s *Server) call(ctx context.Context, c *Call) (err error) {
	name, method := split(c.Method)
	i := s.find(name)
	if i == nil {
		return serviceError("InterfaceNotFound", "interface", name)
	}
	f := i.methods[method]
	if f == nil {
		return serviceError("MethodNotFound", "method", method)
	}
	if err := i.description.CheckInput(method, c.Parameters); err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			s.log("a method panicked", "method", c.Method, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("varlink: method %s failed", c.Method)
			if s.ErrorOf == nil {
				err = serviceError("MethodNotImplemented", "method", method)
			}
		}
	}()
	return f(ctx, c)
}
