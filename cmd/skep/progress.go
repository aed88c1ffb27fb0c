package main

import (
	"fmt"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress tells on standard error what is being waited for: a spinner on a
// terminal, a line for each step elsewhere.
type progress struct {
	bar  *progressbar.ProgressBar
	last string
	stop chan struct{}
}

func newProgress() *progress {
	p := &progress{}
	if !isTerminal(stderr) {
		return p
	}
	p.bar = progressbar.NewOptions(-1,
		progressbar.OptionSetWriter(stderr),
		progressbar.OptionSpinnerType(14),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetElapsedTime(true),
	)
	p.stop = make(chan struct{})
	go func() {
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-t.C:
				_ = p.bar.Add(1)
			}
		}
	}()
	return p
}

// step says what happens now.
func (p *progress) step(what string) {
	if what == p.last {
		return
	}
	p.last = what
	if p.bar == nil {
		fmt.Fprintln(stderr, what)
		return
	}
	p.bar.Describe(what)
}

func (p *progress) done() {
	if p.bar != nil && p.stop != nil {
		close(p.stop)
		p.stop = nil
		_ = p.bar.Finish()
	}
}
