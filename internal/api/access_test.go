package api_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	_ "modernc.org/sqlite"

	"github.com/skep-dev/skep/internal/api"
)

func TestAccess(t *testing.T) {
	t.Parallel()
	server, kubeconfig := start(t, t.TempDir())
	config, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(config.Clusters["skep"].CertificateAuthorityData)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	t.Cleanup(client.CloseIdleConnections)
	token := config.AuthInfos[api.AdminUser].Token

	big := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"big"},"data":{"a":"` + strings.Repeat("a", 2<<20) + `"}}`
	configmaps := "/api/v1/namespaces/default/configmaps"
	for name, test := range map[string]struct {
		method, path, token, as, body string
		want                          int
	}{
		"no token":               {path: "/api/v1/namespaces", want: 401},
		"no token, root":         {path: "/", want: 401},
		"no token, discovery":    {path: "/apis", want: 401},
		"no token, OpenAPI":      {path: "/openapi/v2", want: 401},
		"no token, health":       {path: "/healthz", want: 200},
		"no token, live":         {path: "/livez", want: 200},
		"no token, ready":        {path: "/readyz", want: 200},
		"no token, version":      {path: "/version", want: 200},
		"no token, health write": {method: "POST", path: "/healthz", want: 403},
		"wrong token":            {path: "/api/v1/namespaces", token: "wrong", want: 401},
		"cut token":              {path: "/api/v1/namespaces", token: token[:63], want: 401},
		"longer token":           {path: "/api/v1/namespaces", token: token + "0", want: 401},
		"right token":            {path: "/api/v1/namespaces", token: token, want: 200},
		"as nobody":              {path: "/api/v1/namespaces", token: token, as: "nobody", want: 403},
		"no profiling":           {path: "/debug/pprof/", token: token, want: 404},
		"too large":              {method: "POST", path: configmaps, token: token, body: big, want: 413},
		"nonsense":               {method: "POST", path: configmaps, token: token, body: "{", want: 400},
	} {
		t.Run(name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), test.method, server.URL()+test.path, bytes.NewReader([]byte(test.body)))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", "application/json")
			if test.token != "" {
				request.Header.Set("Authorization", "Bearer "+test.token)
			}
			if test.as != "" {
				request.Header.Set("Impersonate-User", test.as)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
			if response.StatusCode != test.want {
				t.Errorf("got %d, want %d: %s", response.StatusCode, test.want, body)
			}
		})
	}
}

func TestEventsAreForgotten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server, kubeconfig := start(t, dir)
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: "e"},
		InvolvedObject: corev1.ObjectReference{Kind: "Service", Namespace: "default", Name: "hello", APIVersion: "serving.knative.dev/v1"},
		Reason:         "ImageNotFound", Message: "no such image", Type: corev1.EventTypeWarning,
	}
	client := coreClientFor(t, kubeconfig)
	if err := client.Post().Namespace("default").Resource("events").Body(event).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	var list corev1.EventList
	err := client.Get().Namespace("default").Resource("events").Param("fieldSelector", "involvedObject.name=hello,type=Warning").Do(t.Context()).Into(&list)
	if err != nil || len(list.Items) != 1 {
		t.Errorf("selected %d events: %v", len(list.Items), err)
	}
	newKubectl(t, kubeconfig).wants(t, "ImageNotFound", "", "get", "events")
	stop(t, server)

	database, err := sql.Open("sqlite", filepath.Join(dir, "data", "api.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer database.Close()
	var seconds int
	err = database.QueryRowContext(t.Context(), "SELECT lease FROM kine WHERE name = '/registry/core/events/default/e'").Scan(&seconds)
	if err != nil || seconds <= 0 || seconds > 2*3600 {
		t.Errorf("the event is kept for %d seconds: %v", seconds, err)
	}
}
