// Package api is the Kubernetes API server that "skep up" embeds, so that kn,
// kubectl, client libraries and GitOps tools work on Skep unchanged.
//
// # What is served
//
//   - serving.knative.dev/v1: Services, Configurations, Revisions and Routes,
//     by Knative's own CustomResourceDefinitions, with Knative's own defaulting
//     and validation on creation and update, in process (package admit).
//   - apiextensions.k8s.io/v1: CustomResourceDefinitions, so users may add
//     their own; without conversion webhooks.
//   - core/v1: namespaces, secrets, configmaps, serviceaccounts and events
//     (which are forgotten after an hour; package core).
//   - What comes with the machinery: get, list, watch, create, update, patch,
//     server-side apply, delete and deletecollection; the status subresource;
//     field and label selectors, dry run, field validation, tables, discovery
//     (aggregated and plain), OpenAPI v2 and v3; /healthz, /livez, /readyz,
//     /version.
//   - Deleting an object deletes what it owns, and deleting a namespace all
//     that is in it (package collector).
//
// # What is not
//
//   - Whatever else a cluster has: pods, nodes, Kubernetes services,
//     deployments, leases, RBAC, admission webhooks and policies, API
//     aggregation, /metrics and profiling (the daemon has its own).
//   - Users: there is one, whose token is in the kubeconfig, and who may do
//     everything. Without a token the health and version paths alone answer.
//   - Controllers for Knative's kinds: what is stored here is acted on by
//     others, through ClientConfig.
//
// # Storage
//
// All is in one SQLite file under Config.Dir, by way of kine (package
// kinestore). A write is on disk before it is acknowledged. A server that was
// killed starts again on the same folder.
//
// A post-start hook of the machinery that fails ends the process: that is how
// k8s.io/apiserver is made, and only a defect makes one fail.
package api
