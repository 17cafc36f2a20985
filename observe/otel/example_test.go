package otel_test

import (
	"log"

	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/observe/otel"
)

func Example() {
	obs, err := otel.New(nil) // nil: OpenTelemetry's global providers and propagator
	if err != nil {
		log.Fatal(err)
	}
	conns, err := config.Load("itsmauth.yaml", config.WithObserver(obs), config.WithWrap(obs.Wrap))
	if err != nil {
		log.Fatal(err)
	}
	defer conns.Close()
}
