package libxdptest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

const contenders = 8

var raceRounds = kerneltest.Rounds(50)

// contend is a process that adds and removes its member when a line says so.
func contend(args []string) int {
	netns, name, bpffs, member := args[0], args[1], args[2], args[3]
	hook, chains, err := openPlace(netns, name, bpffs)
	if err != nil {
		return fail(err)
	}
	add := libxdp.Addition{Load: object.LoadOptions{Program: object.Choice{Name: member}}}
	if add.Object, err = object.Read("member.o", bytes.NewReader(bpfprog.ELF("member"))); err != nil {
		return fail(err)
	}
	ctx := context.Background()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "add" {
			_, err = chains.Add(ctx, hook, add)
		} else {
			_, err = chains.Remove(ctx, hook, libxdp.Target{Name: member})
		}
		if err != nil {
			fmt.Println(err)
			continue
		}
		chains.Wait()
		fmt.Println("done")
	}
	return 0
}

func openPlace(netns, name, bpffs string) (*xdp.Hook, *libxdp.Chains, error) {
	ns, err := xdp.OpenNamespace(netns)
	if err != nil {
		return nil, nil, err
	}
	hook, err := ns.Hook(name, xdp.Native)
	if err != nil {
		return nil, nil, err
	}
	chains, err := libxdp.Open(libxdp.Options{BPFFS: bpffs})
	return hook, chains, err
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// Eight add at once to the empty hook, and all succeed; every tenth time all
// remove at once as well.
func TestOfEightThatAttachFirstAllSucceed(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	kerneltest.FillDispatcher(t)
	var all []*kerneltest.Process
	var members []string
	for i := range contenders {
		members = append(members, fmt.Sprintf("m%d", i))
		all = append(all, kerneltest.Start(t, kerneltest.Command("contend", b.veth.Near.Path(), b.veth.NearName, b.bpffs, members[i])))
	}
	// say tells all of them at once what to do, and returns what they report.
	say := func(round int, what string) (reports []string) {
		t.Helper()
		for _, c := range all {
			if _, err := io.WriteString(c.Input, what+"\n"); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range all {
			if !c.Lines.Scan() {
				t.Fatalf("round %d: contender %d gave no report", round, i)
			}
			reports = append(reports, c.Lines.Text())
		}
		return reports
	}
	atOnce := func(round int, what string) {
		t.Helper()
		for i, said := range say(round, what) {
			if said != "done" {
				t.Fatalf("round %d: contender %d: %s", round, i, said)
			}
		}
	}
	for round := range raceRounds {
		atOnce(round, "add")
		c := b.read()
		if c.Problem != "" || !slices.Equal(names(c), members) {
			t.Fatalf("round %d: the chain is %v %s", round, names(c), c.Problem)
		}
		b.wantDirs(fmt.Sprintf("dispatch-%d-%d", b.hook.Index(), c.Dispatcher.ID))
		if round%10 == 0 {
			atOnce(round, "remove")
		} else {
			if err := b.chains.RemoveAll(context.Background(), b.hook, xdp.Any); err != nil {
				t.Fatal(err)
			}
			// Each is told that there is nothing to remove.
			for _, said := range say(round, "remove") {
				if !strings.Contains(said, "not attached") {
					t.Fatalf("round %d: %s", round, said)
				}
			}
		}
		b.want()
	}
	t.Logf("COUNT race rounds %d", raceRounds)
}
