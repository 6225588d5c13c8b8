package node

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"time"

	"meshnode/node/runner"
)

// How fast a core runs workers is measured, not claimed: clock rates say
// little across CPUs, and nothing about whether WebAssembly is compiled or
// interpreted. A runner, the same as any worker's, is given calibrateWasm,
// whose handler mixes what apps do: 64-bit arithmetic, loads and stores over
// 256 KiB, which is about a core's own cache, and floating point
// (calibrate_test.go assembles it). The shortest of many events counts: what
// else runs on the machine can only make them longer.
//
//go:embed calibrate.wasm
var calibrateWasm []byte

const (
	// calibrateEvents are run, the first calibrateWarm of them not counted; one
	// takes 0.1 ms compiled and a hundred times that interpreted.
	calibrateEvents = 60
	calibrateWarm   = 10
	// calibrateTimes is how often all that is done, calibratePause apart.
	calibrateTimes = 3
	calibratePause = 5 * time.Second
	// calibrateTime bounds it each time, the start of the runner included.
	calibrateTime = 30 * time.Second
	// calibrateKeeps is how long a result is taken from disk: machines do not
	// change, but virtual ones are moved.
	calibrateKeeps = 7 * 24 * time.Hour
	speedFile      = "speed.json"
)

// A calibration is a result as it is kept in the state directory.
type calibration struct {
	// Machine says what was measured: another CPU, engine or version of the
	// measurement makes the result void.
	Machine string    `json:"machine"`
	Speed   uint32    `json:"speed"` // events a second
	At      time.Time `json:"at"`
}

// machine names all that the result depends on.
func (n *Node) machine() string {
	h := sha256.New()
	h.Write(calibrateWasm)
	fmt.Fprintln(h, goruntime.GOARCH, goruntime.Version(), n.engine(), cpuModel())
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// speedKept returns the result that is on disk; zero if there is none.
func (n *Node) speedKept(now time.Time) calibration {
	b, err := readSmall(filepath.Join(n.cfg.StateDir, speedFile))
	if err != nil {
		return calibration{}
	}
	var c calibration
	if json.Unmarshal(b, &c) != nil || c.Machine != n.machine() || now.Before(c.At) || now.Sub(c.At) > calibrateKeeps {
		return calibration{}
	}
	return c
}

func (n *Node) writeSpeed(c calibration) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return writeSmall(filepath.Join(n.cfg.StateDir, speedFile), b)
}

// calibrate measures the speed of a core here.
func (n *Node) calibrate(ctx context.Context) (calibration, error) {
	ctx, cancel := context.WithTimeout(ctx, calibrateTime)
	defer cancel()
	// The runner reads its module from a file.
	path := filepath.Join(n.modules.dir, "calibrate.module")
	if err := os.WriteFile(path, calibrateWasm, 0o600); err != nil {
		return calibration{}, err
	}
	defer os.Remove(path)
	r, err := runner.Start(ctx, runner.Config{
		Exe: n.cfg.Exe, ModulePath: path, MemoryLimit: 1 << 20, Interpreter: n.cfg.Interpreter, Logger: n.log,
		Args: []string{"calibrate"},
	})
	if err != nil {
		return calibration{}, err
	}
	defer r.Close()
	if err := r.Init(ctx); err != nil {
		return calibration{}, err
	}
	best := time.Duration(0)
	for i := range calibrateEvents {
		e, err := r.Call(ctx, runner.Event{Kind: runner.Call, ID: uint64(i + 1)})
		if err != nil {
			return calibration{}, err
		}
		if i >= calibrateWarm && (best == 0 || e.Duration < best) {
			best = e.Duration
		}
	}
	if best <= 0 {
		return calibration{}, fmt.Errorf("an event took %v, which no clock can tell", best)
	}
	return calibration{Machine: n.machine(), Speed: uint32(min(float64(time.Second)/float64(best), 1<<31)), At: time.Now()}, nil
}

// keepSpeed finds out how fast this node is, tells the others and keeps the
// result on disk. It measures after a start only, but then some times: something
// else may have had the processors, or their caches, for all of the first.
func (n *Node) keepSpeed(ctx context.Context) {
	best := n.speedKept(time.Now())
	if best.Speed > 0 {
		n.said.setSpeed(best)
		n.advertise()
		return
	}
	for i := range calibrateTimes {
		if i > 0 {
			select {
			case <-time.After(calibratePause):
			case <-ctx.Done():
				return
			}
		}
		c, err := n.calibrate(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && best.Speed == 0:
			n.log.Warn("speed not measured, others take it for the median of the mesh", "error", err)
			continue
		case err != nil || c.Speed <= best.Speed:
			continue
		}
		best = c
		if err := n.writeSpeed(c); err != nil {
			n.log.Warn("speed measured, but not kept", "error", err)
		}
		n.log.Info("speed measured", "eventsPerSecond", c.Speed, "engine", n.engine())
		n.said.setSpeed(c)
		n.advertise()
	}
}
