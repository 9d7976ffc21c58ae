package libxdptest

import (
	"context"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMembersComeAndGoInOrder(t *testing.T) {
	kerneltest.NoLeaks(t)
	b := newBench(t)
	b.needFreplace()
	b.want()
	b.add(b.member("m5"))
	b.want("m5")
	b.add(at(10, b.member("m9")))
	b.want("m9", "m5")
	b.add(b.member("m1"), b.member("m7"))
	b.want("m9", "m1", "m5", "m7")
	b.remove("m5")
	b.want("m9", "m1", "m7")
	b.remove("m9", "m7")
	b.want("m1")
	b.remove("m1")
	b.want()
}

func TestWithoutFreplaceTheAnswerSaysSo(t *testing.T) {
	kerneltest.NoLeaks(t)
	b := newBench(t)
	_, err := b.chains.Add(context.Background(), b.hook, b.member("m0"))
	if err == nil {
		b.remove("m0")
		return // The kernel takes extensions, and the other tests are about that.
	}
	refused(t, err, libxdp.ErrNoFreplace, "takes no extensions", "attach one program alone")
	refused(t, err, xdp.ErrNotSupported)
	b.want()
}
