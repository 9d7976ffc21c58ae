package client_test

import (
	"context"
	"log"

	"github.com/holdfast-bpf/holdfast"
	"github.com/holdfast-bpf/holdfast/client"
)

// An application without privilege holds a member for as long as it runs.
func Example() {
	ctx := context.Background()
	daemon, err := client.Open(ctx, client.Options{})
	if err != nil {
		log.Fatal(err) // client.ErrNoDaemon, if nobody listens
	}
	m, err := holdfast.Attach(ctx, "eth1", "sample.o", holdfast.Options{
		Name: "sampler", Arbiter: holdfast.With(daemon),
	})
	if err != nil {
		log.Fatal(err) // xdp.ErrPermission says which rule refuses
	}
	defer m.Close()
	<-m.Done() // somebody took it out
}
