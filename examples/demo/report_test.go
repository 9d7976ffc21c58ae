package main

import (
	"slices"
	"testing"
)

func TestLinesAreBrokenAtBlanks(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"a short line stays", "ab  cd", []string{"ab  cd"}},
		{"a line that just fits stays", "abcde fghi", []string{"abcde fghi"}},
		{"a long line is broken", "abcde fghij klm", []string{"abcde", "fghij klm"}},
		{"a blank right after the width counts", "abcdefghij klm", []string{"abcdefghij", "klm"}},
		{"a word that does not fit is cut", "abcdefghijklm", []string{"abcdefghij", "klm"}},
		{"characters count, not bytes", "äöüäöüäöü xyz", []string{"äöüäöüäöü", "xyz"}},
		{"a word of many bytes is cut between characters", "äöüäöüäöüäöü", []string{"äöüäöüäöüä", "öü"}},
		{"lines are broken each for itself", "abc\nabcde fghij", []string{"abc", "abcde", "fghij"}},
	} {
		if got := wrap(test.text, 10); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}
