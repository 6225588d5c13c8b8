//go:build !race

package drive_test

const raceDetector = false
