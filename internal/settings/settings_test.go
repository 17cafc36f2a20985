package settings_test

import (
	"sync"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/settings"
)

type config struct {
	Name     string        `yaml:"name" required:"true"`
	Secret   auth.Secret   `yaml:"secret" required:"true"`
	Word     string        `yaml:"word" enum:"a,b" default:"a"`
	Lifetime time.Duration `yaml:"lifetime" default:"1h"`
	Inner    struct {
		Codes []int  `yaml:"codes" default:"[401, 403]"`
		Kind  string `yaml:"kind" default:"inner"`
		Path  string `yaml:"path" required:"true"`
	} `yaml:"inner"`
	Internal string `yaml:"-" required:"true"`
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]config{
		"name: required\nsecret: required\ninner.path: required":                                 {},
		"name: required\nsecret: required\nword: must be one of a, b\ninner.path: required":      {Word: "c"},
		"name: required\nsecret: required\nlifetime: must not be negative\ninner.path: required": {Lifetime: -1},
	} {
		var errs settings.Errors
		errs.Check(&c)
		if got := errs.Err().Error(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	var errs settings.Errors
	c := config{Name: "n", Secret: auth.SecretString("s"), Word: "b"}
	c.Inner.Path = "/"
	errs.Check(&c)
	if errs.Err() != nil {
		t.Error(errs)
	}
}

// A list may be a package's variable, which is not written to. Only the race detector sees whether it is.
func TestSharedList(t *testing.T) {
	t.Parallel()
	type element struct {
		Name string `yaml:"name"`
		Code int    `yaml:"code"`
	}
	shared := []element{{Name: "a"}, {Code: 1}}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			c := struct {
				List []element `yaml:"list"`
			}{shared}
			new(settings.Errors).Check(&c)
		})
	}
	wg.Wait()
}

// A struct that a pointer leads to is the caller's, and is copied.
func TestPointer(t *testing.T) {
	t.Parallel()
	type inner struct {
		Word string `yaml:"word" enum:"a,b" default:"a"`
		Path string `yaml:"path" required:"true"`
	}
	type outer struct {
		Inner *inner         `yaml:"inner"`
		Flag  *bool          `yaml:"flag"`
		Time  *time.Location `yaml:"time"`
	}
	theirs := inner{Path: "/"}
	c := outer{Inner: &theirs}
	var errs settings.Errors
	if errs.Check(&c); errs.Err() != nil || c.Inner.Word != "a" || theirs.Word != "" {
		t.Error(errs, c.Inner, theirs)
	}
	c = outer{Inner: &inner{Word: "c"}, Flag: new(true), Time: time.UTC}
	if errs.Check(&c); errs.Err() == nil || errs.Err().Error() != "inner.word: must be one of a, b\ninner.path: required" {
		t.Error(errs)
	}
	errs = nil
	if errs.Check(new(outer)); errs.Err() != nil {
		t.Error(errs)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	var c config
	new(settings.Errors).Check(&c)
	if c.Name != "" || c.Word != "a" || c.Lifetime != time.Hour || c.Inner.Kind != "inner" || c.Inner.Codes != nil {
		t.Errorf("%+v", c)
	}
	given := config{Word: "b", Lifetime: time.Minute}
	new(settings.Errors).Check(&given)
	if given.Word != "b" || given.Lifetime != time.Minute {
		t.Errorf("%+v", given)
	}
}
