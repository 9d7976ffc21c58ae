package xdp_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// TestWhatIsForeseenIsWhatHappens: the kernel is asked, and answers so.
func TestWhatIsForeseenIsWhatHappens(t *testing.T) {
	kerneltest.NoLeaks(t)
	there, other := kerneltest.Pass(t, "there", nil), kerneltest.Pass(t, "other", nil)
	for _, held := range []xdp.Holding{"", xdp.HeldByLink, xdp.HeldByNetlink} {
		for _, as := range []xdp.Mode{xdp.Native, xdp.Generic} {
			for _, mode := range []xdp.Mode{xdp.Auto, xdp.Native, xdp.Generic} {
				for intent, what := range []string{"own", "share", "replace", "detach"} {
					// An empty hook has no mode, and no program to expect.
					if held == "" && (as == xdp.Generic || xdp.Intent(intent) == xdp.ToReplace) {
						continue
					}
					t.Run(fmt.Sprintf("%s in %s mode at a hook held by %q in %s mode", what, mode, held, as), func(t *testing.T) {
						v := kerneltest.NewVeth(t)
						h := open(t, v, mode)
						where := find(t, h.Namespace(), v.NearName, as)
						switch held {
						case xdp.HeldByLink:
							attachLink(t, where, there)
						case xdp.HeldByNetlink:
							if err := where.Attach(there, xdp.Empty); err != nil {
								t.Fatal(err)
							}
						}
						s, err := h.Query()
						if err != nil {
							t.Fatal(err)
						}
						foreseen := s.Foresee(xdp.Intent(intent), mode, nil)
						switch xdp.Intent(intent) {
						case xdp.ToOwn:
							var l *xdp.Link
							if l, err = h.AttachLink(other); err == nil {
								l.Close()
							}
						case xdp.ToShare:
							err = h.Attach(other, xdp.Empty)
						case xdp.ToReplace:
							err = h.Attach(other, xdp.Expect(there))
						case xdp.ToDetach:
							err = h.Detach(xdp.Expect(there))
						}
						if (foreseen == nil) != (err == nil) {
							t.Fatalf("foreseen is %v, and what happens is %v", foreseen, err)
						}
						if foreseen == nil {
							return
						}
						var happened *xdp.Error
						if !errors.As(err, &happened) {
							t.Fatal(err)
						}
						if !errors.Is(foreseen, happened.Err) || foreseen.Hint != happened.Hint {
							t.Errorf("foreseen is %q, and what happens is %q", foreseen, happened)
						}
						if diff := cmp.Diff(foreseen.Rival, happened.Rival, cmpopts.IgnoreFields(xdp.Attachment{}, "Holders")); diff != "" {
							t.Errorf("another rival (-foreseen +happened):\n%s", diff)
						}
					})
				}
			}
		}
	}
}

func TestThatTheMasterHasAProgramIsForeseen(t *testing.T) {
	port := xdp.State{Interface: xdp.Interface{Name: "eth0", Master: 4}}
	master := xdp.State{
		Interface:   xdp.Interface{Name: "br0", Index: 4, Kind: "bridge", Programs: xdp.Programs{Generic: 7}},
		Attachments: []xdp.Attachment{{Mode: xdp.Generic, Program: xdp.Program{ID: 7}}},
	}
	e := port.Foresee(xdp.ToOwn, xdp.Auto, &master)
	if !errors.Is(e, xdp.ErrPort) || e.Rival == nil || e.Rival.Program.ID != 7 {
		t.Errorf("foreseen is %v", e)
	}
	master = xdp.State{Interface: xdp.Interface{Name: "br0", Index: 4, Kind: "bridge"}}
	if e := port.Foresee(xdp.ToOwn, xdp.Auto, &master); e != nil {
		t.Errorf("foreseen is %v of an empty bridge", e)
	}
}
