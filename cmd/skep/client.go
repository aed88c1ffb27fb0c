package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
	"knative.dev/serving/pkg/client/clientset/versioned"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/internal/daemon"
)

const apiTimeout = 30 * time.Second

// client is what commands talk to: a Skep on this machine, found by its run
// folder.
type client struct {
	g         *globals
	endpoints *daemon.Endpoints
	knative   versioned.Interface
	kube      kubernetes.Interface
	node      *admin.Client
}

func newClient(g *globals) (*client, error) {
	klog.SetLogger(logr.Discard()) // the libraries' own words: errors are told by us
	e, err := daemon.ReadEndpoints(g.runDir())
	if err != nil {
		return nil, coded(exitNoDaemon, err)
	}
	path := e.Kubeconfig
	if g.kubeconfig != "" {
		path = g.kubeconfig
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, coded(exitNoDaemon, fmt.Errorf("--kubeconfig: %w", err))
	}
	cfg.QPS, cfg.Burst = 100, 100
	cfg.WarningHandler = rest.NoWarnings{} // of defaults that Knative may change one day
	c := &client{g: g, endpoints: e, node: admin.NewClient(e.Admin)}
	return c, c.connect(cfg)
}

func (c *client) connect(cfg *rest.Config) (err error) {
	if c.knative, err = versioned.NewForConfig(cfg); err != nil {
		return fmt.Errorf("knative client: %w", err)
	}
	if c.kube, err = kubernetes.NewForConfig(cfg); err != nil {
		return fmt.Errorf("kubernetes client: %w", err)
	}
	return nil
}

// withClient runs a command that talks to the daemon.
func withClient(g *globals, run func(cmd *cobra.Command, c *client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := newClient(g)
		if err != nil {
			return err
		}
		return run(cmd, c, args)
	}
}

// service fetches a service of the chosen namespace.
func (c *client) service(ctx context.Context, name string) (*v1.Service, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := c.knative.ServingV1().Services(c.g.namespace).Get(ctx, name, metav1.GetOptions{})
	return s, c.explain(err)
}

// explain gives an API error an exit code and, where it helps, a hint.
func (c *client) explain(err error) error {
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err) && kindOf(err) == "namespaces":
		return coded(exitNotFound, fmt.Errorf("%w: make it with `kubectl create namespace %s`", err, c.g.namespace))
	case apierrors.IsNotFound(err):
		return coded(exitNotFound, fmt.Errorf("%w in namespace %q (`skep list` shows what there is)", err, c.g.namespace))
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return coded(exitUsage, err)
	case errors.As(err, &op):
		return coded(exitNoDaemon, fmt.Errorf("skep does not answer at %s: %w", c.endpoints.API, err))
	}
	return err
}

// kindOf is the kind of object that an API error is about, such as "namespaces".
func kindOf(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		return status.Status().Details.Kind
	}
	return ""
}

// completeServices completes names of services.
func completeServices(g *globals) func(ctx context.Context) []string {
	return func(ctx context.Context) []string {
		c, err := newClient(g)
		if err != nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		all, err := c.knative.ServingV1().Services(g.namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil
		}
		names := make([]string, len(all.Items))
		for i := range all.Items {
			names[i] = all.Items[i].Name
		}
		return names
	}
}

var stderr = os.Stderr
