package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func frames(t testing.TB, list ...Frame) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, f := range list {
		if err := WriteFrame(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestFramesComeBackAsTheyWereWritten(t *testing.T) {
	want := []Frame{
		{Kind: Hello, Payload: []byte("6.1.0-50-amd64")},
		{Kind: Stdout, Command: 0, Payload: []byte("\xf5HF1x looks like a frame")},
		{Kind: Stderr, Command: 65535, Payload: bytes.Repeat([]byte{0}, MaxPayload)},
		{Kind: Exit, Command: 1, Payload: []byte(`{"code":0}`)},
		{Kind: End},
	}
	line := bytes.NewReader(frames(t, want...))
	for i, w := range want {
		got, err := ReadFrame(line)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if diff := cmp.Diff(w, got); diff != "" {
			t.Errorf("frame %d (-want +got):\n%s", i, diff)
		}
	}
	if _, err := ReadFrame(line); !errors.Is(err, io.EOF) {
		t.Errorf("after the last frame: %v, want EOF", err)
	}
}

func TestFramesThatCannotBeSentAreRefused(t *testing.T) {
	for _, f := range []Frame{
		{Kind: Stdout, Payload: make([]byte, MaxPayload+1)},
		{Kind: Stdout, Command: -1},
		{Kind: Stdout, Command: 1 << 16},
	} {
		var b bytes.Buffer
		if err := WriteFrame(&b, f); err == nil || b.Len() != 0 {
			t.Errorf("command %d, %d bytes: error %v, %d bytes written", f.Command, len(f.Payload), err, b.Len())
		}
	}
}

func TestALineThatIsCutOrGarbledIsAnError(t *testing.T) {
	whole := frames(t, Frame{Kind: Stdout, Payload: []byte("hello")})
	for n := 1; n < len(whole); n++ {
		if _, err := ReadFrame(bytes.NewReader(whole[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v, want an unexpected end", n, err)
		}
	}
	for i, change := range []byte{0, 0, 0, 0, 0, 1, 0, 0, 0xff} {
		garbled := bytes.Clone(whole)
		garbled[i] = change
		_, err := ReadFrame(bytes.NewReader(garbled))
		if belongsToNumber := i == 6 || i == 7; !belongsToNumber && !errors.Is(err, ErrGarbled) {
			t.Errorf("byte %d of the header changed: %v, want %v", i, err, ErrGarbled)
		}
	}
}

func TestATranscriptAcceptsOnlyAWholeStory(t *testing.T) {
	hello := Frame{Kind: Hello, Payload: []byte("6.1")}
	exit := func(n int) Frame { return Frame{Kind: Exit, Command: n, Payload: []byte(`{"code":3}`)} }
	tests := []struct {
		name   string
		frames []Frame
		err    string
	}{
		{"a whole story", []Frame{hello, {Kind: Stdout}, exit(0), exit(1), {Kind: End}}, ""},
		{"no greeting", []Frame{exit(0)}, "not its greeting"},
		{"two greetings", []Frame{hello, hello}, "started twice"},
		{"an end without all results", []Frame{hello, exit(0), {Kind: End}}, "without the result of command 1"},
		{"a result twice", []Frame{hello, exit(0), exit(0)}, "after its exit"},
		{"output after the result", []Frame{hello, exit(0), {Kind: Stderr}}, "after its exit"},
		{"a command that was not asked for", []Frame{hello, exit(2)}, "command 2 of 2"},
		{"a result that is no JSON", []Frame{hello, {Kind: Exit, Payload: []byte("0")}}, "result of command 0"},
		{"more after the end", []Frame{hello, exit(0), exit(1), {Kind: End}, {Kind: End}}, "after its end mark"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			transcript := NewTranscript(2)
			var err error
			for _, f := range test.frames {
				if err = transcript.Add(f); err != nil {
					break
				}
			}
			switch {
			case test.err == "" && (err != nil || !transcript.Ended || transcript.Statuses[1].Code != 3):
				t.Errorf("%v, %+v", err, transcript)
			case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
				t.Errorf("%v, want %q", err, test.err)
			}
		})
	}
}

func TestAStatusIsOKOnlyForExitCodeZero(t *testing.T) {
	for _, test := range []struct {
		status Status
		ok     bool
		text   string
	}{
		{Status{}, true, "exit status 0"},
		{Status{Code: 2}, false, "exit status 2"},
		{Status{Code: -1, Signal: "killed"}, false, "signal: killed"},
		{Status{TimedOut: true, Elapsed: 1500e6}, false, "timed out after 1.5s"},
		{Status{Code: -1, Error: "start /x: no such file"}, false, "start /x: no such file"},
	} {
		if test.status.OK() != test.ok || test.status.String() != test.text {
			t.Errorf("%+v is %v, %q", test.status, test.status.OK(), test.status.String())
		}
	}
}

// Whatever the line carries, reading ends, and what was read is written back
// as the same bytes.
func FuzzReadFrame(f *testing.F) {
	f.Add(frames(f, Frame{Kind: Hello, Payload: []byte("6.1")}, Frame{Kind: Exit, Payload: []byte(`{"code":1}`)}, Frame{Kind: End}))
	f.Add([]byte("[    0.000000] Linux version"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r := bytes.NewReader(line)
		transcript := NewTranscript(3)
		var back []byte
		for {
			frame, err := ReadFrame(r)
			if err != nil {
				break
			}
			_ = transcript.Add(frame)
			back = append(back, frames(t, frame)...)
		}
		if !bytes.HasPrefix(line, back) {
			t.Errorf("read %q, which is not the beginning of %q", back, line)
		}
	})
}
