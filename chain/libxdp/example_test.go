package libxdp_test

import (
	"context"
	"fmt"
	"log"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// A program becomes a member of the chain at an interface, whoever made it, and
// all members are listed.
func Example() {
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		log.Fatal(err)
	}
	defer ns.Close()
	hook, err := ns.Hook("eth0", xdp.Auto)
	if err != nil {
		log.Fatal(err)
	}
	chains, err := libxdp.Open(libxdp.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer chains.Close()

	o, err := object.Open("sampler.o")
	if err != nil {
		log.Fatal(err)
	}
	c, err := chains.Add(context.Background(), hook, libxdp.Addition{Object: o, After: "filter"})
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range c.Members {
		fmt.Println(m.Priority, m.Name, "proceeds on", m.ProceedOn)
	}
}
