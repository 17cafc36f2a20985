# make test     checks formatting, runs vet and all tests with -race; 2 minutes on two cores, 6 the first time
# make soak     runs the tests that need many processes: replicas, kills, outages, limits; about 25 minutes
# make lint     runs vet on all tests, and staticcheck
# make servers  installs the programs that some tests need, if it has the permission
# make bench    measures the figures of docs/performance.md; about 12 minutes, on a quiet machine
# make fuzz     runs each fuzz target for FUZZTIME (60s)

GO       ?= go
FUZZTIME ?= 60s
TOOL      = $(GO) tool -modfile=internal/tools/go.mod

.PHONY: test soak servers lint bench fuzz

test: servers
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w on these"; exit 1; }
	$(GO) test -race -vet=all ./...
	cd internal/browser && $(GO) test -race -vet=all ./...
	cd observe/otel && $(GO) test -race -vet=all ./...
	cd internal/servers && $(GO) test -race -vet=all ./...

soak: servers
	$(GO) test -race -tags soak -run '^TestSoak' -count=1 -p 1 -timeout 60m -v \
		$$(grep -rl '^//go:build soak' --include='*_test.go' . | xargs -n 1 dirname | sort -u)

servers:
	@sh .ci/servers

lint:
	$(GO) vet -race -tags soak ./... # -race, for which make test has built the packages
	$(TOOL) staticcheck -tags soak ./...
	cd observe/otel && $(GO) vet -race ./... && $(GO) tool -modfile=../../internal/tools/go.mod staticcheck ./...

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
