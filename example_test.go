package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/holdfast-bpf/holdfast"
	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/holdfasttest"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
)

// guard is an application: it wants its filter to be a member of the chain at
// eth0 for as long as it runs.
func guard(ctx context.Context, options holdfast.Options) error {
	member, err := holdfast.Attach(ctx, "eth0", "filter.o", options)
	var taken *arbiter.MemberError
	if errors.As(err, &taken) {
		return fmt.Errorf("%s was faster: %w", taken.Owner, err)
	}
	if err != nil {
		return err
	}
	// Takes it out of the chain; and the process's end does, however it ends.
	defer member.Close()

	return serve(member)
}

func serve(m holdfast.Member) error {
	fmt.Println(m.Name(), "runs")
	return nil
}

// The same code runs in a test without root, with an arbiter in memory.
func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(dir+"/filter.o", bpfprog.ELF("filter"), 0o600); err != nil {
		log.Fatal(err)
	}
	if err := os.Chdir(dir); err != nil {
		log.Fatal(err)
	}
	machine := holdfasttest.New("eth0")
	err = guard(context.Background(), holdfast.Options{Name: "guard", Arbiter: machine.NewProcess()})
	fmt.Println(err)
	// Output:
	// guard runs
	// <nil>
}
