// To read how much processor time the cgroup has, and to look again later, is
// for servers: this process ends within milliseconds.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command holdfast attaches XDP programs so that they stay: see
// `holdfast --help`.
package main

import (
	"os"

	"github.com/holdfast-bpf/holdfast/internal/cli"
)

func main() { os.Exit(cli.Main(cli.SystemEnv())) }
