# make test    everything that CI runs: formatting, vet, staticcheck, all tests with -race
# make servers installs the programs that some tests want, where it may
# make fuzz    each fuzz target for FUZZTIME (60s)

GO       ?= go
FUZZTIME ?= 60s
TOOL      = $(GO) tool -modfile=internal/tools/go.mod

.PHONY: test servers lint fuzz

test: servers lint
	$(GO) test -race ./...
	cd internal/browser && $(GO) test -race ./...

servers:
	@sh .ci/servers

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w on these"; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...

fuzz:
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done
