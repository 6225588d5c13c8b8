//go:build race

package apps

const raceDetector = true
