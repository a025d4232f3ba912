.DEFAULT_GOAL := help
.PHONY: help up down demo test guards bench bench-large check check-sre check-collector generate clean

node := bin/with-node node

# Options go into ARGS: make demo ARGS=--json, make bench ARGS='--only fulfilment', make guards ARGS=--help.
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  Options: make demo ARGS=--help"

up: ## start everything on this machine, in the background
	@$(node) deploy/local/src/bin/up.ts $(ARGS)

down: ## stop what `make up` started and remove its data
	@$(node) deploy/local/src/bin/down.ts $(ARGS)

demo: ## act out the incident: a missing key, explained, delivered, traced
	@$(node) deploy/local/src/bin/demo.ts $(ARGS)

test: ## run all tests, against real servers
	@$(node) test/run.ts $(ARGS)

guards: ## break the code on purpose and see the tests notice
	@$(node) test/guards/run.ts $(ARGS)

bench: ## measure claims, lookups and fulfilment
	@$(node) test/bench/run.ts $(ARGS)

bench-large: ## show that a claim costs the same at 2,000,000 prekeys
	@$(node) test/bench/large.ts $(ARGS)

check: ## types, lint, protos, direction of dependencies
	@$(node) bin/check.ts $(ARGS)

check-sre: ## alert rules and their tests; with Go, the collector's configuration
	@$(node) deploy/prometheus/check.ts

check-collector: ## run the real collector between the services and a receiver (needs Go)
	@$(node) deploy/otel/check.ts

generate: ## write the generated code anew from protos and schemas
	@$(node) bin/generate.ts $(ARGS)

clean: ## stop what runs, then remove packages, toolchain and local state
	@if [ -d .local ]; then $(node) deploy/local/src/bin/down.ts; fi
	@rm -rf node_modules .toolchain .local .vitest
