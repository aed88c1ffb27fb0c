package api

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage/storagebackend"

	"github.com/skep-dev/skep/internal/api/core"
)

const storagePrefix = "/registry"

// restOptions leads resources to kine. There is no watch cache: it holds every
// object twice more in memory to spare a remote etcd, and the database is in
// this process.
type restOptions struct {
	endpoint string
	codec    runtime.Codec
}

func (o restOptions) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	config := storagebackend.NewDefaultConfig(storagePrefix, o.codec)
	config.Transport.ServerList = []string{o.endpoint}
	config.CompactionInterval = 0 // kine compacts by itself
	config.DBMetricPollInterval = 0
	group := resource.Group
	if group == "" {
		group = "core"
	}
	return generic.RESTOptions{
		StorageConfig:           config.ForResource(resource),
		Decorator:               generic.UndecoratedStorage,
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: 1,
		ResourcePrefix:          group + "/" + resource.Resource,
	}, nil
}

func coreStorage(endpoint string) generic.RESTOptionsGetter {
	return restOptions{endpoint: endpoint, codec: core.Codec()}
}

func definitionStorage(endpoint string) generic.RESTOptionsGetter {
	return restOptions{endpoint: endpoint, codec: apiextensions.Codecs.LegacyCodec(apiextensionsv1.SchemeGroupVersion)}
}

func customStorage(endpoint string) generic.RESTOptionsGetter {
	return restOptions{endpoint: endpoint, codec: unstructured.UnstructuredJSONScheme}
}
