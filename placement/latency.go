package placement

import (
	"math"
	"time"
)

// A spread is a distribution known by its median and by how far its 99th
// percentile lies above, in seconds. Independent spreads are added by adding
// the medians and the squares of the excesses. That is exact for normal
// distributions and an approximation for all else: it lies between assuming
// that all parts are late at once (too pessimistic) and that none ever are.
type spread struct{ mid, tail float64 }

func (a spread) plus(b spread) spread {
	return spread{a.mid + b.mid, math.Sqrt(a.tail*a.tail + b.tail*b.tail)}
}

// at returns the quantile whose normal score over that of 0.99 is z.
func (a spread) at(z float64) float64 { return a.mid + a.tail*z }

// z99 is the 0.99 quantile of the standard normal distribution.
const z99 = 2.3263478740408408

// score returns how far quantile q is from the median, in units of the
// distance of the 99th percentile.
func score(q float64) float64 { return math.Sqrt2 * math.Erfinv(2*q-1) / z99 }

func (r RTT) spread() spread {
	mid := min(max(r.P50.Seconds(), 0), maxRTT)
	tail := min(r.P99.Seconds(), 10*maxRTT) - mid
	if tail < 0 {
		tail = unknownTail * mid
	}
	return spread{mid, max(tail, minTail)}
}

// riskWidth is the relative uncertainty of a prediction, as the standard
// deviation of its logarithm: wider where the network was only estimated, and
// much less where the worker is, since there its events are seen and not
// predicted. (With one width for all, a quarter of the moves left a place of
// which there was little to fear for one that was no safer, and four in five of
// those saved nobody a second.)
const (
	riskWidth          = 0.12
	riskWidthHome      = 0.045
	riskWidthEstimated = 0.20
)

// risk returns the probability that a value predicted as v turns out above
// limit: the normal distribution of ln v, by its logistic approximation (Bowling
// et al., "A logistic approximation to the cumulative normal distribution",
// 2009, whose simple form has an error below 0.01).
func risk(v, limit, width float64) float64 {
	if v <= 0 {
		return 0
	}
	x := 1.702 * math.Log(v/limit) / width
	switch {
	case x > 20:
		return 1
	case x < -20:
		return 0
	}
	return 1 / (1 + math.Exp(-x))
}

// late returns the share of cases that turn out above limit where the network
// takes net and the node local: a normal distribution, by the same approximation
// as in risk, whose width is that of the network, of the prediction itself, and
// of local, which is lognormal as a handler's time is, as far away as the limit
// is. Where a quantile is beyond its limit everywhere, there are still places
// with more and with fewer late cases.
func late(net, local spread, limit, width float64) float64 {
	mid := net.mid + local.mid
	margin := limit - mid
	scale := math.Hypot(net.tail/z99, width*mid)
	if local.mid > 0 && local.tail > 0 {
		sigma := math.Log1p(local.tail/local.mid) / z99
		far := local.mid
		if margin > 0 {
			far = margin / math.Log1p(margin/local.mid)
		}
		scale = math.Hypot(scale, far*sigma)
	}
	if scale <= 0 {
		return 0
	}
	return 1 / (1 + math.Exp(min(max(1.702*margin/scale, -50), 50)))
}

// service is the time a handler runs: its median and 99th percentile, and its
// moments, those of the lognormal distribution with these quantiles unless they
// were measured. (Of a few events one that was late once, as the first after a
// move, is the 99th percentile. The lognormal distribution then has a mean of
// many times what the events took, and a worker at rest seemed to need more than
// a core.)
type service struct {
	spread
	mean, second float64 // E[S] and E[S²]
	rate         float64 // events per second
}

func newService(e EventTime) service {
	// Beyond an hour, a million events a second or a thousandfold tail,
	// squares overflow, and nothing depends on them any more.
	mid, rate := min(e.P50, time.Hour).Seconds(), min(sane(e.Rate, 0), 1e6)
	if mid <= 0 {
		return service{rate: rate}
	}
	p99 := min(max(e.P99.Seconds(), mid), 1000*mid)
	sigma := math.Log(p99/mid) / z99
	s := service{
		spread: spread{mid, p99 - mid},
		mean:   mid * math.Exp(sigma*sigma/2),
		second: mid * mid * math.Exp(2*sigma*sigma),
		rate:   rate,
	}
	if e.Mean > 0 {
		mean, deviation := min(e.Mean, time.Hour).Seconds(), min(max(e.Deviation, 0), time.Hour).Seconds()
		s.mean, s.second = mean, mean*mean+deviation*deviation
	}
	return s
}

// saturated is how busy a server may be before its queue counts as endless:
// the formulas have a pole at 1, and no measured load is exact.
const saturated = 0.98

// stretch returns by how much a handler's time grows on a node whose cores are
// busy with other work for the share load: 1 plus the wait for a CPU, in units
// of service time, by Sakasegawa's approximation of the M/M/c queue ("An
// approximation formula Lq ≈ α·ρ^β/(1−ρ)", 1977). exponent is that of cores.
func stretch(load, exponent float64, cores int) float64 {
	load = min(max(load, 0), saturated)
	return 1 + math.Pow(load, exponent)/(float64(cores)*(1-load))
}

func stretchExponent(cores int) float64 { return math.Sqrt(2*float64(cores+1)) - 1 }

// queueWait returns how long an event waits in the queue of a worker that
// handles one event at a time, each slowed by factor: the M/G/1 queue. The mean
// is Pollaczek and Khinchine's, λE[S²]/(2(1−ρ)); the tail is taken as
// exponential, P(W>t) = ρ·exp(−ρt/E[W]), which is exact for M/M/1. ok is false
// when the queue grows without end.
func (s *service) queueWait(factor float64) (w spread, ok bool) {
	rho := s.rate * s.mean * factor
	if rho >= saturated {
		return spread{}, false
	}
	if rho <= 0 {
		return spread{}, true
	}
	mean := s.rate * s.second * factor * factor / (2 * (1 - rho))
	at := func(beyond float64) float64 { // the wait exceeded with this probability
		if rho <= beyond {
			return 0
		}
		return mean / rho * math.Log(rho/beyond)
	}
	mid := at(0.5)
	return spread{mid, at(0.01) - mid}, true
}

func seconds(s float64) time.Duration {
	if s > 1e9 { // beyond any use; keeps the conversion defined
		s = 1e9
	}
	return time.Duration(s * float64(time.Second))
}
