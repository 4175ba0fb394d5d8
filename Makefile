# Everything a newcomer needs: make run, make test. make help lists the rest.
SHELL := /bin/bash
GO ?= go
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BIN := bin/turnstone

.DEFAULT_GOAL := build
.PHONY: help build run demo recording test race lint format generate fuzz qemu systemd differential soak bench clean tools

help: ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The version is the commit. It is stamped where git tells it, whatever GOFLAGS of this machine say.
STAMP = $(shell git rev-parse HEAD >/dev/null 2>&1 && echo true || echo false)

build: ## Build bin/turnstone
	$(GO) build -buildvcs=$(STAMP) -o $(BIN) ./cmd/turnstone

run: build ## Build and start a relay with no configuration
	./$(BIN) serve

demo: build ## Show a call that goes on while the daemon is killed: by the kernel as root, else in userspace
	$(GO) run ./demo -turnstone $(BIN)

recording: build ## Make the picture in the README again, from a run of the demo (as root)
	$(GO) run ./demo -turnstone $(BIN) -svg docs/demo.svg

tools: ## Install what the tests need (apt-get, as root)
	scripts/tools

test: tools ## Run all tests; TURNSTONE_REQUIRE_ALL=1 makes a skip a failure
	$(GO) test -timeout 12m ./...

race: ## Run the tests of what has goroutines under the race detector
	$(GO) test -race -short $$($(GO) list ./turn/... ./store/... ./migrations/... ./cmd/... | grep -v /internal/slice$$)

lint: ## Check style
	$(GO) vet ./...
	$(GO) run $(GOLANGCI) run

format: ## Rewrite the sources in the style
	$(GO) run $(GOLANGCI) fmt

generate: ## Write the generated files again
	$(GO) generate ./...

fuzz: ## Fuzz every decoder for a minute each
	scripts/fuzz 60s

qemu: ## Run the tests of kernel/ on Debian's 6.1 and 6.12 kernels, in qemu
	scripts/qemu

systemd: ## Have systemd 252 and 257 run the service: install, restart, upgrade and remove it under traffic (as root)
	scripts/systemd

differential: ## Hold ten million frames through the XDP program against the model in Go
	TURNSTONE_DIFFERENTIAL=10000000 $(GO) test -timeout 60m -count 1 -v -run '^TestDifferential$$' ./kernel

soak: tools ## The long tests: 50 kills under load, 20 under kernel traffic, tens of thousands of crash states, a billion packets over recycled slots
	TURNSTONE_SOAK=1 $(GO) test -timeout 120m -count 1 -v -run 'Restart|CrashState|StaysBounded|KernelRelaysOnWhile|KernelRelaysEvery' ./test ./store
	TURNSTONE_CHURN=1 $(GO) test -timeout 150m -count 1 -v -run '^TestRecycledSlots$$' ./kernel

bench: tools build ## Measure against coturn and pion, with medians over several runs
	$(GO) run ./bench

clean: ## Remove what was built
	rm -rf bin build
