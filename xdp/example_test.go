package xdp_test

import (
	"errors"
	"log"

	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// A program is attached, and the hook is this process's as long as it lives.
func Example() {
	ns, err := xdp.OpenNamespace("") // this process's; or a name, a path, a pid
	if err != nil {
		log.Fatal(err)
	}
	defer ns.Close()
	hook, err := ns.Hook("eth0", xdp.Auto)
	if err != nil {
		log.Fatal(err)
	}

	o, err := object.Open("filter.o")
	if err != nil {
		log.Fatal(err)
	}
	filter, err := o.Load(object.LoadOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer filter.Close()

	link, err := hook.AttachLink(filter.Program)
	var refused *xdp.Error
	if errors.As(err, &refused) && refused.Rival != nil {
		log.Fatalf("program %q is there already, since %s", refused.Rival.Program.Name, refused.Rival.Program.LoadedAt)
	}
	if err != nil {
		log.Fatal(err)
	}
	// Detaches, unless link.Persist was called. Nothing else in this process
	// does, the garbage collector neither; and its end does, however it ends.
	defer link.Close()
}
