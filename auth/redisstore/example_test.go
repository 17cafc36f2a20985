package redisstore_test

import (
	"fmt"

	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/config"
)

func ExampleOpen() {
	const yaml = `
version: 1
token_store:
  type: redis
  url: rediss://tickets:${env:REDIS_PASSWORD:-none}@redis:6379/0
  encryption_keys: ["OFHmCmtzKHGkOxVYmZKbWXY2pJSXkPsaIo6/BCWEgn0="]
connectors:
  support:
    provider: beyondtrust
    base_url: https://support.example.com
    client_id: sync
    client_secret: ${env:BT_CLIENT_SECRET:-none}
`
	conns, err := config.Parse("itsmauth.yaml", []byte(yaml), config.WithStore("redis", redisstore.Open))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conns.Close()
	fmt.Println(conns.Names(), "keep their tokens in", conns.Store())
	// Output: [support] keep their tokens in redis
}
