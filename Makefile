# make test    everything that CI runs: formatting, vet, staticcheck, all tests with -race; the replicas alone, since
#              two hundred of them want the whole machine
# make servers installs the programs that some tests want, where it may
# make bench   the figures of docs/performance.md, in rounds, some 12 minutes on a quiet machine
# make fuzz    each fuzz target for FUZZTIME (60s)

GO       ?= go
FUZZTIME ?= 60s
TOOL      = $(GO) tool -modfile=internal/tools/go.mod

.PHONY: test servers lint bench fuzz

test: servers lint
	$(GO) test -race $$($(GO) list ./... | grep -v /replicas)
	$(GO) test -race -timeout 30m ./providers_test/replicas
	cd internal/browser && $(GO) test -race ./...

servers:
	@sh .ci/servers

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w on these"; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...

bench:
	cd internal/bench && $(GO) test . && { \
		for round in 1 2 3 4 5 6; do \
			$(GO) test -run '^$$' -bench Token -cpu 1,2,8 -benchtime 200ms . && \
			$(GO) test -run '^$$' -bench RoundTrip -cpu 1 -benchtime 200ms . || exit 1; \
		done; \
		$(GO) run ./load -count 2; } >bench.txt && \
	$(GO) run ./report -into ../../docs/performance.md bench.txt

fuzz:
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done
