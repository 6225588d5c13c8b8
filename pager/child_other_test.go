//go:build !linux

package pager

func childMain() {}
