package reference

import (
	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/policy"
)

// fact is one line of a table.
type fact struct{ name, meaning string }

// exitCodes are those of the command; internal/cli has them as constants.
var exitCodes = []fact{
	{"0", "done"},
	{"1", "failed"},
	{"2", "usage: called wrongly"},
	{"3", "drift: what runs is no longer what Holdfast set up; of doctor, something is wrong on the host"},
	{"4", "conflict: somebody else holds the hook or the name, or what was expected is not so; the rival is named"},
	{"5", "not permitted"},
	{"6", "the kernel, the driver or the engine cannot"},
	{"7", "not found: the interface, the namespace, the file, or anything attached"},
	{"8", "lock timeout: another holdfast is changing something"},
}

// runCodes is what is said of exit codes where a command runs another one.
const runCodes = "holdfast run ends with the exit code of its command, or 128 and the signal's number."

var environment = []fact{
	{"HOLDFAST_BPFFS", "directory of Holdfast's own state, as --bpffs"},
	{"HOLDFAST_SOCKET", "the daemon's socket, as --socket"},
	{"LIBXDP_BPFFS", "bpffs that the tools of libxdp share, as --libxdp-bpffs"},
	{"LIBXDP_BPFFS_AUTOMOUNT", "1: mount that bpffs where there is none"},
	{"LIBXDP_OBJECT_PATH", "of xdp-loader only: where objects are looked for"},
}

var files = []fact{
	{arbiter.DefaultDir, "Holdfast's own state: a bpffs with the pins and records of what is attached. It goes with a reboot, as what is attached does"},
	{client.DefaultSocket, "where the daemon listens"},
	{policy.Dir, "the policy of the daemon, and what is declared for it"},
	{libxdp.DefaultBPFFS, "the bpffs with the pins of shared hooks, which all tools of libxdp use"},
}
