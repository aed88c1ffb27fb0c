package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
)

const aggregatedAccept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

// newDiscovery serves /apis: the list of all groups, in the aggregated form
// that newer clients ask for, and in the plain one, which is derived from it.
// (In a Kubernetes cluster the plain list is kube-aggregator's work.)
func newDiscovery(groups aggregated.ResourceManager, codecs runtime.NegotiatedSerializer) http.Handler {
	plain := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		list, err := plainGroups(r, groups)
		if err != nil {
			err = apierrors.NewInternalError(fmt.Errorf("list API groups: %w", err))
			responsewriters.ErrorNegotiated(err, codecs, schema.GroupVersion{}, w, r)
			return
		}
		responsewriters.WriteObjectNegotiated(codecs, negotiation.DefaultEndpointRestrictions, schema.GroupVersion{}, w, r, http.StatusOK, list, false)
	})
	return aggregated.WrapAggregatedDiscoveryToHandler(plain, groups, groups)
}

func plainGroups(r *http.Request, groups http.Handler) (*metav1.APIGroupList, error) {
	inner := r.Clone(r.Context())
	inner.Header = http.Header{"Accept": {aggregatedAccept}}
	answer := &recorder{header: http.Header{}, code: http.StatusOK}
	groups.ServeHTTP(answer, inner)
	if answer.code != http.StatusOK {
		return nil, fmt.Errorf("aggregated discovery answered %d", answer.code)
	}
	var all apidiscoveryv2.APIGroupDiscoveryList
	if err := json.Unmarshal(answer.body.Bytes(), &all); err != nil {
		return nil, fmt.Errorf("parse aggregated discovery: %w", err)
	}
	list := &metav1.APIGroupList{Groups: []metav1.APIGroup{}}
	for _, item := range all.Items {
		group := metav1.APIGroup{Name: item.Name}
		for _, version := range item.Versions {
			group.Versions = append(group.Versions, metav1.GroupVersionForDiscovery{
				GroupVersion: schema.GroupVersion{Group: item.Name, Version: version.Version}.String(),
				Version:      version.Version,
			})
		}
		if len(group.Versions) > 0 {
			group.PreferredVersion = group.Versions[0]
			list.Groups = append(list.Groups, group)
		}
	}
	return list, nil
}

// recorder keeps an answer.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
