// Command write writes the site of the documentation:
//
//	write -repository . -out bin/site
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/holdfast-bpf/holdfast/internal/site"
)

func main() {
	repository := flag.String("repository", ".", "where the repository lies")
	out := flag.String("out", "", "directory for the site; what is in it is removed")
	flag.Parse()
	if err := write(*repository, *out); err != nil {
		fmt.Fprintln(os.Stderr, "write:", err)
		os.Exit(1)
	}
}

func write(repository, out string) error {
	if out == "" {
		return fmt.Errorf("-out is missing")
	}
	return site.Build(os.DirFS(repository), out)
}
