package main

import (
	"fmt"
	"io"
	"sort"

	duckv1 "knative.dev/pkg/apis/duck/v1"

	"github.com/skep-dev/skep/internal/serving"
)

// printText writes a description for people.
func (d *description) printText(w io.Writer) error {
	s := d.Service
	fmt.Fprintf(w, "Name:       %s\nNamespace:  %s\nAge:        %s\n", s.Name, s.Namespace, age(s.CreationTimestamp.Time))
	if s.Status.URL != nil {
		fmt.Fprintf(w, "URL:        %s\n", s.Status.URL)
	}
	printConditions(w, "", s.Status.Conditions)

	for i := range d.Revisions {
		r := &d.Revisions[i]
		traffic := ""
		if r.Name == s.Status.LatestReadyRevisionName {
			traffic = ", takes 100 % of the traffic"
		}
		fmt.Fprintf(w, "\nRevision %s (%s old%s)\n", r.Name, age(r.CreationTimestamp.Time), traffic)
		if len(r.Spec.Containers) > 0 {
			fmt.Fprintf(w, "  Image:    %s\n", r.Spec.Containers[0].Image)
		}
		if len(r.Status.ContainerStatuses) > 0 {
			fmt.Fprintf(w, "  Digest:   %s\n", r.Status.ContainerStatuses[0].ImageDigest)
		}
		if driver := r.Annotations[serving.SandboxAnnotation]; driver != "" {
			fmt.Fprintf(w, "  Sandbox:  %s\n", driver)
		}
		printConditions(w, "  ", r.Status.Conditions)
	}

	fmt.Fprintln(w, "\nInstances:")
	if len(d.Instances) == 0 {
		fmt.Fprintln(w, "  none (the next request starts one)")
	} else {
		t := &table{head: []string{"  ID", "REVISION", "SANDBOX", "AGE", "MEMORY", "CPU TIME"}}
		for _, i := range d.Instances {
			t.add("  "+i.ID, i.Revision, i.Driver, age(i.ReadyAt), size(i.MemoryBytes), i.CPUTime.String())
		}
		if err := t.print(w); err != nil {
			return err
		}
	}

	if len(d.Events) > 0 {
		sort.Slice(d.Events, func(i, j int) bool { return d.Events[i].LastTimestamp.Before(&d.Events[j].LastTimestamp) })
		fmt.Fprintln(w, "\nEvents:")
		t := &table{head: []string{"  TYPE", "REASON", "AGE", "MESSAGE"}}
		for _, e := range d.Events {
			t.add("  "+e.Type, e.Reason, age(e.LastTimestamp.Time), e.Message)
		}
		return t.print(w)
	}
	return nil
}

func printConditions(w io.Writer, indent string, conditions duckv1.Conditions) {
	if len(conditions) == 0 {
		return
	}
	fmt.Fprintf(w, "%sConditions:\n", indent)
	for _, c := range conditions {
		mark := map[string]string{"True": "ok", "False": "failed"}[string(c.Status)]
		if mark == "" {
			mark = "waiting"
		}
		fmt.Fprintf(w, "%s  %-8s %s", indent, mark, c.Type)
		if c.Reason != "" {
			fmt.Fprintf(w, ": %s", c.Reason)
		}
		if c.Message != "" {
			fmt.Fprintf(w, ": %s", c.Message)
		}
		fmt.Fprintln(w)
	}
}
