package pager

import (
	"os"
	"path/filepath"
	"testing"
)

// What is taken out of the memory is copied by parts, not all at once.
func TestDropParts(t *testing.T) {
	const pages = 4 * dropPart
	r := Run{dropPart / 3, 3 * dropPart}
	start := func(t *testing.T, file *os.File) (*Intake, []byte) {
		mem := testMemory(testRand(t), pages, 0)
		in, err := NewIntake(IntakeConfig{
			Worker: "w", Epoch: 1, Region: Region{Data: make([]byte, len(mem)), UFFD: -1, File: file}, Log: testLog(t),
		})
		if err != nil {
			t.Fatal(err)
		}
		for p := range PageNum(pages) {
			page := mem[int(p)*PageSize:][:PageSize]
			if err := in.placeLocked(p, HashPage(page), page); err != nil {
				t.Fatal(err)
			}
		}
		return in, mem
	}
	t.Run("all", func(t *testing.T) {
		in, mem := start(t, nil)
		if err := in.forget([]Run{r}); err != nil {
			t.Fatal(err)
		}
		for p := range PageNum(pages) {
			want := mem[int(p)*PageSize:][:PageSize]
			name, aside := in.aside.get(p)
			if stale := p >= r.First && p < r.end(); stale != (aside != nil) {
				t.Fatalf("page %d is stale: %v, and kept aside: %v", p, stale, aside != nil)
			} else if stale {
				if string(aside[:]) != string(want) || name != HashPage(want) {
					t.Fatalf("page %d is kept aside with other content", p)
				}
				want = zeroPage[:]
			}
			if string(in.cfg.Region.Data[int(p)*PageSize:][:PageSize]) != string(want) {
				t.Fatalf("page %d has other content", p)
			}
		}
	})
	t.Run("fails", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "memory")
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		in, _ := start(t, file)
		if in.cfg.Region.File, err = os.Open(path); err != nil {
			t.Fatal(err)
		}
		defer in.cfg.Region.File.Close()
		if err := in.forget([]Run{r}); err == nil {
			t.Fatal("pages were taken out of a file that can only be read")
		}
		if in.aside.held > dropPart {
			t.Errorf("%d pages were copied before the first was taken out, want at most %d", in.aside.held, dropPart)
		}
	})
}
