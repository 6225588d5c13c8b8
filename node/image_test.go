package node

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the samples in testdata anew")

// fixedImage is the sample with nothing random in it.
func fixedImage() image {
	img := sampleImage()
	img.Spec.ID = strings.Repeat("a", 26)
	return img
}

// Samples of each version that is promised to be read are read, and are the same
// when they are written again.
func TestSamples(t *testing.T) {
	head, err := fixedImage().encode()
	if err != nil {
		t.Fatal(err)
	}
	for path, made := range map[string][]byte{"testdata/image.v1": head, "testdata/checkpoint.v1": sampleCheckpoint(t, false)} {
		if *update {
			if err := os.WriteFile(path, made, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(made, want) {
			t.Errorf("%s: this version writes another one", path)
		}
		var got []byte
		if path == "testdata/image.v1" {
			var img image
			if img, err = parseImage(want); err == nil {
				got, err = img.encode()
			}
		} else {
			got, err = copyCheckpoint(want)
		}
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes became %d, or others", path, len(want), len(got))
		}
	}
}

// copyCheckpoint reads a checkpoint and writes what was in it.
func copyCheckpoint(b []byte) ([]byte, error) {
	r, err := newCheckpointReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := newCheckpointWriter(&out)
	if err != nil {
		return nil, err
	}
	for {
		rec, err := r.read()
		if err != nil {
			return nil, err
		}
		if rec.kind() == recordEnd {
			err := w.end()
			return out.Bytes(), err
		}
		if err := w.put(rec); err != nil {
			return nil, err
		}
	}
}
