package config

import (
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// A storeType is a type of token store: its settings, and how it is opened.
type storeType struct {
	settings reflect.Type
	open     func(settings any) (auth.Store, error)
}

// storeConfig is what token_store holds for every type.
type storeConfig struct {
	// Type of the store: memory, file, or one that is handed in.
	Type string `yaml:"type" required:"true"`
	// Encryption of what is stored: aes-256-gcm, the default with encryption_keys, or none.
	Encryption string `yaml:"encryption" enum:"aes-256-gcm,none"`
	// EncryptionKeys are base64 of 32 bytes each. The first encrypts, all decrypt.
	EncryptionKeys []auth.Secret `yaml:"encryption_keys"`
	// Timeout is how long a caller without a token waits for a store that does not answer. The default is 5s.
	Timeout time.Duration `yaml:"timeout"`
}

// A storePlan is the token store that a file names.
type storePlan struct {
	typ     string
	open    func() (auth.Store, error)
	keys    []auth.Key // encrypt what it holds
	timeout time.Duration
}

// store decodes token_store.
func (d *decoder) store(at node, o *options) (p storePlan) {
	if at.value == nil {
		return storePlan{typ: o.defaultStore, open: o.openDefault}
	}
	entries, ok := d.entries(at)
	if !ok {
		return p
	}
	var c storeConfig
	d.fill(valueOf(&c), at, entries)
	if s, known := o.stores[c.Type]; known {
		before := len(d.problems)
		settings := d.decodeRest(at, entries, reflect.TypeFor[storeConfig](), s.settings)
		if len(d.problems) == before { // or it might make a directory that nobody means
			p.open = func() (auth.Store, error) { return s.open(settings.Interface()) }
		}
	} else {
		handed := slices.AppendSeq([]string{"redis"}, maps.Keys(o.stores))
		message := "unknown token store" + suggest(c.Type, slices.Values(handed))
		if c.Type == "redis" {
			message = `this store was not handed in; add config.WithStore("redis", redisstore.Open), with import "github.com/itsmauth/itsmauth/auth/redisstore"`
		}
		d.refuseKey(keyPath{"token_store", "type"}, message)
	}
	p.typ, p.keys, p.timeout = c.Type, d.encryption(at, &c), c.Timeout
	return p
}

func (d *decoder) encryption(at node, c *storeConfig) (keys []auth.Key) {
	keysPath := keyPath{"token_store", "encryption_keys"}
	for i, secret := range c.EncryptionKeys {
		text, _ := secret.Value()
		key, err := auth.ParseKey(text)
		if err != nil {
			d.refuseKey(keysPath.index(i), "must be base64 of 32 bytes; itsmauth keygen makes one")
		}
		keys = append(keys, key)
	}
	switch none := c.Encryption == "none"; {
	case keys != nil && none:
		d.refuse(d.nodeAt(keysPath), keysPath, "there are keys, but encryption is none")
	case keys != nil || none:
	case c.Encryption != "":
		d.refuseKey(keyPath{"token_store", "encryption"}, "needs encryption_keys; itsmauth keygen makes one")
	case c.Type == "redis":
		d.refuse(at.key, keysPath, "missing; itsmauth keygen makes a key, or say encryption: none")
	}
	return keys
}
