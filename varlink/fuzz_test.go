package varlink

import (
	"context"
	"io"
	"os"
	"testing"
	"time"
)

// FuzzServer sends what it likes, in pieces and with descriptors, to a server.
func FuzzServer(f *testing.F) {
	f.Add([]byte(`{"method":"org.varlink.service.GetInfo"}`+"\x00"), uint8(3), uint8(0))
	f.Add([]byte(`{"method":"org.example.test.Echo","parameters":{"thing":{"name":"z"}}}`+"\x00"), uint8(20), uint8(1))
	f.Add([]byte(`{"method":"org.example.test.Count","more":true,"parameters":{"to":3}}`+"\x00"), uint8(200), uint8(2))
	f.Add([]byte("\x00\x00{}\x00"), uint8(1), uint8(7))
	f.Fuzz(func(t *testing.T, b []byte, piece, files uint8) {
		s := &Server{Limits: Limits{Message: 4096, Files: 8, Queue: 4, WriteTimeout: time.Second}, ErrorOf: func(err error) *Error { return &Error{Name: "a.b.C"} }}
		err := s.Handle("interface org.example.test\nmethod Echo(thing: object) -> (thing: object)\nmethod Count(to: int) -> (n: int)", map[string]Method{
			"Echo": func(_ context.Context, c *Call) error { return c.Reply(c.Parameters) },
			"Count": func(_ context.Context, c *Call) error {
				for range 3 {
					if err := c.Continue(nil); err != nil {
						return err
					}
				}
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.handleService(); err != nil {
			t.Fatal(err)
		}
		client, server := pair(t)
		served := make(chan bool)
		go func() {
			defer close(served)
			s.serve(context.Background(), server)
		}()
		go func() { _, _ = io.Copy(io.Discard, client) }()
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		wire := newTransport(client, Limits{WriteTimeout: time.Second})
		for len(b) > 0 {
			n := min(len(b), max(1, int(piece)))
			var with []*os.File
			for range files % 8 {
				with = append(with, null)
			}
			if wire.sendWith(b[:n], with) != nil {
				break
			}
			b, files = b[n:], files/2
		}
		client.CloseWrite()
		<-served
		client.Close()
	})
}

// FuzzMessage reads messages as a client does.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"parameters":{},"continues":true}`))
	f.Add([]byte(`{"error":"a.b.C","parameters":{"x":[[[]]]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r reply
		if err := decode(b, 8, &r); err != nil {
			return
		}
		if deeper(b, 8) {
			t.Error("what is nested too deep was read")
		}
	})
}
