# What people run here. `make help` lists it.

CARGO ?= cargo
SETUP := scripts/setup-debian.sh
NEXTEST := $(CARGO) nextest run --workspace
# The server versions of `make test-majors`; 15 is in `make test`.
MAJORS ?= 13,14,15,16,17,18

.DEFAULT_GOAL := help
.PHONY: help demo test test-majors bench lint release deb reference

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: ## a throw-away cluster: load, backup, disaster, recovery, proof
	$(SETUP)
	$(CARGO) build --release --locked --package pgark
	target/release/pgark demo

test: ## all tests, on real PostgreSQL 15 and real object stores; nothing may be skipped
	$(SETUP) --servers
	PGARK_TEST_DEMAND=1 $(NEXTEST) --locked $(TEST_ARGS)

test-majors: ## the tests that depend on the server version, on MAJORS (13 to 18)
	$(SETUP) --majors --servers
	PGARK_TEST_DEMAND=1 PGARK_TEST_MAJORS=$(MAJORS) $(NEXTEST) --locked --package pgark --package pgark-pg $(TEST_ARGS)

bench: release ## beside pgBackRest, on one cluster; see docs/benchmarks.md
	bench/run $(BENCH_ARGS)

lint: ## formatting and clippy; no warning is accepted
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

release: ## target/release/pgark
	$(CARGO) build --release --locked --package pgark

deb: release ## target/debian/pgark_VERSION_ARCH.deb, of the release build
	scripts/build-deb

reference: release ## docs/reference, of the program and its sources
	scripts/reference --binary target/release/pgark
