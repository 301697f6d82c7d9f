# vpp-maglev: build, run and test. `make help` lists the verbs; `make` alone builds.
#
# Everything Python lives in .venv, everything else that is made lives in build/, but the extensions: they lie in the
# tree beside what imports them. Other builds of them (debug, sanitizers) have directories of their own.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
# Verbs that install, build and run one after the other must not be torn apart by -j; compilers run in parallel anyway.
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
ARCH := $(shell dpkg --print-architecture 2>/dev/null || uname -m)
JOBS := $(shell nproc 2>/dev/null || echo 1)

# What Debian has to give: a compiler, Python's and OpenSSL's headers, venv; `ip netns`, `nft`, `setcap`, systemd-analyze
# and completion for the tests.
DEBIAN_PACKAGES := bash-completion build-essential ca-certificates iproute2 libcap2-bin libssl-dev nftables python3 \
    python3-dev python3-venv systemd zsh
# What makes and tries the packages: compilers of the other architecture, Debian's archive and its judge, an emulator.
FOREIGN := $(if $(filter arm64,$(ARCH)),amd64,arm64)
PKG_PACKAGES := crossbuild-essential-$(FOREIGN) debian-archive-keyring debootstrap dpkg-dev lintian qemu-user-static
PKG_ARCHES ?= $(ARCH) $(FOREIGN)
DEBIAN_MIRROR ?= http://deb.debian.org/debian
# The peers of the benchmarks.
BENCH_PACKAGES := fping haproxy nginx

# What the fuzzer is built with, where it is not there already.
FUZZ_PACKAGES := clang libclang-rt-dev

VENV := .venv
PY := $(VENV)/bin/python
OUT := build/$(ARCH)
PROGRAMS := $(OUT)/maglevd $(OUT)/maglevc
EXT_SOURCES := $(shell find ext -name '*.pyx' -o -name '*.pxd' -o -name '*.h')

.PHONY: help deps build check debug run test test-debug test-vpp test-asan fuzz fuzz-deps fuzz-install robot bench \
    bench-deps lint alerts pkg-deps pkg-build pkg-deb lock wheel test-pkg soak chaos proto clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Installs only what is missing: with everything there, no package manager and no network is needed.
# $(1): the packages.
define debian_install
	@if ! command -v dpkg-query >/dev/null; then \
	    echo "make: this is no Debian; what is needed is called there: $(1)"; exit 0; \
	fi; \
	missing=(); \
	for package in $(1); do \
	    status=$$(dpkg-query -W -f='$${db:Status-Status}' "$$package" 2>/dev/null || true); \
	    if [ "$$status" != installed ]; then missing+=("$$package"); fi; \
	done; \
	if [ "$${#missing[@]}" -eq 0 ]; then exit 0; fi; \
	as_root=(env DEBIAN_FRONTEND=noninteractive); \
	if [ "$$(id -u)" -ne 0 ]; then \
	    command -v sudo >/dev/null || { echo "make: run as root: apt-get install $${missing[*]}" >&2; exit 1; }; \
	    as_root=(sudo "$${as_root[@]}"); \
	fi; \
	echo "installing $${missing[*]}"; \
	"$${as_root[@]}" apt-get -q -o DPkg::Lock::Timeout=300 update; \
	"$${as_root[@]}" apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$${missing[@]}"
endef

deps: ## install the Debian packages that are missing (root, or sudo)
	$(call debian_install,$(DEBIAN_PACKAGES))

pkg-deps: deps ## install what makes the Debian packages
	$(call debian_install,$(PKG_PACKAGES))

bench-deps: deps ## install the peers that the benchmarks compare with
	$(call debian_install,$(BENCH_PACKAGES))

build: $(PROGRAMS) build/extensions.stamp ## build the extensions and build/<arch>/maglevd, maglevc

