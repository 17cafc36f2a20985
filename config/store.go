package config

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/filestore"
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

// store opens the token store that the file names, or the default.
func (l *loader) store(at yamldoc.Node) (typ string, _ auth.Store) {
	c := storeConfig{Type: l.opts.defaultStore}
	open, keys := l.opts.openDefault, []auth.Key(nil)
	if !at.Missing() {
		open, keys = l.storeOpener(at, &c)
	}
	if open == nil {
		return c.Type, nil
	}
	store, err := l.opts.openWith(open, keys, c.Timeout)
	if err != nil {
		l.doc.RefuseKeys(yamldoc.Path{"token_store"}, err)
		return c.Type, nil
	}
	return c.Type, store
}

// openWith opens a store with what all sessions of this process share of it.
func (o *options) openWith(open func() (auth.Store, error), keys []auth.Key, timeout time.Duration) (auth.Store, error) {
	store, err := open()
	if err == nil && store == nil {
		err = errors.New("the store was opened as nil")
	}
	if err != nil {
		return nil, err
	}
	if keys != nil {
		store = auth.Encrypt(store, keys...)
	}
	return auth.Monitor(store, &auth.MonitorOptions{Timeout: timeout, Logger: o.logger}), nil
}

// storeOpener decodes token_store. It returns nil if its settings have faults: opening the store may create
// a directory.
func (l *loader) storeOpener(at yamldoc.Node, c *storeConfig) (func() (auth.Store, error), []auth.Key) {
	entries, ok := l.doc.Entries(at)
	if !ok {
		return nil, nil
	}
	l.doc.Fill(c, at, entries)
	keys := l.encryptionKeys(at.Path, c)
	open, known := l.opts.openStore[c.Type]
	if !known {
		names := slices.AppendSeq([]string{"redis"}, maps.Keys(l.opts.openStore))
		err := yamldoc.Advise("unknown token store", yamldoc.Suggest(c.Type, slices.Values(names)))
		if c.Type == "redis" {
			err = yamldoc.Advise("this program has no redis store", `add config.WithStore("redis", redisstore.Open), with import "github.com/itsmauth/itsmauth/auth/redisstore"`)
		}
		l.doc.Refuse(at.Path.Below("type"), err)
		return nil, nil
	}
	before := len(l.doc.Faults)
	settings, _ := l.doc.Rest(at, entries, l.opts.tokenStore, c.Type)
	if len(l.doc.Faults) > before {
		return nil, nil
	}
	value := settings.Interface()
	if c, ok := value.(filestore.Config); ok {
		c.Logger = l.opts.logger
		value = c
	}
	return func() (auth.Store, error) { return open(value) }, keys
}

func (l *loader) encryptionKeys(at yamldoc.Path, c *storeConfig) (keys []auth.Key) {
	path := at.Below("encryption_keys")
	for i, secret := range c.EncryptionKeys {
		key, err := auth.SecretKey(secret)
		if err != nil {
			l.doc.Refuse(path.Index(i), yamldoc.Advise("must be base64 of 32 bytes", "itsmauth keygen makes one"))
		}
		keys = append(keys, key)
	}
	none := c.Encryption == "none"
	if none {
		l.doc.Warn(at.Below("encryption"), yamldoc.Advise("stored tokens are not encrypted", "itsmauth keygen makes a key for encryption_keys"))
	}
	switch {
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
