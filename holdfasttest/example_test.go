package holdfasttest_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/holdfast-bpf/holdfast"
	"github.com/holdfast-bpf/holdfast/holdfasttest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// filter is what is tested: it wants its interface to itself, and says who is in
// the way.
func filter(ctx context.Context, a holdfast.Arbiter) (holdfast.Member, error) {
	m, err := holdfast.Attach(ctx, "eth0", "../internal/bpfprog/filter_bpfel.o", holdfast.Options{
		Arbiter: a, Name: "filter", Exclusive: true,
	})
	var refused *xdp.Error
	if errors.As(err, &refused) && refused.Rival != nil {
		return nil, fmt.Errorf("%q is there already", refused.Rival.Program.Name)
	}
	return m, err
}

func Example() {
	ctx, hook := context.Background(), holdfast.Hook{Interface: "eth0"}
	machine := holdfasttest.New("eth0")

	if err := machine.AttachForeign(hook, "debug", xdp.HeldByNetlink); err != nil {
		log.Fatal(err)
	}
	_, err := filter(ctx, machine.NewProcess())
	fmt.Println(err)

	if err := machine.Detach(hook); err != nil {
		log.Fatal(err)
	}
	m, err := filter(ctx, machine.NewProcess())
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	c, err := machine.NewProcess().Chain(ctx, hook)
	fmt.Println(c.Members[0], c.Exclusive, err)
	// Output:
	// "debug" is there already
	// "filter" is a held member at priority 50, last changed in generation 1 true <nil>
}
