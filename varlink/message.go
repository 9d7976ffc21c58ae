package varlink

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// call and reply are the messages of the protocol.
type call struct {
	Method     string          `json:"method"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	OneWay     bool            `json:"oneway,omitempty"`
	More       bool            `json:"more,omitempty"`
	Upgrade    bool            `json:"upgrade,omitempty"`
}

type reply struct {
	Parameters json.RawMessage `json:"parameters,omitempty"`
	Continues  bool            `json:"continues,omitempty"`
	Error      string          `json:"error,omitempty"`
}

// Error is what the other side refused by, and what a method returns to refuse.
type Error struct {
	// Name is the error's, with its interface.
	Name string
	// Parameters are a JSON object, or nil.
	Parameters json.RawMessage
}

func (e *Error) Error() string {
	if len(e.Parameters) == 0 || string(e.Parameters) == "{}" {
		return e.Name
	}
	return fmt.Sprintf("%s %s", e.Name, e.Parameters)
}

// decode reads one JSON value that may be nested so deep.
func decode(b []byte, depth int, into any) error {
	if !utf8.Valid(b) {
		return errors.New("varlink: the message is no UTF-8")
	}
	if deeper(b, depth) {
		return fmt.Errorf("%w: the message is nested more than %d deep", ErrLimit, depth)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("varlink: the message can't be read: %w", err)
	}
	return nil
}

// deeper tells whether objects and arrays are nested more than so deep. It need not
// be right about what is no JSON.
func deeper(b []byte, depth int) bool {
	var n int
	var quoted bool
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if n++; n > depth {
				return true
			}
		case c == '}' || c == ']':
			n--
		}
	}
	return false
}
