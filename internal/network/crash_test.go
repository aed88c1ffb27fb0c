package network_test

import (
	"bufio"
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/sandbox"
)

// crashEnv holds the configuration of a child that is going to be killed.
const crashEnv = "SKEP_TEST_NETWORK_CRASH"

func TestMain(m *testing.M) {
	if data := os.Getenv(crashEnv); data != "" {
		churn(data)
		return
	}
	os.Exit(m.Run())
}

// churn acquires and releases leases until it is killed.
func churn(data string) {
	var cfg network.Config
	if err := json.Unmarshal([]byte(data), &cfg); err != nil {
		panic(err)
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	os.Stdout.WriteString("started\n")
	ctx := context.Background()
	m, err := network.New(ctx, cfg)
	if err != nil {
		panic(err)
	}
	for i := range 3 {
		go func() {
			var held []*network.Lease
			for {
				l, err := m.Acquire(ctx, network.Options{Kind: kinds[i%2], Egress: rand.IntN(2) == 0})
				if err != nil {
					panic(err)
				}
				if held = append(held, l); len(held) > 3 {
					if err := held[0].Release(ctx); err != nil {
						panic(err)
					}
					held = held[1:]
				}
			}
		}()
	}
	select {}
}

func TestCrash(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Pools = map[sandbox.LinkKind]int{sandbox.LinkVeth: 2, sandbox.LinkTAP: 2}
	log := cfg.Log
	cfg.Log = nil
	data, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for range 12 {
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), crashEnv+"="+string(data))
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Error(err)
		}
		// Any moment will do: in New, while pools fill, or later.
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		child.Process.Kill()
		child.Wait()

		found += len(hostLinks(t, cfg))
		again := cfg
		again.Log, again.Pools = log, nil
		m, err := network.New(t.Context(), again)
		if err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, cfg)
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Error("no child was killed while it had uplinks: nothing was tested")
	}
}
