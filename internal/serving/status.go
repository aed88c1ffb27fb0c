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

// configurationStatus computes a configuration's status from its newest
// revision and the one that takes the requests ("" if none does yet).
func configurationStatus(c *v1.Configuration, created *v1.Revision, routed string) v1.ConfigurationStatus {
	st := *c.Status.DeepCopy()
	st.InitializeConditions()
	st.ObservedGeneration = c.Generation
	st.LatestReadyRevisionName = routed
	st.SetLatestCreatedRevisionName(created.Name)
	if ready := created.Status.GetCondition(v1.RevisionConditionReady); routed != created.Name && ready.IsFalse() {
		st.MarkLatestCreatedFailed(created.Name, ready.Message)
	}
	st.SetLatestReadyRevisionName(routed)
	return st
}

// routeStatus computes a route's status.
func routeStatus(r *v1.Route, created *v1.Revision, routed string, d Domain) v1.RouteStatus {
	st := *r.Status.DeepCopy()
	st.InitializeConditions()
	st.ObservedGeneration = r.Generation
	st.MarkTLSNotEnabled("the gateway speaks plain HTTP")
	conditions := r.GetConditionSet().Manage(&st)
	if routed == "" {
		if created.Status.GetCondition(v1.RevisionConditionReady).IsFalse() {
			st.MarkConfigurationFailed(r.Name)
		} else {
			st.MarkConfigurationNotReady(r.Name)
		}
		conditions.MarkUnknown(v1.RouteConditionIngressReady, "", "")
		st.Traffic = nil
		return st
	}
	st.MarkTrafficAssigned()
	conditions.MarkTrue(v1.RouteConditionIngressReady)
	st.URL = d.url(r.Namespace, r.Name)
	local := apis.URL(url.URL{Scheme: "http", Host: localHost(r.Namespace, r.Name)})
	st.Address = &duckv1.Addressable{URL: &local}
	st.Traffic = []v1.TrafficTarget{{
		RevisionName: routed, LatestRevision: ptr.Bool(true), Percent: ptr.Int64(100),
	}}
	return st
}

// serviceStatus sums up those of a service's configuration and route.
func serviceStatus(s *v1.Service, c *v1.ConfigurationStatus, r *v1.RouteStatus) v1.ServiceStatus {
	st := *s.Status.DeepCopy()
	st.InitializeConditions()
	st.ObservedGeneration = s.Generation
	st.PropagateConfigurationStatus(c)
	st.PropagateRouteStatus(r)
	return st
}
