package chain

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestActionsAreReadAndWrittenByName(t *testing.T) {
	for text, want := range map[string]struct {
		set   Actions
		names string
	}{
		"":                       {0, ""},
		" ":                      {0, ""},
		"XDP_PASS":               {1 << Pass, "XDP_PASS"},
		"pass":                   {1 << Pass, "XDP_PASS"},
		"Xdp_Drop":               {1 << Drop, "XDP_DROP"},
		"XDP_PASS,XDP_DROP":      {1<<Pass | 1<<Drop, "XDP_DROP,XDP_PASS"},
		" tx , redirect,aborted": {1<<Tx | 1<<Redirect | 1<<Aborted, "XDP_ABORTED,XDP_TX,XDP_REDIRECT"},
		"pass,PASS":              {1 << Pass, "XDP_PASS"},
	} {
		got, err := ParseActions(text)
		if err != nil || got != want.set || got.String() != want.names {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want.names)
		}
	}
}

func TestWhatIsNoActionIsAnErrorThatListsThem(t *testing.T) {
	for _, text := range []string{"XDP_PAS", "pass,", ",", "pass drop", "2", "XDP_", "XDP_XDP_PASS", "pass,,drop"} {
		_, err := ParseActions(text)
		if !errors.Is(err, ErrAction) || !strings.Contains(err.Error(), "XDP_ABORTED,") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestASetIsReadAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := Set(rapid.SliceOf(rapid.SampledFrom(AllActions())).Draw(t, "actions")...)
		b, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		var again Actions
		if err := json.Unmarshal(b, &again); err != nil || again != set {
			t.Fatalf("%s is read as %s, %v", b, again, err)
		}
	})
}

func TestSetsAreChangedActionByAction(t *testing.T) {
	s := Set(Pass, Drop)
	if !s.Has(Pass) || !s.Has(Drop) || s.Has(Tx) || s.Without(Drop) != Set(Pass) || s.With(Tx) != Set(Drop, Tx, Pass) {
		t.Errorf("%q", s)
	}
	if a := Action(9); a.String() != "XDP action 9" {
		t.Errorf("%s", a)
	}
}

func FuzzParseActions(f *testing.F) {
	for _, s := range []string{"XDP_PASS,XDP_DROP", "tx", "", ",", " pass ", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		set, err := ParseActions(s)
		if err != nil {
			return
		}
		if again, err := ParseActions(set.String()); err != nil || again != set {
			t.Errorf("%q is read as %q, which is read as %q, %v", s, set, again, err)
		}
	})
}
