// Command skep-agent is PID 1 in a micro-VM. It is not for use elsewhere.
package main

import (
	"fmt"
	"os"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/guest"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == guest.StageArg {
		guest.RunStage()
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "skep-agent is the first process of a virtual machine that skep starts; it does nothing elsewhere")
		os.Exit(2)
	}
	if err := guest.Main(); err != nil {
		fmt.Println(agent.FailedMessage, err)
	}
	guest.PowerOff()
}
