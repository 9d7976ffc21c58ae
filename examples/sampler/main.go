// Sampler is an application without privilege: it asks the daemon for a place at an
// interface, counts packets there, and says so every second until it is stopped.
//
//	go run ./examples/sampler eth0 count.o
//
// It runs as any user whom the policy lets attach. Stopped or killed, it leaves nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast"
	"github.com/holdfast-bpf/holdfast/client"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: sampler IF OBJ")
	}
	if err := sample(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func sample(iface, object string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	daemon, err := client.Open(ctx, client.Options{
		Socket: os.Getenv("HOLDFAST_SOCKET"), // the usual one if it is empty
		Notify: func(n client.Notice) { log.Printf("%s: %s", n.Member, n.Kind) },
	})
	if err != nil {
		return err
	}
	// The rest is the same without a daemon, with holdfast.Open.
	arbiter := holdfast.With(daemon)
	defer arbiter.Close()
	member, err := holdfast.Attach(ctx, iface, object, holdfast.Options{Name: "sampler", Arbiter: arbiter})
	if err != nil {
		return err
	}
	defer member.Close()
	fmt.Println("attached to", iface)
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-member.Done():
			return member.Err()
		case <-every.C:
			n, err := packets(member.Maps())
			if err != nil {
				return err
			}
			fmt.Println(n, "packets")
		}
	}
}

// packets sums up the object's counters.
func packets(maps map[string]*ebpf.Map) (total uint64, err error) {
	counters := maps["packets"]
	if counters == nil {
		return 0, errors.New("the object has no map \"packets\"")
	}
	var key uint32
	var perCPU []uint64
	all := counters.Iterate()
	for all.Next(&key, &perCPU) {
		for _, n := range perCPU {
			total += n
		}
	}
	return total, all.Err()
}
