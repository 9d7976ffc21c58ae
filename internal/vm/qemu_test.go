package vm

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/vm/wire"
)

func TestTheReasonOfACrashIsWhatCameFirst(t *testing.T) {
	running := t.Context()
	late, cancel := context.WithDeadline(running, time.Now())
	defer cancel()
	stopped, cause := context.WithCancelCause(running)
	cause(errors.New("not wanted"))
	broken, cause := context.WithCancelCause(running)
	cause(io.ErrUnexpectedEOF)
	ended := &wire.Transcript{Release: "6.1", Ended: true}
	killed := errors.New("signal: killed")
	for _, c := range []struct {
		name             string
		ctx              context.Context
		console          string
		transcript       *wire.Transcript
		lineErr, waitErr error
		want             string
	}{
		{"an orderly end is none", running, "", ended, nil, nil, ""},
		{"a panic", running, "[1.0] Kernel panic - not syncing: x\n", ended, nil, nil, "Kernel panic"},
		{"a panic before time was up", late, "Kernel panic - not syncing: x\n", ended, io.ErrUnexpectedEOF, killed, "Kernel panic"},
		{"time was up", late, "", &wire.Transcript{}, nil, killed, "not done after 1m0s"},
		{"time was up in the middle of a frame", late, "", &wire.Transcript{}, io.ErrUnexpectedEOF, killed, "not done after 1m0s"},
		{"stopped", stopped, "", &wire.Transcript{}, nil, killed, "stopped: not wanted"},
		{"stopped in the middle of a frame", stopped, "", &wire.Transcript{}, io.ErrUnexpectedEOF, killed, "stopped: not wanted"},
		{"half a frame", broken, "", &wire.Transcript{}, io.ErrUnexpectedEOF, killed, "unexpected EOF"},
		{"QEMU failed", running, "", &wire.Transcript{}, nil, errors.New("exit status 1"), "QEMU: exit status 1: no such kernel"},
		{"no word from the guest", running, "", &wire.Transcript{}, nil, nil, "before the guest reported"},
		{"no end mark", running, "", &wire.Transcript{Release: "6.1"}, nil, nil, "end mark"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := crashReason(c.ctx, Config{Timeout: time.Minute}, c.transcript, []byte(c.console), c.lineErr, c.waitErr, "no such kernel\n")
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
