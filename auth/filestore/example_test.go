package filestore_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/filestore"
)

func ExampleOpen() {
	state, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(state)

	store, err := filestore.Open(filestore.Config{Path: filepath.Join(state, "itsmauth")})
	if err != nil {
		log.Fatal(err)
	}
	key, err := auth.ParseKey("OFHmCmtzKHGkOxVYmZKbWXY2pJSXkPsaIo6/BCWEgn0=") // itsmauth keygen makes one
	if err != nil {
		log.Fatal(err)
	}
	store = auth.Encrypt(store, key) // for auth.Options.Store

	ctx := context.Background()
	if err := store.Save(ctx, "remedy-1", auth.Record{Data: []byte("tokens")}); err != nil {
		log.Fatal(err)
	}
	r, err := store.Load(ctx, "remedy-1")
	fmt.Printf("%s, version %d, %v\n", r.Data, r.Version, err)
	// Output: tokens, version 1, <nil>
}
