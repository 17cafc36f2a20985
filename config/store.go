package config

import (
	"fmt"
	"reflect"
	"slices"

	"gopkg.in/yaml.v3"

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
}

// outside is the line that hands in a store which config does not compile.
var outside = map[string]string{
	"redis": `add config.WithStore("redis", redisstore.Open), with import "github.com/itsmauth/itsmauth/auth/redisstore"`,
}

// store decodes token_store and gives its type's name and what opens it: the store to use, and
// the one to close, without the encryption around it.
func (d *decoder) store(at place, o *options) (name string, open func() (use, opened auth.Store)) {
	if at.value == nil {
		typ := o.stores[""]
		return o.defaultStore, func() (use, opened auth.Store) {
			opened = d.open(typ, reflect.Zero(typ.settings))
			return opened, opened
		}
	}
	entries := d.entries(at)
	if target(at.value).Kind != yaml.MappingNode {
		return "", nil
	}
	var c storeConfig
	name = d.peek(entries, "type")
	typ, known := o.stores[name]
	settings := reflect.Value{}
	if known = known && name != ""; known {
		settings = reflect.New(typ.settings).Elem()
		d.structs(at, entries, valueOf(&c), settings)
	} else {
		// Whose the other keys are is not known.
		common := fields(reflect.TypeFor[storeConfig]())
		entries = slices.DeleteFunc(entries, func(e entry) bool {
			return !slices.ContainsFunc(common, func(f field) bool { return f.name == e.name })
		})
		d.structs(at, entries, valueOf(&c))
		if path := at.path + ".type"; c.Type != "" && !d.refused[path] {
			message := "unknown token store" + suggest(c.Type, o.storeNames())
			if line, ok := outside[c.Type]; ok {
				message = "this store was not handed in; " + line
			}
			d.refuse(d.nearest(path), path, message)
		}
	}
	keys := d.encryption(at, &c)
	return name, func() (use, opened auth.Store) {
		if opened = d.open(typ, settings); opened == nil || keys == nil {
			return opened, opened
		}
		return auth.Encrypt(opened, keys...), opened
	}
}

// open opens the store, or refuses it and gives nil.
func (d *decoder) open(typ storeType, settings reflect.Value) auth.Store {
	s, err := typ.open(settings.Interface())
	if err != nil {
		d.refuseKeys("token_store", err)
		return nil
	}
	return s
}

func (d *decoder) encryption(at place, c *storeConfig) (keys []auth.Key) {
	path := at.path + ".encryption_keys"
	for i, secret := range c.EncryptionKeys {
		item := fmt.Sprintf("%s[%d]", path, i)
		text, _ := secret.Value()
		key, err := auth.ParseKey(text)
		if err != nil && !d.refused[item] {
			d.refuse(d.nearest(item), item, "must be base64 of 32 bytes; itsmauth keygen makes one")
		}
		keys = append(keys, key)
	}
	switch none := c.Encryption == "none"; {
	case len(c.EncryptionKeys) > 0 && none:
		d.refuse(d.nearest(path), path, "there are keys, but encryption is none")
	case len(c.EncryptionKeys) > 0 || none || d.refused[at.path]:
	case c.Encryption != "":
		d.refuse(d.nearest(at.path+".encryption"), at.path+".encryption", "needs encryption_keys; itsmauth keygen makes one")
	case c.Type == "redis":
		d.refuse(at.key, path, "missing; itsmauth keygen makes a key, or say encryption: none")
	}
	return keys
}

func (o *options) storeNames() (names []string) {
	for name := range o.stores {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}
