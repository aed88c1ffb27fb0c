package qemu

// TSCKHz measures the frequency of this machine's time stamp counter, which an
// emulated guest sees too: given to its kernel as tsc_early_khz, it need not
// measure it against an emulated timer, and hang where the host is busy.
func TSCKHz() int64 { return tscKHz() }
