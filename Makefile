.DEFAULT_GOAL := help
.PHONY: help up down demo test guards bench check generate clean

node := bin/with-node node

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## start everything on this machine, in the background
	@$(node) deploy/local/src/bin/up.ts

down: ## stop what `make up` started and remove its data
	@$(node) deploy/local/src/bin/down.ts

demo: ## act out the incident: a missing key, explained, delivered, traced
	@$(node) deploy/local/src/bin/demo.ts

test: ## run all tests, against real servers
	@$(node) test/run.ts

guards: ## break the code on purpose and see the tests notice
	@$(node) test/guards/run.ts

bench: ## measure claims, lookups and fulfilment
	@$(node) test/bench/run.ts

check: ## types, lint, protos, direction of dependencies
	@$(node) bin/check.ts

generate: ## write the generated code anew from protos and schemas
	@$(node) bin/generate.ts

clean: ## stop what runs, then remove packages, toolchain and local state
	@if [ -d .local ]; then $(node) deploy/local/src/bin/down.ts; fi
	@rm -rf node_modules .toolchain .local .vitest
