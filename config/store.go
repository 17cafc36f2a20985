package config

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/config/internal/yamldoc"
)

// storeConfig is what token_store holds for every type.
type storeConfig struct {
	// Type is the type of the store: memory, file, or one that the program passes in.
	Type string `yaml:"type" required:"true"`
	// Encryption is the encryption of stored tokens: aes-256-gcm, which needs encryption_keys, or none.
	Encryption string `yaml:"encryption" enum:"aes-256-gcm,none"`
	// EncryptionKeys are keys of 32 bytes in base64. The first one encrypts, all decrypt.
	EncryptionKeys []auth.Secret `yaml:"encryption_keys"`
	// Timeout is how long a call without a token waits for a store that does not respond. The default is 5s.
	Timeout time.Duration `yaml:"timeout"`
}

// A storePlan is the token store that a file names.
type storePlan struct {
	typ     string
	open    func() (auth.Store, error) // nil if its settings were refused
	keys    []auth.Key                 // they encrypt what is stored
	timeout time.Duration
}

// store decodes token_store.
func (l *loader) store(at yamldoc.Node) (p storePlan) {
	if at.Missing() {
		return storePlan{typ: l.opts.defaultStore, open: l.opts.openDefault}
	}
	entries, ok := l.doc.Entries(at)
	if !ok {
		return p
	}
	var c storeConfig
	l.doc.Fill(&c, at, entries)
	if open, known := l.opts.openStore[c.Type]; known {
		before := len(l.doc.Faults)
		settings, _ := l.doc.Rest(at, entries, l.opts.tokenStore, c.Type)
		if len(l.doc.Faults) == before { // opening it may create a directory
			p.open = func() (auth.Store, error) { return open(settings.Interface()) }
		}
	} else {
		names := slices.AppendSeq([]string{"redis"}, maps.Keys(l.opts.openStore))
		err := yamldoc.Advise("unknown token store", yamldoc.Suggest(c.Type, slices.Values(names)))
		if c.Type == "redis" {
			err = yamldoc.Advise("this program has no redis store", `add config.WithStore("redis", redisstore.Open), with import "github.com/itsmauth/itsmauth/auth/redisstore"`)
		}
		l.doc.Refuse(at.Path.Below("type"), err)
	}
	p.typ, p.keys, p.timeout = c.Type, l.encryptionKeys(at.Path, &c), c.Timeout
	return p
}

func (l *loader) encryptionKeys(at yamldoc.Path, c *storeConfig) (keys []auth.Key) {
	path := at.Below("encryption_keys")
	for i, secret := range c.EncryptionKeys {
		text, _ := secret.Value()
		key, err := auth.ParseKey(text)
		if err != nil {
			l.doc.Refuse(path.Index(i), yamldoc.Advise("must be base64 of 32 bytes", "itsmauth keygen makes one"))
		}
		keys = append(keys, key)
	}
	switch none := c.Encryption == "none"; {
	case keys != nil && none:
		l.doc.RefuseHere(path, errors.New("encryption_keys is set, but encryption is none"))
	case keys != nil || none:
	case c.Encryption != "":
		l.doc.Refuse(at.Below("encryption"), yamldoc.Advise("needs encryption_keys", "itsmauth keygen makes one"))
	case c.Type == "redis":
		l.doc.RefuseHere(path, yamldoc.Advise("missing", "itsmauth keygen makes a key, or set encryption: none"))
	}
	return keys
}
