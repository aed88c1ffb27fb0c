package main

import (
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserving "knative.dev/serving/pkg/apis/serving"

	"github.com/skep-dev/skep/internal/node/logs"
)

func newLogs(g *globals) *cobra.Command {
	q := logs.Query{}
	var timestamps bool
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show what the instances of a service print",
		Args:  cobra.ExactArgs(1),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			ctx := cmd.Context()
			if _, err := c.service(ctx, args[0]); err != nil {
				return err
			}
			revisions, err := c.knative.ServingV1().Revisions(g.namespace).List(ctx, metav1.ListOptions{
				LabelSelector: apiserving.ServiceLabelKey + "=" + args[0],
			})
			if err != nil {
				return c.explain(err)
			}
			q.Namespace = g.namespace
			for i := range revisions.Items {
				q.Revisions = append(q.Revisions, revisions.Items[i].Name)
			}
			out := cmd.OutOrStdout()
			return c.node.Logs(ctx, q, func(l logs.Line) error {
				var err error
				if timestamps {
					_, err = fmt.Fprintf(out, "%s %s %s %s\n", l.At.Format("2006-01-02T15:04:05.000Z07:00"), l.Instance, l.Stream, l.Text)
				} else {
					_, err = fmt.Fprintln(out, l.Text)
				}
				return err
			})
		}),
		ValidArgsFunction: completeOne(g),
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with new lines")
	cmd.Flags().IntVar(&q.Tail, "tail", -1, "only the last so many lines, -1 for all")
	cmd.Flags().BoolVar(&timestamps, "timestamps", false, "begin each line with its time, instance and stream")
	return cmd
}
