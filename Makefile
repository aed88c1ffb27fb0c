# make demo   everything at once: packages, build, two functions, a table of phases
# make test   every test, end-to-end included (root, Debian 12)
# make help   the other targets

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GVISOR    := $(shell $(GO) list -m -f '{{.Version}}' gvisor.dev/gvisor 2>/dev/null)
RUNSCFLAGS := -s -w -X gvisor.dev/gvisor/runsc/version.version=$(GVISOR)
LDFLAGS    := $(RUNSCFLAGS) -X main.version=$(VERSION)
TOOLS     := $(CURDIR)/bin/tools
LINT      := $(TOOLS)/golangci-lint
LINT_VERSION     := v2.15.0
GOTESTSUM_VERSION := v1.13.0
GOTESTSUM := $(TOOLS)/gotestsum

# One setting everywhere, so that all builds and tests share one cache.
export CGO_ENABLED := 0

# Packages whose tests also run under the race detector: those with much
# concurrency and without the heavy dependencies.
RACE := ./internal/admin ./internal/agent/... ./internal/autoscale ./internal/fleet ./internal/gateway/... ./internal/netns ./internal/network \
	./internal/node/journal ./internal/node/logs ./internal/pager ./internal/snapshot/...

.PHONY: help
help: ## show the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: embedded ## build bin/skep
	@mkdir -p bin
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/skep ./cmd/skep

.PHONY: embedded
embedded: ## build the two programs that bin/skep embeds: the guest agent and runsc
	$(GO) build -ldflags '-s -w' -o internal/agent/guestbin/skep-agent ./cmd/skep-agent
	@mkdir -p bin
	$(GO) build -ldflags '$(RUNSCFLAGS)' -o bin/skep-runsc ./cmd/skep-runsc
	gzip -6 -n -c bin/skep-runsc > bin/skep-runsc.gz
	@cmp -s bin/skep-runsc.gz internal/sandbox/gvisor/runscbin/skep-runsc.gz || cp bin/skep-runsc.gz internal/sandbox/gvisor/runscbin/

.PHONY: packages
packages: ## install the distribution packages that tests and demo need, and say which
	@hack/packages $(PACKAGES)

.PHONY: demo
demo: ## start Skep on a temporary folder, run a Go and a Python function cold and warm
	@hack/packages demo
	@$(MAKE) --no-print-directory build
	@hack/demo bin/skep

.PHONY: test
test: ## run every test, the race detector and the fuzz targets' seeds included
	@hack/packages test
	@$(MAKE) --no-print-directory build $(GOTESTSUM)
	hack/test $(GOTESTSUM) $(RACE)

.PHONY: kvm-lab
kvm-lab: ## test drivers with KVM and on cgroup v2, in an emulated machine that has them (flags: KVMLAB='-jobs firecracker -v')
	@hack/packages test
	$(GO) run ./test/kvmlab $(KVMLAB)

.PHONY: fuzz
fuzz: ## run every fuzz target on FUZZCOUNT (default 100000) inputs
	hack/fuzz $${FUZZCOUNT:-100000}x

.PHONY: lint
lint: embedded $(LINT) ## gofmt, go vet, staticcheck and more, by golangci-lint
	$(LINT) run ./...

.PHONY: bench
bench: ## measure everything and write docs/benchmarks.md
	@hack/packages bench
	@$(MAKE) --no-print-directory build
	hack/bench bin/skep

.PHONY: bench-snapshots
bench-snapshots: ## measure snapshots and write docs/snapshots-benchmarks.md; RUNS=3 is quick
	@hack/packages bench-snapshots
	@$(MAKE) --no-print-directory embedded
	hack/bench-snapshots

.PHONY: generate
generate: ## remake generated files
	$(GO) generate ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin internal/agent/guestbin/skep-agent internal/sandbox/gvisor/runscbin/skep-runsc.gz

$(LINT):
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

$(GOTESTSUM):
	GOBIN=$(TOOLS) $(GO) install gotest.tools/gotestsum@$(GOTESTSUM_VERSION)
