package api_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skep-dev/skep/internal/api"
)

const childEnv = "SKEP_API_TEST_SERVE"

// TestMain lets the test binary serve, as a process of its own that can be
// killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := serveUntilStdinCloses(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveUntilStdinCloses(dir string) error {
	began := time.Now()
	server, err := api.Start(context.Background(), api.Config{
		Dir: filepath.Join(dir, "data"), Listen: "127.0.0.1:0", Kubeconfig: filepath.Join(dir, "kubeconfig"), Log: log,
	})
	if err != nil {
		return err
	}
	fmt.Printf("ready %s\n", time.Since(began).Round(time.Millisecond))
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	return server.Close(context.Background())
}

// child is a server in a process of its own.
type child struct {
	command *exec.Cmd
	took    string
}

func startChild(t *testing.T, dir string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(self)
	command.Env = append(os.Environ(), childEnv+"="+dir)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the child did not start: %v", err)
	}
	return &child{command: command, took: strings.TrimSpace(line)}
}

func (c *child) kill(t *testing.T) {
	t.Helper()
	if err := c.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.command.Wait()
}

func (c *child) memory(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "VmRSS") {
			return strings.Join(strings.Fields(line), " ")
		}
	}
	return "unknown"
}

func coreClientFor(t *testing.T, kubeconfig string) *rest.RESTClient {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	config.QPS = -1
	client, err := rest.RESTClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// A server is killed again and again while it writes; whatever it said it had
// written must be there.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	acknowledged := map[string]bool{}
	for round := range 4 {
		server := startChild(t, dir)
		t.Logf("round %d: %s, %s", round, server.took, server.memory(t))
		client := coreClientFor(t, kubeconfig)
		written := make(chan string)
		go func() {
			defer close(written)
			for i := 0; ; i++ {
				name := fmt.Sprintf("c-%d-%d", round, i)
				config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
				err := client.Post().Namespace("default").Resource("configmaps").Body(config).Do(context.Background()).Error()
				if err != nil {
					return
				}
				written <- name
			}
		}()
		killed := false
		for name := range written {
			acknowledged[name] = true
			if !killed && len(acknowledged) >= 15*(round+1) {
				killed = true
				server.kill(t)
			}
		}
		if !killed {
			t.Fatal("a write failed before the server was killed")
		}
	}
	startChild(t, dir)
	var list corev1.ConfigMapList
	err := coreClientFor(t, kubeconfig).Get().Namespace("default").Resource("configmaps").Do(t.Context()).Into(&list)
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range list.Items {
		delete(acknowledged, item.Name)
	}
	if len(acknowledged) > 0 {
		t.Errorf("lost though acknowledged: %v", acknowledged)
	}
}

func TestRestartKeepsObjects(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, kubeconfig := start(t, dir)
	k := newKubectl(t, kubeconfig)
	k.run(t, helloManifest, "apply", "-f", "-")
	uid := k.run(t, "", "get", "ksvc", "hello", "-o", "jsonpath={.metadata.uid}")
	stop(t, first)
	select {
	case <-first.Done():
	default:
		t.Error("a closed server is not done")
	}
	start(t, dir)
	k.wants(t, uid, "", "get", "ksvc", "hello", "-o", "jsonpath={.metadata.uid}")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := first.Close(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Error("closing again:", err)
	}
}
