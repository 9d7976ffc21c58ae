# What can be done here. Each line that says "## …" is shown by "make help".

PREFIX  ?= /usr/local
DESTDIR ?=
# XDP_LOADER=1 installs a link by that name, too.
XDP_LOADER ?=
KERNEL  ?= all
PKG     ?= ./...
RUN     ?=
V       ?=
# For each fuzz target.
FUZZTIME ?= 30s

GO      = CGO_ENABLED=0 go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS = -s -w -X github.com/holdfast-bpf/holdfast/internal/cli.version=$(VERSION)
VMTEST  = $(GO) run ./internal/vm/vmtest $(if $(RUN),-run '$(RUN)') $(if $(V),-v)

.PHONY: help build install packages demo test test-host test-vm bench fuzz generate man site lint deps clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/holdfast, one static binary
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/holdfast ./cmd/holdfast

install: build man ## to PREFIX (/usr/local), below DESTDIR if given; XDP_LOADER=1: by that name, too
	install -D -m 0755 bin/holdfast $(DESTDIR)$(PREFIX)/bin/holdfast
	$(if $(XDP_LOADER),ln -sf holdfast $(DESTDIR)$(PREFIX)/bin/xdp-loader)
	scripts/install-completions bin/holdfast $(DESTDIR)$(PREFIX)/share
	scripts/install-man bin/man $(DESTDIR)$(PREFIX)/share/man/man1
	scripts/install-units '$(PREFIX)' '$(DESTDIR)'

packages: ## the deb and the rpm, into bin/packages; the same bytes wherever the same Go builds them
	@scripts/packages

man: ## manual pages, into bin/man
	$(GO) run ./internal/cli/reference/write -man bin/man -version '$(VERSION)'

site: ## the documentation as a site, into bin/site
	$(GO) run ./internal/site/write -out bin/site

demo: ## the main job on real packets, in namespaces of its own (as root)
	@scripts/deps demo
	@$(GO) run ./examples/demo

test: ## everything: linters, pure tests, kernel tests here and on every kernel (as root)
	@scripts/test

test-host: ## pure tests, and kernel tests on this machine's kernel (as root); RUN=TestX PKG=./xdp V=1
	@$(VMTEST) -kernel pure,host $(PKG)

test-vm: ## kernel tests in virtual machines; KERNEL=6.1 (host, pure, all) RUN=TestX PKG=./xdp V=1
	@scripts/deps test
	@$(VMTEST) -kernel $(KERNEL) $(PKG)

bench: ## measure against the bare system calls and other tools, write docs/benchmarks.md (as root)
	@scripts/deps bench
	$(GO) run ./bench

fuzz: ## run every fuzz target for FUZZTIME (30s)
	@scripts/fuzz $(FUZZTIME)

generate: ## build the BPF objects from bpf/ anew (needs clang 14)
	@scripts/deps generate
	$(GO) generate ./...

lint: ## formatting, go vet, golangci-lint, and whether generated code is up to date
	@scripts/lint

deps: ## install what is missing for all of the above (Debian packages, as root)
	@scripts/deps all

clean: ## remove what was built (not the kernels in the cache)
	rm -rf bin
