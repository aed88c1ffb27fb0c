// Command skep-runsc is gVisor's runsc, as the gvisor driver starts it. It is
// embedded into skep, which could be runsc itself, but is four times as large
// and takes 40 ms longer to come up: its API machinery is initialised in each
// of a sandbox's processes.
package main

import (
	"fmt"
	"os"

	"github.com/skep-dev/skep/internal/sandbox/gvisor"
)

func main() {
	gvisor.MaybeRunsc()
	fmt.Fprintln(os.Stderr, "skep-runsc is a part of skep and not meant to be run by hand")
	os.Exit(2)
}
