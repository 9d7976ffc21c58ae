// Package declared reads and writes files that declare what chains are to be,
// and plans the changes that make them so. A file is YAML:
//
//	version: 1
//	hooks:
//	- interface: eth0
//	  netns: blue               # optional: a name, a path or a pid
//	  mode: native              # optional: auto, native, generic or offload
//	  engine: auto              # optional: auto, live or fused
//	  exclusive: false          # optional: the only member has the hook to itself
//	  stats: true               # optional: the chain counts what its members return, or not
//	  drift: restore            # optional: what the daemon does about it, or leave
//	  members:                  # in the order that they run in; [] for none
//	  - name: ddos
//	    object: xdp/ddos.o      # a relative path begins where the file is
//	    program: xdp_ddos       # optional: a function's name, or section: its section
//	    priority: 10            # optional: 50
//	    proceed-on: [XDP_PASS]  # optional: [XDP_PASS]; [] to never go on
//	    set:                    # optional: global variables, see object.Object.Set
//	      drop_port: 53
//
// What a file leaves out has these defaults, whatever the objects themselves ask
// for: what a file means can be told from the file. But for stats, which are left
// as they are: to look is not to declare.
//
// A file is read strictly: a word that means nothing, a word said twice, a value
// of another type, two members of one name or priorities that fall are errors,
// with their line and column. Anchors, aliases and tags are not taken.
package declared

import (
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/internal/yamlfile"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// File is what a file declares.
type File struct {
	Hooks []Hook
}

// Hook is one hook, and the chain that it is to have.
type Hook struct {
	Interface string
	// Namespace opens the network namespace, as in [xdp.OpenNamespace]. It is
	// empty where the file leaves that to whoever reads it.
	Namespace string
	Mode      xdp.Mode
	// Engine is how the chain is to run: Auto, Live or Fused.
	Engine    Engine
	Exclusive bool
	// Stats is whether the chain counts what its members return, nil where that
	// stays as it is.
	Stats *bool
	// Drift says what the daemon does where the chain has come to be another, or has
	// gone: Restore where it is empty.
	Drift Drift
	// Members are in the order that they run in.
	Members []Member
}

// Drift is what is done about it.
type Drift string

// What is done about drift: the chain is made as declared again, or it is only told.
const (
	Restore Drift = "restore"
	Leave   Drift = "leave"
)

// Engine is how a chain is to run.
type Engine string

// The engines, and the choice to leave it to Holdfast.
const (
	Auto  Engine = "auto"
	Live  Engine = "live"
	Fused Engine = "fused"
)

// Member is one member of the chain. It is permanent: who holds a member is no
// file.
type Member struct {
	Name string
	// Object is the path of the object file. Read makes a relative one begin
	// where the file is, and Decode leaves it.
	Object string
	// Program and Section choose one of the object's programs. At most one of
	// the two is given.
	Program, Section string
	Priority         uint32
	ProceedOn        chain.Actions
	// Variables are the values of global variables by their names, both as
	// [github.com/holdfast-bpf/holdfast/object.Object.Set] takes them.
	Variables map[string]string
}

// Assignments are the variables as name=value, by name.
func (m Member) Assignments() []string {
	var s []string
	for _, name := range slices.Sorted(maps.Keys(m.Variables)) {
		s = append(s, name+"="+m.Variables[name])
	}
	return s
}

// Read reads the file at path. What is not there is an [os.ErrNotExist], and what
// can't be understood an [*Error].
func Read(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	file, err := Decode(path, f)
	if err != nil {
		return nil, err
	}
	for _, h := range file.Hooks {
		for i, m := range h.Members {
			if !filepath.IsAbs(m.Object) {
				h.Members[i].Object = filepath.Join(filepath.Dir(path), m.Object)
			}
		}
	}
	return file, nil
}

// ErrInvalid says that a file can't be understood, or a chain not be written as
// one. It is wrapped by an [*Error].
var ErrInvalid = yamlfile.ErrInvalid

// Error is what is wrong with a file.
type Error = yamlfile.Error
