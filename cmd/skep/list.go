package main

import (
	"context"
	"fmt"
	"sort"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	apiserving "knative.dev/serving/pkg/apis/serving"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/admin"
)

func newList(g *globals) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the services",
		Args:    cobra.NoArgs,
		RunE: withClient(g, func(cmd *cobra.Command, c *client, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), apiTimeout)
			defer cancel()
			namespace := g.namespace
			if all {
				namespace = metav1.NamespaceAll
			}
			services, err := c.knative.ServingV1().Services(namespace).List(ctx, metav1.ListOptions{})
			if err != nil {
				return c.explain(err)
			}
			services.SetGroupVersionKind(v1.SchemeGroupVersion.WithKind("ServiceList")) // the client drops it
			for i := range services.Items {
				services.Items[i].ManagedFields = nil // as kubectl does: nobody reads them
			}
			return g.print(cmd.OutOrStdout(), services, func() *table {
				return listTable(services.Items, countInstances(ctx, c), c.reasons(ctx, services.Items))
			})
		}),
	}
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "services of all namespaces")
	outputFlag(cmd, g)
	return cmd
}

func countInstances(ctx context.Context, c *client) map[string]int {
	n := map[string]int{}
	instances, err := c.node.Instances(ctx)
	if err != nil {
		return nil
	}
	for _, i := range instances {
		n[i.Namespace+"/"+i.Service]++
	}
	return n
}

// reasons are the causes, by namespace/name, of services that are not ready,
// in the words of their newest revisions: those of services are roundabout.
func (c *client) reasons(ctx context.Context, services []v1.Service) map[string]string {
	reasons := map[string]string{}
	for i := range services {
		s := &services[i]
		if name := s.Status.LatestCreatedRevisionName; name != "" && !s.IsReady() {
			rev, err := c.knative.ServingV1().Revisions(s.Namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				continue // a list without a reason is better than none
			}
			if r := rev.Status.GetCondition(v1.RevisionConditionReady); r != nil {
				reasons[s.Namespace+"/"+s.Name] = r.Reason
			}
		}
	}
	return reasons
}

func listTable(services []v1.Service, instances map[string]int, reasons map[string]string) *table {
	t := &table{head: []string{"NAMESPACE", "NAME", "URL", "LATEST", "INSTANCES", "AGE", "READY", "REASON"}}
	for i := range services {
		s := &services[i]
		status, reason := "Unknown", ""
		if r := s.Status.GetCondition(v1.ServiceConditionReady); r != nil {
			status, reason = string(r.Status), r.Reason
		}
		if r := reasons[s.Namespace+"/"+s.Name]; r != "" {
			reason = r
		}
		url := ""
		if s.Status.URL != nil {
			url = s.Status.URL.String()
		}
		count := "?"
		if instances != nil {
			count = fmt.Sprint(instances[s.Namespace+"/"+s.Name])
		}
		t.add(s.Namespace, s.Name, url, s.Status.LatestReadyRevisionName, count,
			age(s.CreationTimestamp.Time), status, reason)
	}
	return t
}

// description is what `skep describe` shows.
type description struct {
	Service   *v1.Service      `json:"service"`
	Revisions []v1.Revision    `json:"revisions"`
	Instances []admin.Instance `json:"instances"`
	Events    []corev1.Event   `json:"events"`
}

func newDescribe(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "describe NAME",
		Short: "Show a service: conditions, revisions, instances, events",
		Args:  cobra.ExactArgs(1),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			d, err := c.describe(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if g.output == "table" {
				return d.printText(cmd.OutOrStdout())
			}
			return g.print(cmd.OutOrStdout(), d, nil)
		}),
		ValidArgsFunction: completeOne(g),
	}
	outputFlag(cmd, g)
	return cmd
}

func completeOne(g *globals) cobra.CompletionFunc {
	complete := completeServices(g)
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
	}
}

func (c *client) describe(ctx context.Context, name string) (*description, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := c.service(ctx, name)
	if err != nil {
		return nil, err
	}
	d := &description{Service: s}
	revisions, err := c.knative.ServingV1().Revisions(s.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: apiserving.ServiceLabelKey + "=" + name,
	})
	if err != nil {
		return nil, c.explain(err)
	}
	d.Revisions = revisions.Items
	s.ManagedFields = nil
	for i := range d.Revisions {
		d.Revisions[i].ManagedFields = nil
	}
	sort.Slice(d.Revisions, func(i, j int) bool {
		return d.Revisions[j].CreationTimestamp.Before(&d.Revisions[i].CreationTimestamp)
	})
	instances, err := c.node.Instances(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range instances {
		if i.Namespace == s.Namespace && i.Service == name {
			d.Instances = append(d.Instances, i)
		}
	}
	events, err := c.kube.CoreV1().Events(s.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("involvedObject.name", name).String(),
	})
	if err == nil {
		d.Events = events.Items
		for i := range d.Events {
			d.Events[i].ManagedFields = nil
		}
	}
	return d, nil
}
