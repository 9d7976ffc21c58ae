package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// kind is a sentinel, and how it is called on the wire.
type kind struct {
	err  error
	name string // of the interface's error
	kind string // its parameter of that name
}

// kinds has the most particular first: what fits several is the first of them.
var kinds = []kind{
	{owned.ErrExists, "Conflict", "name"},
	{owned.ErrGeneration, "Conflict", "generation"},
	{owned.ErrExclusive, "Conflict", "exclusive"},
	{owned.ErrLocked, "Conflict", "locked"},
	{owned.ErrNotEmpty, "Conflict", "not-empty"},
	{live.ErrSlotTaken, "Conflict", "slot"},
	{xdp.ErrConflict, "Conflict", "conflict"},
	{xdp.ErrPermission, "NotPermitted", "permission"},
	{object.ErrPermission, "NotPermitted", "load"},
	{live.ErrNoFreplace, "NotSupported", "freplace"},
	{object.ErrExtension, "NotSupported", "extension"},
	{xdp.ErrMTU, "NotSupported", "mtu"},
	{xdp.ErrAttachType, "NotSupported", "attach-type"},
	{xdp.ErrDeviceBound, "NotSupported", "device-bound"},
	{object.ErrBTF, "NotSupported", "btf"},
	{object.ErrNotSupported, "NotSupported", "load"},
	{fused.ErrLimit, "NotSupported", "fused-limit"},
	{xdp.ErrNotSupported, "NotSupported", "kernel"},
	{xdp.ErrNotAttached, "NotAttached", "attached"},
	{xdp.ErrGone, "Gone", "gone"},
	{chain.ErrNoMember, "NotFound", "member"},
	{object.ErrNoProgram, "NotFound", "program"},
	{xdp.ErrNotFound, "NotFound", "found"},
	{owned.ErrFull, "Failed", "full"},
	{live.ErrFull, "Failed", "full-dispatcher"},
	{chain.ErrOrder, "Invalid", "order"},
	{chain.ErrNoRoom, "Invalid", "room"},
	{object.ErrVariable, "Invalid", "variable"},
	{object.ErrAmbiguous, "Invalid", "ambiguous"},
	{owned.ErrInvalid, "Invalid", "change"},
	{xdp.ErrInvalid, "Invalid", "invalid"},
	{object.ErrFormat, "ObjectRefused", "format"},
	{object.ErrRunConfig, "ObjectRefused", "run-config"},
	{object.ErrLicense, "ObjectRefused", "license"},
	{object.ErrVerifier, "ObjectRefused", "verifier"},
	{object.ErrMap, "ObjectRefused", "map"},
	{arbiter.ErrLockTimeout, "LockTimeout", "lock"},
	{xdp.ErrPort, "Failed", "port"},
	{xdp.ErrExists, "Failed", "exists"},
	{context.DeadlineExceeded, "Failed", "deadline"},
	{context.Canceled, "Failed", "canceled"},
	{xdp.ErrUnexpected, "Failed", "unexpected"},
}

// general is what an error is whose kind this side does not know.
var general = map[string]error{
	"Conflict": xdp.ErrConflict, "NotPermitted": xdp.ErrPermission, "NotSupported": xdp.ErrNotSupported,
	"NotAttached": xdp.ErrNotAttached, "NotFound": xdp.ErrNotFound, "Gone": xdp.ErrGone, "Invalid": xdp.ErrInvalid,
	"LockTimeout": arbiter.ErrLockTimeout,
}

// failed is what is of no kind.
const failed = "Failed"

// Names are those of the errors that there are, without the interface's.
func Names() []string {
	names := []string{failed}
	for _, k := range kinds {
		if !slices.Contains(names, k.name) {
			names = append(names, k.name)
		}
	}
	return names
}

// Kinds are those that errors of a name have.
func Kinds(name string) []string {
	var all []string
	for _, k := range kinds {
		if k.name == name {
			all = append(all, k.kind)
		}
	}
	return all
}

// ErrorParameters are those of every error of the interface.
type ErrorParameters struct {
	Message   string          `json:"message"`
	Kind      string          `json:"kind,omitempty"`
	Operation string          `json:"operation,omitempty"`
	Hook      string          `json:"hook,omitempty"`
	Detail    string          `json:"detail,omitempty"`
	Hint      string          `json:"hint,omitempty"`
	Rival     *xdp.Attachment `json:"rival,omitempty"`
	Member    *owned.Member   `json:"member,omitempty"`
	Owner     *arbiter.Owner  `json:"owner,omitempty"`
	Since     time.Time       `json:"since,omitzero"`
	Rule      string          `json:"rule,omitempty"`
	Log       string          `json:"log,omitempty"`
}

// decided is an error that a rule of the policy made.
type decided interface{ DecidedBy() string }

// Encode names an error as the interface does.
func Encode(err error) (name string, p ErrorParameters) {
	name, p = failed, ErrorParameters{Message: err.Error()}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			name, p.Kind = k.name, k.kind
			break
		}
	}
	var byHook *xdp.Error
	if errors.As(err, &byHook) {
		p.Operation, p.Hook, p.Detail, p.Hint, p.Rival = byHook.Op, byHook.Hook, byHook.Detail, byHook.Hint, byHook.Rival
	}
	var byChain *owned.Error
	if errors.As(err, &byChain) {
		p.Operation, p.Detail, p.Hint, p.Member = string(byChain.Op), byChain.Detail, byChain.Hint, byChain.Rival
	}
	var byObject *object.Error
	if errors.As(err, &byObject) {
		p.Operation, p.Hint, p.Log = byObject.Op, byObject.Hint, byObject.VerifierLog
	}
	var held *arbiter.HeldError
	if errors.As(err, &held) {
		p.Owner, p.Since = &held.Record.Owner, held.Record.Since
	}
	var member *arbiter.MemberError
	if errors.As(err, &member) {
		p.Hook, p.Owner, p.Since = member.Hook, &member.Owner, member.Since
	}
	var rule decided
	if errors.As(err, &rule) {
		p.Rule = rule.DecidedBy()
	}
	return Interface + "." + name, p
}

// Error is what the daemon refused. errors.Is finds the sentinel that the daemon
// had, and errors.As an [*xdp.Error] of a conflict.
type Error struct {
	// Name is the error's on the wire.
	Name string
	ErrorParameters
	err error
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns what it is, nil where this side does not know it.
func (e *Error) Unwrap() error { return e.err }

// Decode makes an error of what Encode made of one.
func Decode(name string, parameters []byte) error {
	e := &Error{Name: name}
	if err := json.Unmarshal(parameters, &e.ErrorParameters); err != nil || e.Message == "" {
		return fmt.Errorf("the daemon refused: %s %s", name, parameters)
	}
	e.err = general[strings.TrimPrefix(name, Interface+".")]
	for _, k := range kinds {
		if Interface+"."+k.name == name && k.kind == e.Kind {
			e.err = k.err
		}
	}
	switch {
	case e.Rival != nil:
		e.err = &xdp.Error{Op: e.Operation, Hook: e.Hook, Err: e.err, Detail: e.Detail, Hint: e.Hint, Rival: e.Rival}
	case e.Log != "":
		e.err = &object.Error{Op: e.Operation, Err: e.err, Hint: e.Hint, VerifierLog: e.Log}
	}
	return e
}
