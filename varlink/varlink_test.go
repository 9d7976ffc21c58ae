package varlink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const example = `# An interface for tests.
interface org.example.test

type Thing (name: string, count: ?int)

method Echo(thing: Thing) -> (thing: Thing)
method Count(to: int) -> (n: int)
method Wait() -> ()
method Files(names: []int) -> (names: []int)
method Fail(how: (named, plain, panics, ends)) -> ()

error Broken (reason: string)
`

type thing struct {
	Name  string `json:"name"`
	Count *int   `json:"count,omitempty"`
}

// noLeaks checks that the test leaves no goroutine and no descriptor.
func noLeaks(t *testing.T) {
	t.Helper()
	count := func() (goroutines, files int) {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(names)
	}
	goroutines, files := count()
	t.Cleanup(func() {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			g, f := count()
			if g <= goroutines && f <= files {
				return
			}
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				t.Errorf("%d goroutines and %d descriptors at first, %d and %d at last\n%s", goroutines, files, g, f, stacks[:runtime.Stack(stacks, true)])
				return
			}
		}
	})
}

// serve serves the example, and returns the path of its socket. waiting is told of
// each call of Wait, and ended of its end.
func serve(t *testing.T, change func(*Server)) (path string, waiting chan string) {
	t.Helper()
	noLeaks(t)
	waiting = make(chan string, 100)
	s := &Server{
		Vendor: "Example", Product: "Test", Version: "1", URL: "https://example.org",
		Log: func(msg string, args ...any) { t.Log(append([]any{msg}, args...)...) },
		ErrorOf: func(err error) *Error {
			b, _ := json.Marshal(map[string]string{"reason": err.Error()})
			return &Error{Name: "org.example.test.Broken", Parameters: b}
		},
	}
	if change != nil {
		change(s)
	}
	err := s.Handle(example, map[string]Method{
		"Echo": func(_ context.Context, c *Call) error {
			var p struct {
				Thing thing `json:"thing"`
			}
			if err := c.Decode(&p); err != nil {
				return err
			}
			return c.Reply(p)
		},
		"Count": func(_ context.Context, c *Call) error {
			var p struct {
				To int `json:"to"`
			}
			if err := c.Decode(&p); err != nil {
				return err
			}
			for n := range p.To {
				if err := c.Continue(map[string]int{"n": n}); err != nil {
					return err
				}
			}
			return c.Reply(map[string]int{"n": p.To})
		},
		"Wait": func(ctx context.Context, c *Call) error {
			if err := c.Continue(nil); err != nil {
				return err
			}
			waiting <- "begun"
			<-ctx.Done()
			waiting <- "ended"
			return nil
		},
		"Files": func(_ context.Context, c *Call) error {
			var p struct {
				Names []int `json:"names"`
			}
			if err := c.Decode(&p); err != nil {
				return err
			}
			var back []*os.File
			defer func() {
				for _, f := range back {
					f.Close()
				}
			}()
			names := []int{}
			for _, n := range p.Names {
				f, err := c.Files.Take(n)
				if err != nil {
					return InvalidParameter(err.Error())
				}
				names = append(names, len(back))
				back = append(back, f)
			}
			return c.Reply(map[string][]int{"names": names}, back...)
		},
		"Fail": func(_ context.Context, c *Call) error {
			switch {
			case strings.Contains(string(c.Parameters), "panics"):
				panic("as asked")
			case strings.Contains(string(c.Parameters), "ends"):
				return io.EOF
			case strings.Contains(string(c.Parameters), "named"):
				return &Error{Name: "org.example.test.Broken", Parameters: json.RawMessage(`{"reason":"named"}`)}
			}
			return errors.New("plain")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return path, waiting
}

func connect(t *testing.T, path string) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), path, Limits{Files: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func raw(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echo checks that the connection is of use.
func echo(t *testing.T, c *Conn) {
	t.Helper()
	in := map[string]thing{"thing": {Name: "a"}}
	var out map[string]thing
	if _, err := c.Call(t.Context(), "org.example.test.Echo", in, &out); err != nil || out["thing"].Name != "a" {
		t.Errorf("got %v, error %v", out, err)
	}
}

func TestACallIsAnswered(t *testing.T) {
	path, _ := serve(t, nil)
	c := connect(t, path)
	for range 3 {
		echo(t, c)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { echo(t, c) })
	}
	all.Wait()
}

func TestTheServiceDescribesItself(t *testing.T) {
	path, _ := serve(t, nil)
	c := connect(t, path)
	var info Info
	if _, err := c.Call(t.Context(), "org.varlink.service.GetInfo", nil, &info); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(info); got != "{Example Test 1 https://example.org [org.example.test org.varlink.service]}" {
		t.Errorf("got %s", got)
	}
	for _, name := range info.Interfaces {
		var d struct{ Description string }
		if _, err := c.Call(t.Context(), "org.varlink.service.GetInterfaceDescription", map[string]string{"interface": name}, &d); err != nil {
			t.Fatal(err)
		}
		if parsed, err := Parse(d.Description); err != nil || parsed.Name != name {
			t.Errorf("%s describes itself as %q: %v", name, d.Description, err)
		}
	}
}

func TestWhatIsWrongWithACallIsSaid(t *testing.T) {
	path, _ := serve(t, nil)
	c := connect(t, path)
	for _, w := range []struct{ method, parameters, want string }{
		{"org.example.other.Echo", `{}`, `org.varlink.service.InterfaceNotFound {"interface":"org.example.other"}`},
		{"Echo", `{}`, `org.varlink.service.InterfaceNotFound {"interface":""}`},
		{"org.example.test.Nothing", `{}`, `org.varlink.service.MethodNotFound {"method":"Nothing"}`},
		{"org.example.test.Echo", `{}`, `org.varlink.service.InvalidParameter {"parameter":"thing is missing"}`},
		{"org.example.test.Echo", `{"thing":{"name":1}}`, `org.varlink.service.InvalidParameter {"parameter":"thing.name must be a string"}`},
		{"org.example.test.Echo", `{"thing":{"name":"a","colour":"red"}}`, `org.varlink.service.InvalidParameter {"parameter":"thing.colour is not known"}`},
		{"org.example.test.Fail", `{"how":"sometimes"}`, `org.varlink.service.InvalidParameter {"parameter":"how must be one of [\"named\" \"plain\" \"panics\" \"ends\"]"}`},
		{"org.example.test.Count", `{"to":3}`, `org.varlink.service.ExpectedMore`},
		{"org.example.test.Fail", `{"how":"named"}`, `org.example.test.Broken {"reason":"named"}`},
		{"org.example.test.Fail", `{"how":"plain"}`, `org.example.test.Broken {"reason":"plain"}`},
		{"org.example.test.Fail", `{"how":"ends"}`, `org.example.test.Broken {"reason":"EOF"}`},
		{"org.example.test.Fail", `{"how":"panics"}`, `org.example.test.Broken {"reason":"varlink: method org.example.test.Fail failed"}`},
		{"org.example.test.Files", `{"names":[0]}`, `org.varlink.service.InvalidParameter {"parameter":"varlink: there is no descriptor 0: 0 came with the message"}`},
	} {
		_, err := c.Call(t.Context(), w.method, json.RawMessage(w.parameters), nil)
		var e *Error
		if !errors.As(err, &e) || e.Error() != w.want {
			t.Errorf("%s %s: got %v, want %s", w.method, w.parameters, err, w.want)
		}
	}
	echo(t, c) // none of it was the end
}

func TestAStreamHasItsRepliesAndAnEnd(t *testing.T) {
	path, _ := serve(t, nil)
	c := connect(t, path)
	s, err := c.Stream(t.Context(), "org.example.test.Count", map[string]int{"to": 3})
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for {
		var r struct{ N int }
		if _, err := s.Next(t.Context(), &r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.N)
	}
	if fmt.Sprint(got) != "[0 1 2 3]" {
		t.Errorf("got %v", got)
	}
	echo(t, c)
}

func TestAOneWayCallIsNotAnswered(t *testing.T) {
	path, _ := serve(t, nil)
	c := connect(t, path)
	if err := c.OneWay(t.Context(), "org.example.test.Echo", map[string]thing{"thing": {Name: "b"}}); err != nil {
		t.Fatal(err)
	}
	echo(t, c)
}

func TestItIsToldHowEachCallWasAnswered(t *testing.T) {
	answered := make(chan string, 10)
	path, waiting := serve(t, func(s *Server) {
		s.Answered = func(method string, err error, took time.Duration) {
			if took < 0 {
				t.Errorf("%s took %s", method, took)
			}
			answered <- fmt.Sprint(method, " ", err)
		}
	})
	c := connect(t, path)
	want := func(want string) {
		t.Helper()
		if got := <-answered; !strings.HasPrefix(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	echo(t, c)
	want("org.example.test.Echo <nil>")
	if err := c.OneWay(t.Context(), "org.example.test.Echo", map[string]thing{"thing": {Name: "b"}}); err != nil {
		t.Fatal(err)
	}
	want("org.example.test.Echo <nil>")
	if _, err := c.Call(t.Context(), "org.example.test.Fail", map[string]string{"how": "named"}, nil); err == nil {
		t.Error("it did not fail")
	}
	want("org.example.test.Fail org.example.test.Broken")
	if _, err := c.Call(t.Context(), "no.such.Method", nil, nil); err == nil {
		t.Error("there is such a method")
	}
	want("no.such.Method org.varlink.service.InterfaceNotFound")
	// A stream is answered by its first reply, and not again when it ends.
	s, err := c.Stream(t.Context(), "org.example.test.Wait", nil)
	if err != nil {
		t.Fatal(err)
	}
	want("org.example.test.Wait <nil>")
	<-waiting
	s.Close()
	<-waiting
	echo(t, connect(t, path))
	want("org.example.test.Echo <nil>")
}

// The server learns that a client has hung up while it has nothing to tell it.
func TestAStreamEndsWithItsClient(t *testing.T) {
	path, waiting := serve(t, nil)
	c := connect(t, path)
	s, err := c.Stream(t.Context(), "org.example.test.Wait", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := <-waiting; got != "begun" {
		t.Fatal(got)
	}
	s.Close()
	if got := <-waiting; got != "ended" {
		t.Fatal(got)
	}
	if _, err := c.Call(t.Context(), "org.example.test.Echo", nil, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a connection that was given up says %v", err)
	}
}

func TestAContextEndsTheWaitForAnAnswer(t *testing.T) {
	path, waiting := serve(t, nil)
	c := connect(t, path)
	s, err := c.Stream(t.Context(), "org.example.test.Wait", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	<-waiting
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := <-waiting; got != "ended" {
		t.Error(got)
	}
}

// A client that says all it has to say at once, and then closes its half, is still
// answered.
func TestAHalfClosedConnectionIsAnswered(t *testing.T) {
	path, _ := serve(t, nil)
	c := raw(t, path)
	if _, err := io.WriteString(c, `{"method":"org.varlink.service.GetInfo"}`+"\x00"+`{"method":"org.example.test.Echo","parameters":{"thing":{"name":"z"}}}`+"\x00"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || strings.Count(string(b), "\x00") != 2 || !strings.Contains(string(b), `"name":"z"`) {
		t.Errorf("got %q, error %v", b, err)
	}
}

func pipes(t *testing.T, n int) []*os.File {
	t.Helper()
	var all []*os.File
	for i := range n {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(f, i)
		t.Cleanup(func() { f.Close() })
		all = append(all, f)
	}
	return all
}

func TestDescriptorsComeWithTheirMessage(t *testing.T) {
	path, _ := serve(t, func(s *Server) { s.Limits.Files = 600 })
	c := connect(t, path)
	for _, n := range []int{1, 3, 0, 253, 254, 600} {
		files := pipes(t, n)
		names := []int{}
		for i := range n {
			names = append(names, n-1-i)
		}
		var out struct{ Names []int }
		got, err := c.Call(t.Context(), "org.example.test.Files", map[string][]int{"names": names}, &out, files...)
		if err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		if got.Len() != n {
			t.Errorf("%d came back of %d", got.Len(), n)
		}
		for i := range got.Len() {
			f, err := got.Take(i)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 10)
			k, _ := f.ReadAt(b, 0)
			if want := fmt.Sprint(n - 1 - i); string(b[:k]) != want {
				t.Errorf("descriptor %d is that of %q, want %q", i, b[:k], want)
			}
			f.Close()
		}
		got.Close()
	}
}

// Many messages may come with one read, and one in many.
func TestDescriptorsBelongToTheMessageTheyWereSentWith(t *testing.T) {
	noLeaks(t)
	for _, large := range []int{0, 10_000, 200_000} {
		a, b := pair(t)
		sender, receiver := newTransport(a, Limits{}), newTransport(b, Limits{})
		files := pipes(t, 3)
		text := strings.Repeat("x", large)
		sent := make(chan error, 1)
		go func() {
			sent <- errors.Join(
				sender.send([]byte("0"+text), nil), sender.send([]byte("1"+text), files[:1]),
				sender.send([]byte("2"+text), nil), sender.send([]byte("3"+text), files[1:]), sender.send([]byte("4"+text), nil),
			)
		}()
		for i, want := range []int{0, 1, 0, 2, 0} {
			message, got, err := receiver.receive()
			if err != nil {
				t.Fatal(err)
			}
			if string(message) != fmt.Sprint(i)+text || got.Len() != want {
				t.Errorf("message %d has %d bytes, and %d descriptors, want %d", i, len(message), got.Len(), want)
			}
			got.Close()
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		a.Close()
		b.Close()
	}
}

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pair")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = dial(context.Background(), path); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestAHostileClientIsHungUpOnAndOthersAreServed(t *testing.T) {
	echoing := `{"method":"org.example.test.Echo","parameters":{"thing":{"name":"z"}}}` + "\x00"
	for name, attack := range map[string]func(*testing.T, *net.UnixConn){
		"a message without end": func(t *testing.T, c *net.UnixConn) { writeUntilRefused(c, strings.Repeat("x", 4096)) },
		"no JSON":               func(t *testing.T, c *net.UnixConn) { writeUntilRefused(c, "nonsense\x00") },
		"two values":            func(t *testing.T, c *net.UnixConn) { writeUntilRefused(c, "{} {}\x00") },
		"no UTF-8":              func(t *testing.T, c *net.UnixConn) { writeUntilRefused(c, "{\"method\":\"\xff\"}\x00") },
		"deep nesting":          func(t *testing.T, c *net.UnixConn) { writeUntilRefused(c, strings.Repeat("[", 1000)+"\x00") },
		"calls without an end":  func(t *testing.T, c *net.UnixConn) { writeUntilRefused(c, echoing) },
		"a stream and many more": func(t *testing.T, c *net.UnixConn) {
			writeUntilRefused(c, `{"method":"org.example.test.Wait","more":true}`+"\x00")
		},
		"descriptors nobody wants": func(t *testing.T, c *net.UnixConn) {
			wants := newTransport(c, Limits{})
			for wants.send([]byte("{}"), pipes(t, 200)) == nil {
			}
		},
		"descriptors for a message that never comes": func(t *testing.T, c *net.UnixConn) {
			wants := newTransport(c, Limits{})
			files := pipes(t, 20)
			for wants.sendWith([]byte(" "), files) == nil {
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := serve(t, func(s *Server) {
				s.Limits = Limits{Message: 64 << 10, WriteTimeout: 50 * time.Millisecond}
			})
			other := connect(t, path)
			c := raw(t, path)
			if err := c.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			attack(t, c)
			echo(t, other)
		})
	}
}

// writeUntilRefused writes, and reads nothing, until the other side hangs up.
func writeUntilRefused(c *net.UnixConn, s string) {
	for {
		if _, err := io.WriteString(c, s); err != nil {
			return
		}
	}
}

func TestWhoeverComesWhenThereAreTooManyIsTurnedAway(t *testing.T) {
	path, _ := serve(t, func(s *Server) { s.Connections = 2 })
	a, b := connect(t, path), connect(t, path)
	echo(t, a)
	echo(t, b)
	third := connect(t, path)
	if _, err := third.Call(t.Context(), "org.varlink.service.GetInfo", nil, nil); err == nil {
		t.Error("a third was served")
	}
	a.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c := connect(t, path)
		if _, err := c.Call(t.Context(), "org.varlink.service.GetInfo", nil, nil); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a place that was left is not given away")
		}
	}
}

type closer struct{ closed chan bool }

func (c closer) Close() error {
	c.closed <- true
	return nil
}

func TestWhatIsKnownOfAConnectionEndsWithIt(t *testing.T) {
	closed := make(chan bool, 1)
	path, _ := serve(t, func(s *Server) {
		s.Connected = func(*net.UnixConn) (any, error) { return closer{closed}, nil }
	})
	c := connect(t, path)
	echo(t, c)
	c.Close()
	<-closed
}

func TestAServerThatEndsEndsItsStreams(t *testing.T) {
	noLeaks(t)
	var waiting chan string
	next := make(chan error, 1)
	t.Run("server", func(t *testing.T) {
		var path string
		path, waiting = serve(t, nil)
		c, err := Dial(t.Context(), path, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.Stream(t.Context(), "org.example.test.Wait", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Next(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		<-waiting
		go func() {
			_, err := s.Next(context.Background(), nil)
			s.Close()
			next <- err
		}()
	})
	if err := <-next; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a stream that was cut off came to its end: %v", err)
	}
	if got := <-waiting; got != "ended" {
		t.Error(got)
	}
}

func TestADescriptionAndItsMethodsAgree(t *testing.T) {
	nothing := func(context.Context, *Call) error { return nil }
	var s Server
	if err := s.Handle("interface a.b\nmethod X() -> ()", nil); err == nil {
		t.Error("a method that is not served is described")
	}
	if err := s.Handle("interface a.b", map[string]Method{"X": nothing}); err == nil {
		t.Error("a method that is not described is served")
	}
	if err := s.Handle("interface a.b", nil); err != nil {
		t.Error(err)
	}
	if err := s.Handle("interface a.b", nil); err == nil {
		t.Error("an interface is there twice")
	}
}

func TestAServerHasPatienceWithCallsThatDoNotEndAndThenNoMore(t *testing.T) {
	noLeaks(t)
	begun, release := make(chan bool), make(chan bool)
	s := &Server{Patience: 10 * time.Millisecond}
	err := s.Handle("interface org.example.stuck\nmethod Stall() -> ()", map[string]Method{
		"Stall": func(context.Context, *Call) error {
			close(begun)
			<-release
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	c := connect(t, path)
	if _, err := c.Stream(t.Context(), "org.example.stuck.Stall", nil); err != nil {
		t.Fatal(err)
	}
	<-begun
	cancel()
	if err := <-done; err != nil {
		t.Errorf("it ended with %v", err)
	}
	close(release)
}
