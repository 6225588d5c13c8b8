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
			in.placeLocked(p, HashPage(page), page)
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
		file, err := os.Create(filepath.Join(t.TempDir(), "closed"))
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		in, _ := start(t, file)
		if err := in.forget([]Run{r}); err == nil {
			t.Fatal("pages were taken out of a file that is closed")
		}
		if in.aside.held > dropPart {
			t.Errorf("%d pages were copied before the first was taken out, want at most %d", in.aside.held, dropPart)
		}
	})
}