$(VENV)/created.stamp:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "make: python 3.11 or newer is needed" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
	    || { echo "make: $(PYTHON) cannot make a virtual environment: run 'make deps' first" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

# What the build and the tests need, before the project itself: so the project can be built without pip's isolated
# environment, which would download the compilers once more.
# What the packages bundle has the version that is locked, so that the tests run with it.
$(VENV)/requirements.stamp: pyproject.toml debian/requirements.lock debian/build.lock $(VENV)/created.stamp
	$(PY) -m debian.lock --pins > $(VENV)/constraints.txt
	$(PY) -c 'import tomllib; \
	    project = tomllib.load(open("pyproject.toml", "rb")); \
	    wanted = project["build-system"]["requires"] + project["project"]["dependencies"]; \
	    print(*wanted, *project["project"]["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade \
	    -c $(VENV)/constraints.txt -r $(VENV)/requirements.txt
	@touch $@

build/stubs.stamp: $(wildcard proto/*.proto) setup.py $(VENV)/requirements.stamp
	MAGLEV_EXTENSIONS=0 $(PY) setup.py -q build_proto
	@mkdir -p build
	@touch $@

$(VENV)/project.stamp: setup.py $(VENV)/requirements.stamp | build/stubs.stamp
	MAGLEV_EXTENSIONS=0 $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	    --editable .
	@touch $@

# The extensions are compiled here, in the tree, and not by pip, so that a changed line recompiles one module.
build/extensions.stamp: $(EXT_SOURCES) setup.py $(VENV)/requirements.stamp | build/stubs.stamp
	$(PY) setup.py -q build_ext --inplace --parallel $(JOBS)
	@touch $@

# A build of its own, in build/$(1), with its environment $(2); PYTHONPATH=build/$(1) uses it.
define build_aside
	$(2) $(PY) setup.py -q build --build-lib build/$(1) --build-temp build/$(1)-temp --parallel $(JOBS)
endef

# The programs: one line of shell each, found beside the checkout's own .venv wherever the checkout is.
$(OUT)/%: $(VENV)/project.stamp
	@mkdir -p $(OUT)
	@printf '%s\n' '#!/bin/sh' \
	    '# Runs $* of this checkout, from any directory.' \
	    'here=$$(dirname -- "$$(readlink -f -- "$$0")")' \
	    'exec "$$here/../../$(VENV)/bin/$*" "$$@"' > $@
	@chmod 755 $@

proto: build/stubs.stamp ## compile proto/maglev.proto into src/maglev/pb

run: deps build ## the lab: a failover to watch (ONCE=1: check it and end; VPP=SOCKET: with a real VPP)
	$(PY) -m tests.lab $(if $(ONCE),--once) $(if $(VPP),--vpp $(VPP))

lint: build ## ruff, mypy, cython-lint, the import contracts and the house rules
	$(PY) -m tests.run lint

check: build ## what to run before a commit: lint, unit and property tests; under a minute
	$(PY) -m tests.run check

test: pkg-deps build build/promtool ## all of it: lint, pytest, Robot, debug build, packages, a minute of chaos, a short soak; a summary at the end
	$(PY) -m tests.run

debug: build ## a build with bounds checks, assertions and no optimisation in build/debug (PYTHONPATH=build/debug)
	$(call build_aside,debug,MAGLEV_DEBUG=1)

test-debug: deps debug ## the cores' and the engine's tests against the debug build
	PYTHONPATH="$(CURDIR)/build/debug" $(PY) -m pytest -q --junitxml=build/reports/debug.xml \
	    --numprocesses 3 --dist loadfile -m "not machine" \
	    tests/unit tests/property $(wildcard tests/integration/test_engine_*.py)
	PYTHONPATH="$(CURDIR)/build/debug" $(PY) -m pytest -q --junitxml=build/reports/debug-machine.xml -m machine \
	    $(wildcard tests/integration/test_engine_*.py)

# libFuzzer's main program and one object made of the engine's own parsers. Nothing calls Python, so nothing links it.
build/fuzz/parsers: tests/fuzz/parsers.pyx $(EXT_SOURCES) $(VENV)/requirements.stamp
	@mkdir -p build/fuzz/corpus
	$(PY) -m cython -3 -X cdivision=True -X wraparound=False -X boundscheck=False -I ext -o build/fuzz/parsers.c $<
	clang -D_GNU_SOURCE -O1 -g -w -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -no-pie \
	    -I$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("include"))') build/fuzz/parsers.c \
	    -Wl,--unresolved-symbols=ignore-all -o $@

fuzz-deps:
	@echo 'int LLVMFuzzerTestOneInput(void *d, unsigned long n) { return 0; }' \
	    | clang -fsanitize=fuzzer,address -xc -o /dev/null - 2>/dev/null || $(MAKE) --no-print-directory fuzz-install

fuzz-install:
	$(call debian_install,$(FUZZ_PACKAGES))

FUZZ_SECONDS ?= 600
fuzz: deps fuzz-deps build/fuzz/parsers ## the parsers against libFuzzer, ten minutes (FUZZ_SECONDS=n); `make test` has ten seconds
	build/fuzz/parsers -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -dict=tests/fuzz/parsers.dict -timeout=5 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz/ -verbosity=0 build/fuzz/corpus

# Leaks are not looked for: an interpreter never frees all it has.
ASAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
test-asan: deps build ## the engine's tests, alone and in the daemon, under AddressSanitizer and UBSan
	$(call build_aside,asan,MAGLEV_CFLAGS='-O1 $(ASAN)' MAGLEV_LDFLAGS='$(ASAN)')
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	    PYTHONPATH=build/asan $(PY) -m pytest -q $(wildcard tests/*/test_engine_*.py) tests/integration/test_daemon_tls.py

test-vpp: build ## acceptance test of a real VPP (VPP_SOCKET=/run/vpp/api.sock; see the user guide)
	VPP_SOCKET="$(VPP_SOCKET)" $(PY) -m pytest tests/acceptance

robot: build ## the Robot tests alone
	$(PY) -m tests.run robot

test-pkg: pkg-deps build ## build the packages; install, run, upgrade, remove, purge them on a Debian of their own (root)
	$(PY) -m tests.run package

soak: build ## 20 minutes of trouble with 20,000 targets, then all must agree (SOAK="--seconds N --seed N")
	$(PY) -m tests.soak --lateness 5ms $(SOAK)

CHAOS_SECONDS ?= 600
chaos: build ## ten minutes of kills, cut files and broken links, each write judged (CHAOS_SECONDS=n CHAOS_SEED=n)
	$(PY) -m tests.chaos --seconds $(CHAOS_SECONDS) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

bench: build ## the benchmarks (BENCH=name: one of them)
	$(PY) -m bench $(BENCH)

# Out of Debian's package, without installing it: that would start a Prometheus, which takes port 9090.
build/promtool:
	@mkdir -p build
	cd build && apt-get -q download prometheus
	dpkg-deb --fsys-tarfile build/prometheus_*.deb | tar --extract --to-stdout ./usr/bin/promtool > $@
	@chmod 755 $@
	@rm build/prometheus_*.deb

alerts: build/promtool ## test docs/alerts.yml with promtool
	build/promtool check rules docs/alerts.yml
	build/promtool test rules $(wildcard tests/promtool/*.yml)

# What builds the packages, by the hashes of the locks and nothing else: not .venv, which has more and newer tools.
PKG_PY := build/pkg/venv/bin/python
build/pkg/venv.stamp: debian/requirements.lock debian/build.lock
	rm -rf build/pkg/venv
	"$(PYTHON)" -m venv build/pkg/venv
	$(PKG_PY) -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: \
	    $(addprefix --requirement=,$^)
	@touch $@

# Without what the image does not need: lintian and the other architecture's compiler.
pkg-build: build/pkg/venv.stamp
	PYTHONPATH=src $(PKG_PY) -m debian.package $(addprefix --arch ,$(PKG_ARCHES)) --mirror $(DEBIAN_MIRROR)

pkg-deb: pkg-deps pkg-build ## the Debian packages, in build/ (PKG_ARCHES="amd64 arm64")
	lintian --allow-root --fail-on error $(foreach arch,$(PKG_ARCHES),build/*_$(arch).deb)

lock: $(VENV)/created.stamp ## resolve debian/*.lock anew from pyproject.toml (KEEP=1: only what has to change)
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade uv
	$(PY) -m debian.lock $(if $(KEEP),--keep)

# Of the tree and not of the source archive, which does not know its commit.
wheel: build ## a wheel for other machines, in build/: what it links is in it, as auditwheel sees to
	rm -rf build/dist build/lib.* build/bdist.* build/*.whl
	$(PY) -m build --no-isolation --sdist --wheel --outdir build/dist
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" auditwheel repair --wheel-dir build build/dist/*.whl
	$(VENV)/bin/auditwheel show build/*.whl

clean: ## remove everything that was built or installed here
	rm -rf build dist $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf src/*.egg-info src/maglev/_version.py src/maglev/pb/maglev_pb2*
	find src -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
