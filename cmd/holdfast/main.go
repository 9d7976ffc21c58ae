// Command holdfast attaches XDP programs so that they stay: see
// `holdfast --help`.
package main

import (
	"os"

	"github.com/holdfast-bpf/holdfast/internal/cli"
)

func main() { os.Exit(cli.Main(cli.SystemEnv())) }
