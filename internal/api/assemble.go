package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	definitionapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/apiserver/pkg/util/webhook"
	basecompatibility "k8s.io/component-base/compatibility"
	openapi "k8s.io/kube-openapi/pkg/common"

	corev1 "k8s.io/api/core/v1"

	"github.com/skep-dev/skep/internal/api/admit"
	"github.com/skep-dev/skep/internal/api/core"
	"github.com/skep-dev/skep/internal/api/manifest"
)

const (
	// Largest request body, in bytes; below what the storage takes.
	maxBodyBytes = 1 << 20
	// Requests in flight at once, reading and writing; more are told to
	// come back (429).
	maxReading, maxWriting = 200, 100

	requestTimeout = 60 * time.Second
	// How long closing waits for watches, and then for connections.
	watchGrace, connectionGrace = 300 * time.Millisecond, 2 * time.Second
)

// buildVersion is the Kubernetes release whose machinery is embedded, which
// is what /version must say: clients decide by it what they may ask for.
type buildVersion struct {
	basecompatibility.EffectiveVersion
}

func (v buildVersion) Info() *version.Info {
	info := *v.EffectiveVersion.Info()
	info.GitVersion = fmt.Sprintf("v%s.%s.0+skep", info.Major, info.Minor)
	info.GitCommit, info.GitTreeState = "", ""
	return &info
}

// assembly is what assemble puts together.
type assembly struct {
	apiextensions *apiextensions.CustomResourceDefinitions
}

// assemble makes the server: apiextensions-apiserver, with core/v1 installed
// beside it.
func assemble(listener net.Listener, endpoint, token string, ca *authority, annotations func(map[string]string) error) (*assembly, error) {
	certPEM, keyPEM, err := ca.serving(listener.Addr(), time.Now())
	if err != nil {
		return nil, err
	}
	cert, err := dynamiccertificates.NewStaticCertKeyContent("serving", certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("use API serving certificate: %w", err)
	}
	serving := &genericapiserver.SecureServingInfo{Listener: listener, Cert: cert, HTTP2MaxStreamsPerConnection: 250}

	loopbackToken := newToken()
	loopback, err := serving.NewLoopbackClientConfig(loopbackToken, ca.certPEM)
	if err != nil {
		return nil, fmt.Errorf("configure in-process API client: %w", err)
	}
	coreGroup, err := core.New(coreStorage(endpoint))
	if err != nil {
		return nil, err
	}

	config := genericapiserver.NewRecommendedConfig(apiextensions.Codecs)
	config.SecureServing = serving
	config.LoopbackClientConfig = loopback
	config.ExternalAddress = listener.Addr().String()
	config.EffectiveVersion = buildVersion{compatibility.DefaultBuildEffectiveVersion()}
	config.Authentication.Authenticator = newAuthenticator(map[string]user.Info{
		token:         &user.DefaultInfo{Name: AdminUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}},
		loopbackToken: &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}},
	})
	config.Authorization.Authorizer = newAuthorizer()
	config.AdmissionControl = admission.NewChainHandler(
		&admit.Namespaces{Get: func(ctx context.Context, name string) (*corev1.Namespace, error) {
			return coreGroup.Namespace(ctx, name)
		}},
		&admit.Knative{WithConfig: manifest.WithConfig, Annotations: annotations},
	)
	config.RESTOptionsGetter = definitionStorage(endpoint)
	config.MergedResourceConfig = served()
	config.EnableProfiling, config.EnableMetrics = false, false
	config.MaxRequestBodyBytes = maxBodyBytes
	config.MaxRequestsInFlight, config.MaxMutatingRequestsInFlight = maxReading, maxWriting
	config.RequestTimeout = requestTimeout
	config.ShutdownWatchTerminationGracePeriod = watchGrace
	config.StorageObjectCountTracker = nil // serves priority and fairness, which is off

	namer := openapinamer.NewDefinitionNamer(apiextensions.Scheme, core.Scheme())
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	config.OpenAPIConfig.Info.Title = "Skep"
	config.OpenAPIV3Config.Info.Title = "Skep"

	full := apiextensions.Config{
		GenericConfig: config,
		ExtraConfig: apiextensions.ExtraConfig{
			CRDRESTOptionsGetter: customStorage(endpoint),
			MasterCount:          1,
			ServiceResolver:      noServices{},
			AuthResolverWrapper:  webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, loopback, noop.NewTracerProvider()),
		},
	}
	authenticator := config.Authentication.Authenticator
	completed := full.Complete()
	// Completing has wrapped ours, which knows the in-process client already.
	completed.GenericConfig.Authentication.Authenticator = authenticator
	server, err := completed.New(genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, fmt.Errorf("assemble API server: %w", err)
	}
	generic := server.GenericAPIServer
	generic.ShutdownTimeout = connectionGrace
	if err := generic.InstallLegacyAPIGroup(core.Prefix, &coreGroup.Info); err != nil {
		generic.Destroy()
		return nil, fmt.Errorf("install core/v1: %w", err)
	}
	// apiextensions-apiserver does not list the groups: in a cluster it does
	// not stand in front.
	generic.Handler.NonGoRestfulMux.Unregister("/apis")
	generic.Handler.NonGoRestfulMux.Handle("/apis", newDiscovery(generic.AggregatedDiscoveryGroupManager, apiextensions.Codecs))
	return &assembly{apiextensions: server}, nil
}

func served() *serverstorage.ResourceConfig {
	config := serverstorage.NewResourceConfig()
	config.EnableVersions(apiextensionsv1.SchemeGroupVersion, corev1.SchemeGroupVersion)
	return config
}

func definitions(ref openapi.ReferenceCallback) map[string]openapi.OpenAPIDefinition {
	all := definitionapi.GetOpenAPIDefinitions(ref)
	for name, definition := range core.Definitions(ref) {
		all[name] = definition
	}
	return all
}

// noServices refuses conversion webhooks: there are no Kubernetes services to
// run one.
type noServices struct{}

func (noServices) ResolveEndpoint(namespace, name string, _ int32) (*url.URL, error) {
	return nil, fmt.Errorf("conversion webhook service %s/%s: %w", namespace, name, errors.ErrUnsupported)
}
