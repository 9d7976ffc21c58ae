package features_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{"kernel": printKernel, "judge-eperm": judgeEPERM})
}

// printKernel is what a caller with fewer rights than the test finds out.
func printKernel([]string) int {
	found, err := features.Kernel(context.Background())
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// judgeEPERM is what a refusal means to this process.
func judgeEPERM([]string) int {
	supported, _ := features.Judge(unix.EPERM, "")
	fmt.Print(supported)
	return 0
}
