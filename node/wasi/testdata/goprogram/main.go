// A program as they are: goroutines, timers, lines in, lines out, files.
package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

func run() error {
	// Lines in, on a goroutine; a timer on another.
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			lines <- s.Text()
		}
	}()
	tick := time.After(5 * time.Millisecond)
	for lines != nil || tick != nil {
		select {
		case line, ok := <-lines:
			if !ok {
				lines = nil
				break
			}
			fmt.Println("line", strings.ToUpper(line))
		case <-tick:
			tick = nil
		}
	}

	// Files out and in again.
	if err := os.MkdirAll("/data/deep/down", 0o755); err != nil {
		return err
	}
	sums := map[string][32]byte{}
	for i := range 20 {
		name := fmt.Sprintf("/data/deep/f%d", i)
		data := []byte(strings.Repeat(name, i*i*10))
		sums[name] = sha256.Sum256(data)
		if err := os.WriteFile(name, data, 0o644); err != nil {
			return err
		}
	}
	if err := os.Rename("/data/deep", "/data/moved"); err != nil {
		return err
	}
	count := 0
	err := filepath.WalkDir("/data", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if sums[strings.Replace(path, "moved", "deep", 1)] != sha256.Sum256(data) {
			return fmt.Errorf("%s is not what was written", path)
		}
		count++
		return os.Remove(path)
	})
	if err != nil {
		return err
	}
	fmt.Println("files", count)
	if err := os.RemoveAll("/data"); err != nil {
		return err
	}
	if _, err := os.Stat("/data"); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("/data is there still: %v", err)
	}
	f, err := os.OpenFile("/log", os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	for i := range 100 {
		if _, err := fmt.Fprintln(f, "entry", i); err != nil {
			return err
		}
	}
	if err := f.Truncate(16); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	data, err := io.ReadAll(f)
	fmt.Printf("log %q\n", data)
	if err := os.WriteFile("/ro/new", nil, 0o644); err == nil {
		return errors.New("a read-only directory took a file")
	}
	if b, err := os.ReadFile("/ro/text"); err != nil || string(b) != "only to read" {
		return fmt.Errorf("read-only: %q, %w", b, err)
	}
	return err
}
