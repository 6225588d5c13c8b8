package pager

import "testing"

// What AVX-512 computes AVX2 computes too.
func TestHashLanes(t *testing.T) {
	if !hashVector {
		t.Skip("no AVX2")
	}
	defer func(wide bool) { hashWide = wide }(hashWide)
	t.Logf("AVX-512: %t", hashWide)
	for _, wide := range []bool{false, hashWide} {
		hashWide = wide
		TestHashPages(t)
	}
}
