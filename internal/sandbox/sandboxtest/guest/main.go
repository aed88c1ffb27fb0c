// Command guest is the function that the conformance suite runs in sandboxes.
// What it does on its command line it does as an entrypoint or in an exec;
// "serve" does the rest over HTTP.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: guest serve|echo|cat|env|id|exit|sleep|trap|hog|stall|kill [argument]")
	}
	arg := func() string { return strings.Join(args[1:], " ") }
	switch args[0] {
	case "serve": // [address...]
		return serve(args[1:])
	case "echo": // words: to stdout, and the number of words to stderr
		fmt.Println(arg())
		fmt.Fprintln(os.Stderr, len(args)-1)
	case "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "id":
		fmt.Println(identity())
	case "exit": // code
		code, err := strconv.Atoi(arg())
		if err != nil {
			return err
		}
		os.Exit(code)
	case "kill": // signal, to itself
		sig, err := strconv.Atoi(arg())
		if err != nil {
			return err
		}
		if err := syscall.Kill(os.Getpid(), syscall.Signal(sig)); err != nil {
			return err
		}
		forever()
	case "sleep": // for ever; deaf to SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("sleeping")
		forever()
	case "hog": // MB
		mb, err := strconv.Atoi(arg())
		if err != nil {
			return err
		}
		hog(mb)
		fmt.Println("survived")
	case "stall": // MB
		mb, err := strconv.Atoi(arg())
		if err != nil {
			return err
		}
		return stall(mb)
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
	return nil
}

// forever sleeps; select{} would be taken for a deadlock.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}
