package snapfaas

import (
	"io"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/netns"
)

// Addresses for documentation (RFC 5737), which count as public.
const (
	hostEnd = "203.0.113.1/24"
	farEnd  = "203.0.113.2/24"
	server  = "203.0.113.2:7"
)

// apart makes a network namespace that plays the machine, with a way to a
// server outside that greets whoever comes, so that no route of the real
// machine changes. It returns the namespace's path.
func (w *world) apart() string {
	w.t.Helper()
	host, outside := w.path("host.ns"), w.path("outside.ns")
	for _, ns := range []string{host, outside} {
		if err := netns.Create(ns); err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() {
			if err := netns.Remove(ns); err != nil {
				w.t.Error(err)
			}
		})
	}
	far, err := vnetns.GetFromPath(outside)
	if err != nil {
		w.t.Fatal(err)
	}
	defer far.Close()
	err = netns.Do(host, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "way"
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "way", PeerNamespace: netlink.NsFd(far)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := up("lo", ""); err != nil {
			return err
		}
		return up("way", hostEnd)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	var l net.Listener
	err = netns.Do(outside, func() error {
		if err := up("way", farEnd); err != nil {
			return err
		}
		l, err = new(net.ListenConfig).Listen(w.t.Context(), "tcp4", server)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "welcome")
			c.Close()
		}
	}()
	return host
}

func up(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if address != "" {
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// probe answers with what it finds in the guest. Its dependency comes with its
// disk.
const probe = `import idna
import socket


def handle(obj):
    out = {"idna": idna.encode("b\u00fccher.example").decode()}
    try:
        with open("/proc/sys/vm/swappiness") as f:
            out["swappiness"] = int(f.read())
    except FileNotFoundError:  # gVisor has none
        out["swappiness"] = 0
    try:
        with socket.create_connection(("203.0.113.2", 7), timeout=2) as s:
            out["server"] = s.recv(100).decode()
    except OSError:
        out["server"] = "out of reach"
    return out
`

// probes boots with --network and --kernel_args, and an app with a dependency,
// and restores without and with --network.
func (w *world) probes(machine, base string) {
	w.write("probe/workload.py", probe)
	w.write("probe/requirements.txt", "idna==3.10\n")
	w.run("", "skep app build probe appfs/probe.ext2")
	w.netns = w.apart()
	defer func() { w.netns = "" }()
	machine += " --appfs appfs/probe.ext2"
	for _, test := range []struct{ flags, want string }{
		{" --network --kernel_args sysctl.vm.swappiness=41,quiet", `{"idna":"xn--bcher-kva.example","swappiness":41,"server":"welcome"}`},
		{base + " --network", `{"idna":"xn--bcher-kva.example","swappiness":60,"server":"welcome"}`},
		{" --sandbox gvisor --load_dir gvisor/python3 --network", `{"idna":"xn--bcher-kva.example","swappiness":0,"server":"welcome"}`},
		{" --sandbox gvisor --load_dir gvisor/python3", `{"idna":"xn--bcher-kva.example","swappiness":0,"server":"out of reach"}`},
		{base, `{"idna":"xn--bcher-kva.example","swappiness":60,"server":"out of reach"}`},
	} {
		line := "singlevm" + machine + test.flags
		if got, _ := w.run("{}\n", line); got != test.want+"\n" {
			w.t.Errorf("%s: %s, want %s", line, got, test.want)
		}
	}
	if _, stderr := w.run("", "singlevm"+machine+base+" --kernel_args quiet"); !strings.Contains(stderr, "--kernel_args has no effect") {
		w.t.Errorf("--kernel_args with a snapshot: %s", stderr)
	}
}
