package serving

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"knative.dev/serving/pkg/apis/autoscaling"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
)

func (p *plan) scale(r *v1.Revision, _ *corev1.Container, d Defaults) error {
	a := r.Annotations
	policy := &p.fleet.Policy
	policy.StableWindow, policy.IdleAfter = defaultWindow, d.IdleAfter
	var err error
	for _, f := range []struct {
		kv  []string
		set func(string) error
	}{
		{get(a, autoscaling.MinScaleAnnotation), intInto(&policy.MinScale)},
		{get(a, autoscaling.MaxScaleAnnotation), intInto(&policy.MaxScale)},
		{get(a, autoscaling.InitialScaleAnnotation), intInto(&p.initial)},
		{get(a, autoscaling.WindowAnnotation), durationInto(&policy.StableWindow)},
		{get(a, autoscaling.ScaleToZeroPodRetentionPeriodAnnotation), durationInto(&policy.IdleAfter)},
		{get(a, autoscaling.TargetAnnotation), floatInto(&policy.Target)},
	} {
		if f.kv == nil {
			continue
		}
		if err = f.set(f.kv[1]); err != nil {
			return fmt.Errorf("spec.template.metadata.annotations.%s: %w", f.kv[0], err)
		}
	}
	window, retention := get(a, autoscaling.WindowAnnotation), get(a, autoscaling.ScaleToZeroPodRetentionPeriodAnnotation)
	switch {
	case window == nil: // a node that gives up idle instances early does so with all
		policy.StableWindow = min(policy.StableWindow, max(policy.IdleAfter, time.Second))
	case policy.StableWindow < autoscaling.WindowMin || policy.StableWindow > autoscaling.WindowMax:
		return fmt.Errorf("spec.template.metadata.annotations.%s: %s is not between %s and %s", window[0], window[1], autoscaling.WindowMin, autoscaling.WindowMax)
	case retention == nil: // as in Knative: the last one goes after the window, too
		policy.IdleAfter = policy.StableWindow
	}
	if cc := p.gateway.ContainerConcurrency; policy.Target == 0 {
		policy.Target = defaultTarget
		if cc > 0 {
			policy.Target = float64(cc)
		}
	} else if cc > 0 {
		policy.Target = min(policy.Target, float64(cc))
	}
	if policy.MaxScale > 0 && policy.MinScale > policy.MaxScale {
		return fmt.Errorf("spec.template.metadata.annotations.%s: %d is above %s of %d",
			autoscaling.MinScaleAnnotationKey, policy.MinScale, autoscaling.MaxScaleAnnotationKey, policy.MaxScale)
	}
	return nil
}

func get(annotations map[string]string, key interface {
	Get(map[string]string) (string, string, bool)
}) []string {
	if k, v, ok := key.Get(annotations); ok {
		return []string{k, v}
	}
	return nil
}

func intInto(to *int) func(string) error {
	return func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return fmt.Errorf("%q is not a whole number of 0 or more", s)
		}
		*to = n
		return nil
	}
}

func floatInto(to *float64) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil || !(n > 0) {
			return fmt.Errorf("%q is not a positive number", s)
		}
		*to = n
		return nil
	}
}

func durationInto(to *time.Duration) func(string) error {
	return func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return fmt.Errorf("%q is not a duration such as 30s", s)
		}
		*to = d
		return nil
	}
}
