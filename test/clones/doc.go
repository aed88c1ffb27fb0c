// Package clones holds the test that functions restored from one snapshot
// share nothing that is meant to be random: see docs/clones.md.
package clones
