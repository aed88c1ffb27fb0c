package serving

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
)

func TestStatus(t *testing.T) {
	deploying := func(r *v1.Revision) { r.Status.InitializeConditions() }
	failed := func(r *v1.Revision) {
		r.Status.InitializeConditions()
		r.Status.MarkResourcesAvailableTrue()
		r.Status.MarkContainerHealthyFalse("ContainerExited", "exit code 3")
	}
	ready := func(r *v1.Revision) {
		r.Status.InitializeConditions()
		r.Status.MarkContainerHealthyTrue()
		r.Status.MarkResourcesAvailableTrue()
	}
	tests := []struct {
		name                         string
		revision                     func(*v1.Revision)
		routed                       string
		service, configuration, rout corev1.ConditionStatus
		url                          bool
	}{
		{"first revision on its way", deploying, "", corev1.ConditionUnknown, corev1.ConditionUnknown, corev1.ConditionUnknown, false},
		{"first revision failed", failed, "", corev1.ConditionFalse, corev1.ConditionFalse, corev1.ConditionFalse, false},
		{"takes the traffic", ready, "fn-00002", corev1.ConditionTrue, corev1.ConditionTrue, corev1.ConditionTrue, true},
		{"the one before still does", deploying, "fn-00001", corev1.ConditionUnknown, corev1.ConditionUnknown, corev1.ConditionTrue, true},
		{"failed, the one before serves on", failed, "fn-00001", corev1.ConditionFalse, corev1.ConditionFalse, corev1.ConditionTrue, true},
	}
	d := Domain{Suffix: "example.com", Port: 8080}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			meta := metav1.ObjectMeta{Namespace: "ns", Name: "fn", Generation: 2}
			rev := &v1.Revision{ObjectMeta: metav1.ObjectMeta{Name: "fn-00002"}}
			tt.revision(rev)
			cs := configurationStatus(&v1.Configuration{ObjectMeta: meta}, rev, tt.routed)
			rs := routeStatus(&v1.Route{ObjectMeta: meta}, rev, tt.routed, d)
			ss := serviceStatus(&v1.Service{ObjectMeta: meta}, &cs, &rs)
			check := func(what string, c *apis.Condition, want corev1.ConditionStatus) {
				t.Helper()
				if c == nil || c.Status != want {
					t.Errorf("%s is %+v, want %s", what, c, want)
				}
			}
			check("configuration", cs.GetCondition(v1.ConfigurationConditionReady), tt.configuration)
			check("route", rs.GetCondition(v1.RouteConditionReady), tt.rout)
			check("service", ss.GetCondition(v1.ServiceConditionReady), tt.service)
			if ss.ObservedGeneration != 2 || ss.LatestCreatedRevisionName != "fn-00002" || ss.LatestReadyRevisionName != tt.routed {
				t.Errorf("status: %+v", ss)
			}
			if (ss.URL != nil) != tt.url {
				t.Errorf("URL %v", ss.URL)
			}
			if tt.url && (ss.URL.String() != "http://fn.ns.example.com:8080" || len(ss.Traffic) != 1 || ss.Traffic[0].RevisionName != tt.routed || *ss.Traffic[0].Percent != 100) {
				t.Errorf("URL %v, traffic %+v", ss.URL, ss.Traffic)
			}
		})
	}
}

func TestURLWithoutPort80(t *testing.T) {
	if u := (Domain{Suffix: "example.com", Port: 80}).url("ns", "fn").String(); u != "http://fn.ns.example.com" {
		t.Error(u)
	}
}

func TestPinned(t *testing.T) {
	for ref, want := range map[string]string{
		"hello":                              "hello@sha256:d",
		"hello:v1":                           "hello@sha256:d",
		"127.0.0.1:5000/ns/hello:v1":         "127.0.0.1:5000/ns/hello@sha256:d",
		"127.0.0.1:5000/ns/hello@sha256:old": "127.0.0.1:5000/ns/hello@sha256:d",
	} {
		if got := pinned(ref, "sha256:d"); got != want {
			t.Errorf("pinned(%q) = %q", ref, got)
		}
	}
}
