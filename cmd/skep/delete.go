package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func newDelete(g *globals) *cobra.Command {
	var all, wait bool
	cmd := &cobra.Command{
		Use:   "delete NAME... | --all",
		Short: "Delete services and all that runs for them",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return coded(exitUsage, errors.New("delete: name services, or give --all, not both"))
			}
			c, err := newClient(g)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Minute)
			defer cancel()
			services := c.knative.ServingV1().Services(g.namespace)
			if all {
				list, err := services.List(ctx, metav1.ListOptions{})
				if err != nil {
					return c.explain(err)
				}
				for i := range list.Items {
					args = append(args, list.Items[i].Name)
				}
			}
			p := newProgress()
			defer p.done()
			var errs []error
			for _, name := range args {
				if err := services.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
					if !all || !apierrors.IsNotFound(err) {
						errs = append(errs, c.explain(err))
					}
					continue
				}
				if wait {
					p.step("Waiting for the instances of " + name + " to end")
					if err := c.waitGone(ctx, name); err != nil {
						errs = append(errs, err)
						continue
					}
				}
				fmt.Fprintf(cmd.OutOrStdout(), "service %q deleted\n", name)
			}
			return errors.Join(errs...)
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeServices(g)(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all services of the namespace")
	cmd.Flags().BoolVar(&wait, "wait", true, "wait until their instances are gone")
	return cmd
}

// waitGone waits until no instance of a deleted service is left.
func (c *client) waitGone(ctx context.Context, name string) error {
	for {
		n := countInstances(ctx, c)
		if n[c.g.namespace+"/"+name] == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("service %q is deleted, but its instances still drain: %w", name, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
