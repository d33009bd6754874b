# Every target says what it does: make help

# sudo often drops the folder that Go's own archive is unpacked to.
export PATH := $(PATH):/usr/local/go/bin
# A checkout of another user's, as under sudo, has no version that Go may read.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

GO      ?= go
VERSION ?= $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
ROOT    := $(filter 0,$(shell id -u))

.DEFAULT_GOAL := help
.PHONY: help build tools test unit integration integration-own integration-old test-cluster scale cluster soak critest lint bench demo packages image release clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build crinetd, crinet and crinetctl into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

tools: ## install what the test node needs into .tools/ (and Debian packages, as root)
	@integration/tools/build node

test: ## run all tests; what needs root is skipped without
ifneq ($(ROOT),)
	@integration/tools/build node packages
endif
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory integration

unit: ## run the unit tests with the race detector
ifeq ($(ROOT),)
	@echo 'Not root: skipping every unit test that makes a network namespace or changes the kernel.'
endif
	$(GO) test -race $$($(GO) list ./... | grep -v '/integration')

integration: ## run the tests on a real node (root)
ifeq ($(ROOT),)
	@echo 'Not root: skipping all integration tests, which start a node with containerd. Use: sudo make test'
	@test -z '$(CRINET_TEST_REQUIRE_ALL)'
else
	@integration/tools/build node packages
	$(GO) test -race -timeout 30m $$($(GO) list ./integration/... | grep -v '/integration/cluster$$')
endif

integration-own: ## run them with a CNI conf dir that is containerd's own on each node (root), without the soak
	@integration/tools/build node
	CRINET_TEST_CONF_DIR=own $(GO) test -race -count=1 -timeout 30m -skip 'TestRandomKills|TestPodsInALoop' ./integration

integration-old: ## run them on the containerd that CONTAINERD names, 1.7 or debian (root), without the soak
	@integration/tools/build node
	CRINET_TEST_CONTAINERD=$(CONTAINERD) $(GO) test -race -count=1 -timeout 30m -skip 'TestRandomKills|TestPodsInALoop' ./integration

test-cluster: ## run the tests on real clusters (root); their tools take a quarter of an hour the first time
	@integration/tools/build node cluster
	$(GO) test -race -timeout 40m -parallel 2 ./integration/cluster

PODS   ?= 200
ROUNDS ?= 5

scale: ## scale Deployments on one node up and down under kills (root); PODS=200 ROUNDS=5 SEED=N
	@integration/tools/build node cluster
	CRINET_TEST_SCALE_PODS=$(PODS) CRINET_TEST_SCALE_ROUNDS=$(ROUNDS) CRINET_TEST_SCALE_SEED=$(SEED) \
	$(GO) test -race -timeout 0 -count=1 -v -run TestScaleUnderKills ./integration/cluster

critest: build ## run the CRI conformance tests at containerd and through crinetd, and compare (root); CONTAINERD=1.7 or debian
	@integration/tools/build node critest
	@CRINET_TEST_BIN=$(CURDIR)/bin $(GO) run ./integration/critest $(if $(CONTAINERD),-containerd $(CONTAINERD))

SOAK ?= 30m

soak: ## kill daemons at random and run pods in a loop, and report (root); SOAK=2h for as long, SOAK_SEED=N repeats
	@integration/tools/build node
	SOAK=$(SOAK) SOAK_REPORT=$(CURDIR)/soak-report $(GO) test -race -timeout 0 -parallel 4 -count=1 -v -run 'TestRandomKills|TestPodsInALoop|TestDriftIsNeverToldInVain' ./integration

lint: ## check the format, go vet, golangci-lint
	@integration/tools/build lint
	@files=$$(gofmt -l $$(git -c safe.directory='*' ls-files --cached --others --exclude-standard '*.go')) && \
	if [ -n "$$files" ]; then echo 'Not formatted, run gofmt -w:'; echo "$$files"; exit 1; fi
	$(GO) vet ./...
	.tools/bin/golangci-lint run

bench: ## measure crinetd against containerd alone on real nodes (root), 20 minutes; ARGS='-short -rows bridge,burst' for a try
	@integration/tools/build node
	$(GO) run ./integration/bench $(ARGS)

demo: build ## run a node and a pod and show what crinetd does (root); KEEP=1 leaves it running
	@integration/tools/build node
	@CRINET_TEST_BIN=$(CURDIR)/bin $(GO) run ./integration/demo $(if $(KEEP),-keep) $(if $(REMOVE),-remove $(REMOVE))

packages: ## make packages for Debian and RPM systems, amd64 and arm64, in dist/
	@integration/tools/build packages
	$(GO) run ./packaging/build packages

image: ## make an OCI archive that installs crinet on nodes, in dist/
	$(GO) run ./packaging/build image

release: ## make packages, image, SBOM and checksums, in dist/
	@integration/tools/build packages
	$(GO) run ./packaging/build release

cluster: build ## run a cluster and show what crinetd does (root); NODES=2, PROXY_MODE=nftables, KEEP=1 leaves it
	@integration/tools/build node cluster
	@CRINET_TEST_BIN=$(CURDIR)/bin $(GO) run ./integration/clusterdemo $(if $(NODES),-nodes $(NODES)) \
	$(if $(PROXY_MODE),-proxy-mode $(PROXY_MODE)) $(if $(KEEP),-keep) $(if $(REMOVE),-remove $(REMOVE))

clean: ## remove what was built, the tools as well
	rm -rf bin dist soak-report .tools
