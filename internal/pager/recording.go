package pager

import (
	"fmt"
)

// Recording is the pages that a machine touched, in the order of first touch,
// as page numbers of the image. No page is in it twice.
type Recording struct {
	PageSize int
	Pages    []uint64
}

// Union joins recordings: the first one's order, then what the others add.
func Union(recordings ...Recording) (Recording, error) {
	out, err := merged(recordings)
	if err != nil {
		return Recording{}, err
	}
	seen := make(map[uint64]struct{})
	for _, r := range recordings {
		for _, p := range r.Pages {
			if _, ok := seen[p]; !ok {
				seen[p] = struct{}{}
				out.Pages = append(out.Pages, p)
			}
		}
	}
	return out, nil
}

// Intersection keeps the pages that every recording has, in the first one's
// order.
func Intersection(recordings ...Recording) (Recording, error) {
	out, err := merged(recordings)
	if err != nil {
		return Recording{}, err
	}
	count := make(map[uint64]int)
	for i, r := range recordings {
		for _, p := range r.Pages {
			if count[p] == i {
				count[p] = i + 1
			}
		}
	}
	for _, p := range recordings[0].Pages {
		if count[p] == len(recordings) {
			out.Pages = append(out.Pages, p)
			count[p] = 0
		}
	}
	return out, nil
}

func merged(recordings []Recording) (Recording, error) {
	if len(recordings) == 0 {
		return Recording{}, fmt.Errorf("merge recordings: none given")
	}
	for i, r := range recordings {
		if r.PageSize != recordings[0].PageSize {
			return Recording{}, fmt.Errorf("merge recordings: number %d has page size %d, the first %d",
				i, r.PageSize, recordings[0].PageSize)
		}
	}
	return Recording{PageSize: recordings[0].PageSize}, nil
}

// Drift compares a working set with what a machine needed in truth.
type Drift struct {
	// Missing is the pages touched until the first response that the set
	// lacked; Size is the pages of the set.
	Missing, Size int
	// Failed is why the set was not installed as a whole; pages of it that
	// were then served on demand are not among the missing.
	Failed error
}

// Ratio is Missing in relation to Size; without a set it is 1 when anything
// was touched.
func (d Drift) Ratio() float64 {
	if d.Size == 0 {
		return float64(min(1, d.Missing))
	}
	return float64(d.Missing) / float64(d.Size)
}

// Drifted tells whether the set could not be installed or the ratio is above
// threshold: time to record again.
func (d Drift) Drifted(threshold float64) bool { return d.Failed != nil || d.Ratio() > threshold }
