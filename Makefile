# The ways to build, try and check linesight. Each target makes what it needs, so any of them works from a fresh clone;
# `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup build demo test test-ui fault soak bench lint deb clean

# In CI the committed Cargo.lock is what is tested; while developing, cargo may bring it up to date.
CARGO_FLAGS := $(if $(CI),--locked)
# What has full counts, which take long.
FAULT_TESTS := audit config corruption delivery ledger lossless outage respond review_load run service sources targets
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Half as many tests more at a time than there are cores: they wait for cameras, servers and clocks as much as they compute.
TEST_THREADS := $(shell echo $$((($$(nproc) * 3 + 1) / 2)))

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install the missing system packages and the OpenVINO runtime
	@scripts/setup

build: setup ## build the release binary
	cargo build --release $(CARGO_FLAGS)

demo: build ## teach, inspect and review the bundled sample
	$(TARGET_DIR)/release/linesight demo

# `cargo test` covers unit, integration and documentation tests, and leaves the benchmarks out. tests/backbone.rs has the bundled
# network checked by models/make_backbones.py, for which the Python is.
test: setup .venv/stamp ## run all tests
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$(TEST_THREADS)} cargo test $(CARGO_FLAGS)

# The pages in a real browser, fed by the debug binary, which is built as for the tests: with the same features nothing is built
# twice. What the pages look like is left in target/ui.
test-ui: setup tests/ui/node_modules/stamp ## try the review pages in a browser
	cargo test --no-run $(CARGO_FLAGS) --test review_pages
	PATH="$(CURDIR)/.venv-ui/bin:$$PATH" node --test --test-reporter=spec tests/ui/review.test.js

fault: setup ## run the fault tests with their full counts (an hour and more)
	LINESIGHT_FAULT=full cargo test $(CARGO_FLAGS) $(addprefix --test ,$(FAULT_TESTS)) --no-fail-fast -- --nocapture --test-threads=1

soak: setup ## run lines for an hour each (MINUTES=60): one undisturbed, one while the endpoint goes and the process is killed
	LINESIGHT_SOAK=$(or $(MINUTES),60) cargo test --release $(CARGO_FLAGS) --test lossless -- --nocapture --test-threads=1 soak a_line_at_60_fps

bench: setup ## run the benchmarks
	cargo bench $(CARGO_FLAGS)

lint: setup ## check formatting and run clippy, warnings being errors
	cargo fmt --all --check
	cargo clippy --all-targets $(CARGO_FLAGS) -- -D warnings

# For the release of Debian or Ubuntu that it is built on: OpenCV's and GStreamer's packages differ between them.
deb: build ## make a Debian package in target/debian
	@cargo deb --version >/dev/null 2>&1 || \
	  { echo 'make: error: cargo-deb is not installed' >&2; echo '  hint: cargo install cargo-deb --locked' >&2; exit 2; }
	# quiet: OpenVINO's libraries find each other in their own folder, and dpkg-shlibdeps complains of not knowing them
	cargo deb --quiet --no-build $(CARGO_FLAGS)
	@dpkg-deb --field $(TARGET_DIR)/debian/linesight_*.deb Package Version Depends

clean: ## remove what was built; what setup fetched stays
	cargo clean

# npm's own lock file says what is installed. Where there is no node of 18.19 or newer, it comes from PyPI, as do the
# readers of the exports' formats, without what they need for formats that are not tried.
tests/ui/node_modules/stamp: tests/ui/package-lock.json .venv-ui/stamp
	cd tests/ui && PATH="$(CURDIR)/.venv-ui/bin:$$PATH" npm ci --no-fund --no-audit --ignore-scripts --silent
	touch $@

.venv-ui/stamp: tests/ui/requirements.txt tests/ui/node.txt tests/ui/node | setup
	rm -rf .venv-ui
	python3 -m venv .venv-ui
	.venv-ui/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: -r $<
	tests/ui/node
	touch $@

# Python is for remaking and checking the bundled models only. The stamp is written last, so that an interrupted
# installation is made anew.
.venv/stamp: models/requirements.txt | setup
	rm -rf .venv
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r $<
	touch $@
