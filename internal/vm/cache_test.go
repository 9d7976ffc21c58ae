package vm

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestAThingIsPutIntoTheCacheOnce(t *testing.T) {
	t.Setenv("HOLDFAST_CACHE", t.TempDir())
	var filled atomic.Int32
	fill := func(work string) (string, error) {
		filled.Add(1)
		made := filepath.Join(work, "made")
		if err := os.Mkdir(made, 0o755); err != nil {
			return "", err
		}
		return made, os.WriteFile(filepath.Join(made, "content"), []byte("whole"), 0o644)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := once(t.Context(), "things", "one", fill)
			if err != nil {
				t.Error(err)
				return
			}
			if content, err := os.ReadFile(filepath.Join(dir, "content")); err != nil || string(content) != "whole" {
				t.Errorf("%q, %v", content, err)
			}
		})
	}
	wg.Wait()
	if n := filled.Load(); n != 1 {
		t.Errorf("it was made %d times", n)
	}
}

func TestWhatCouldNotBeMadeIsNotInTheCache(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("HOLDFAST_CACHE", cache)
	broken := errors.New("broken")
	for range 2 {
		_, err := once(t.Context(), "things", "one", func(work string) (string, error) {
			made := filepath.Join(work, "made")
			return made, errors.Join(broken, os.Mkdir(made, 0o755))
		})
		if !errors.Is(err, broken) {
			t.Errorf("%v, want that it broke", err)
		}
	}
	left, err := filepath.Glob(filepath.Join(cache, "things", "*"))
	if err != nil {
		t.Fatal(err)
	}
	hidden, err := filepath.Glob(filepath.Join(cache, "things", ".*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(left, hidden...) {
		if filepath.Base(name) != "one.lock" {
			t.Errorf("%s is left", name)
		}
	}
}
