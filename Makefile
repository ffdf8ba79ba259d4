# One verb per task. What a verb does stands in resources/ and in the lab program (tests/lab).
# `make run ARGS='--small'` and `make run ARGS='-- --cpus 2'` pass options on to `lab boot`.
# `make image ARGS=--whole`, and in the surroundings IMAGE_SIZE=60G, IMAGE_DOCS=1 (manual pages), IMAGE_PACKAGES='vim git'.

SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
PREFIX ?= /usr/local
DESTDIR ?=
.PHONY: help image run test soak bench fuzz build install uninstall fmt clippy unit native lab install-deps clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

image: install-deps ## make vm0.raw, a Debian bookworm with its kernel and initrd beside it
	@cargo run --quiet --release -p lab --bin lab -- image $(ARGS)

run: install-deps build ## boot vm0.raw with minivmm: to a login, or on a tour where there is no terminal
	@./target/release/lab boot $(ARGS)

test: install-deps ## everything that CI checks, with a summary
	@./resources/test.sh

soak: install-deps ## the guests' tests with ten times the repetitions: before a release, and each night
	@MINIVMM_SOAK=1 ./resources/test.sh native lab

bench: install-deps ## print the counters that we compare
	@./resources/bench.sh

fuzz: install-deps ## run each fuzz target for a while (FUZZ_SECONDS=60)
	@./resources/fuzz.sh

build: ## the release build
	@cargo build --release -p minivmm -p lab

install: ## install program, manual pages and completions (PREFIX=/usr/local, DESTDIR=)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' PROFILE='$(PROFILE)' ./resources/install.sh

uninstall: ## remove them again
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' ./resources/install.sh uninstall

fmt: ## check the formatting (cargo fmt mends it)
	@./resources/test.sh fmt

clippy: ## lints, warnings denied
	@./resources/test.sh clippy

unit: ## unit tests: no /dev/kvm needed
	@./resources/test.sh unit

native: ## tests with tiny guests on this machine's /dev/kvm
	@./resources/test.sh native

lab: ## tests with Debian guests, where /dev/kvm can boot Linux: here or in an emulated machine
	@./resources/test.sh lab

install-deps: ## install the Debian packages that are missing (root or sudo)
	@./resources/install-deps.sh

clean: ## remove what cargo built; kernels stay in the cache directory
	@cargo clean
