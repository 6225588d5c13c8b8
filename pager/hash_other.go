//go:build !amd64

package pager

const hashVector = false

func hashPagesVector([]Hash, [][]byte) { panic("pager: no vectors here") }
