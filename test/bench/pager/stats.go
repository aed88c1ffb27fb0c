package main

import (
	"math/rand/v2"
	"slices"
)

// pair is two measurements next to each other.
type pair struct{ c, pager sample }

// quotient is a ratio with its 95 % confidence interval.
type quotient struct{ value, low, high float64 }

// summary is the medians of C and of the pager, and the ratio of these: of the
// rates, or of the times.
func (k *kind) summary(get func(sample) float64, rates bool) (c, pager float64, r quotient) {
	values := func(pairs []pair) (c, pager, ratio float64) {
		var a, b []float64
		for _, p := range pairs {
			a, b = append(a, get(p.c)), append(b, get(p.pager))
		}
		c, pager = median(a), median(b)
		if rates {
			return c, pager, c / pager
		}
		return c, pager, pager / c
	}
	c, pager, r.value = values(k.pairs)
	r.low, r.high = interval(k.pairs, func(pairs []pair) float64 {
		_, _, ratio := values(pairs)
		return ratio
	})
	return c, pager, r
}

// interval is the 95 % confidence interval of a statistic of pairs: the
// percentile bootstrap (Efron, 1979), with the same samples each time.
func interval(pairs []pair, statistic func([]pair) float64) (low, high float64) {
	const resamples = 4000
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // no secret
	sample, all := make([]pair, len(pairs)), make([]float64, resamples)
	for i := range all {
		for j := range sample {
			sample[j] = pairs[r.IntN(len(pairs))]
		}
		all[i] = statistic(sample)
	}
	slices.Sort(all)
	return all[resamples*25/1000], all[resamples*975/1000]
}

// median is the middle, or the mean of the two in the middle; it sorts v.
func median(v []float64) float64 {
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
