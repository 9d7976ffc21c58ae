package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func travel(t *testing.T, err error) error {
	t.Helper()
	name, p := Encode(err)
	b, jsonErr := json.Marshal(p)
	if jsonErr != nil {
		t.Fatal(jsonErr)
	}
	return Decode(name, b)
}

func TestAnErrorIsWhatItWasOnTheOtherSide(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range kinds {
		id := k.name + " " + k.kind
		if seen[id] {
			t.Errorf("%s is there twice", id)
		}
		seen[id] = true
		sent := fmt.Errorf("do something: %w", k.err)
		got := travel(t, sent)
		if got.Error() != sent.Error() {
			t.Errorf("%q became %q", sent, got)
		}
		for _, other := range kinds {
			if errors.Is(got, other.err) != errors.Is(sent, other.err) {
				t.Errorf("%q is %q on one side only", sent, other.err)
			}
		}
		if !strings.Contains(Description, "error "+k.name+" (") {
			t.Errorf("the interface has no error %s", k.name)
		}
	}
}

func TestAConflictKeepsItsRival(t *testing.T) {
	since := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	sent := &arbiter.HeldError{
		Err: &xdp.Error{
			Op: "attach", Hook: "eth0", Err: xdp.ErrConflict, Hint: "ask",
			Rival: &xdp.Attachment{LinkID: 7, Held: xdp.HeldByLink, Program: xdp.Program{ID: 3, Name: "filter"}},
		},
		Record: arbiter.Record{Name: "filter", Owner: arbiter.Owner{UID: 1000}, Since: since},
	}
	got := travel(t, sent)
	var e *xdp.Error
	if !errors.As(got, &e) || e.Rival == nil || e.Rival.LinkID != 7 || !errors.Is(got, xdp.ErrConflict) {
		t.Errorf("the rival of %v is lost", got)
	}
	var w *Error
	if !errors.As(got, &w) || w.Owner == nil || w.Owner.UID != 1000 || !w.Since.Equal(since) {
		t.Errorf("got %+v", w)
	}
}

func TestAMemberInTheWayIsNamed(t *testing.T) {
	sent := &arbiter.MemberError{
		Err:  &owned.Error{Op: owned.Add, Member: "a", Err: owned.ErrExists, Rival: &owned.Member{Name: "a", ID: 17}},
		Hook: "eth0", Owner: arbiter.Owner{UID: 12},
	}
	var w *Error
	if got := travel(t, sent); !errors.As(got, &w) || w.Member == nil || w.Member.ID != 17 || w.Owner.UID != 12 || !owned.IsConflict(got) {
		t.Errorf("got %+v", w)
	}
}

func TestAVerifierLogTravels(t *testing.T) {
	got := travel(t, &object.Error{Op: "load", Object: "x.o", Err: object.ErrVerifier, VerifierLog: "0: r0 = 0\n"})
	var e *object.Error
	if !errors.As(got, &e) || e.VerifierLog == "" || !errors.Is(got, object.ErrVerifier) {
		t.Errorf("got %v", got)
	}
}

func TestWhatIsNotUnderstoodIsStillSaid(t *testing.T) {
	for _, parameters := range []string{"", "{}", "[]", `{"message":3}`} {
		if got := Decode("org.example.Odd", []byte(parameters)); got == nil || !strings.Contains(got.Error(), "org.example.Odd") {
			t.Errorf("%q became %v", parameters, got)
		}
	}
	got := Decode(Interface+".Conflict", []byte(`{"message":"no","kind":"of tomorrow"}`))
	if got.Error() != "no" || !errors.Is(got, xdp.ErrConflict) {
		t.Errorf("got %v", got)
	}
}
