package serving

import (
	"net"
	"net/url"
	"strconv"

	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"knative.dev/pkg/ptr"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Domain says under which names services are reached.
type Domain struct {
	Suffix string // "127.0.0.1.sslip.io"
	Port   int    // of the gateway; left out of URLs if 80
}

// host is the public host name of a service.
func (d Domain) host(namespace, name string) string { return name + "." + namespace + "." + d.Suffix }

// localHost is the name by which workloads in a cluster know a service.
func localHost(namespace, name string) string { return name + "." + namespace + ".svc.cluster.local" }

func (d Domain) url(namespace, name string) *apis.URL {
	host := d.host(namespace, name)
	if d.Port != 80 {
		host = net.JoinHostPort(host, strconv.Itoa(d.Port))
	}
	u := apis.URL(url.URL{Scheme: "http", Host: host})
	return &u
}

// serviceStatus computes a service's status from its newest revision and the
// one that takes its requests ("" if none does yet).
func serviceStatus(s *v1.Service, created *v1.Revision, routed string, d Domain) v1.ServiceStatus {
	st := *s.Status.DeepCopy()
	conditions := s.GetConditionSet().Manage(&st)
	if st.ObservedGeneration != s.Generation {
		conditions.InitializeConditions()
	}
	st.ObservedGeneration = s.Generation
	st.LatestCreatedRevisionName = created.Name
	st.LatestReadyRevisionName = routed

	ready := created.Status.GetCondition(v1.RevisionConditionReady)
	switch {
	case routed == created.Name:
		conditions.MarkTrue(v1.ServiceConditionConfigurationsReady)
	case ready.IsFalse():
		conditions.MarkFalse(v1.ServiceConditionConfigurationsReady, "RevisionFailed",
			"Revision %q failed with message: %s.", created.Name, ready.Message)
	default:
		conditions.MarkUnknown(v1.ServiceConditionConfigurationsReady, "OutOfDate",
			"Revision %q is being deployed.", created.Name)
	}

	if routed == "" {
		if ready.IsFalse() {
			conditions.MarkFalse(v1.ServiceConditionRoutesReady, "RevisionMissing",
				"Configuration %q does not have any ready Revision.", s.Name)
		} else {
			conditions.MarkUnknown(v1.ServiceConditionRoutesReady, "RevisionMissing",
				"Configuration %q is waiting for a Revision to become ready.", s.Name)
		}
		st.Traffic = nil
		return st
	}
	conditions.MarkTrue(v1.ServiceConditionRoutesReady)
	st.URL = d.url(s.Namespace, s.Name)
	local := apis.URL(url.URL{Scheme: "http", Host: localHost(s.Namespace, s.Name)})
	st.Address = &duckv1.Addressable{URL: &local}
	st.Traffic = []v1.TrafficTarget{{
		RevisionName:   routed,
		LatestRevision: ptr.Bool(true),
		Percent:        ptr.Int64(100),
	}}
	return st
}
