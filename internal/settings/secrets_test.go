package settings_test

import (
	"slices"
	"testing"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/internal/settings"
)

func TestSecrets(t *testing.T) {
	t.Parallel()
	type part struct {
		Key auth.Secret `yaml:"key"`
	}
	type common struct {
		Shared auth.Secret `yaml:"shared"`
	}
	c := struct {
		Name    string                 `yaml:"name"`
		Main    auth.Secret            `yaml:"main"`
		Absent  auth.Secret            `yaml:"absent"`
		Nothing *part                  `yaml:"nothing"`
		Part    *part                  `yaml:"part"`
		List    []part                 `yaml:"list"`
		ByName  map[string]auth.Secret `yaml:"by_name"`
		Code    auth.Secret            `yaml:"-"`
		common  `yaml:",inline"`
	}{
		Name: "n", Main: auth.SecretString("1"), Part: &part{auth.SecretString("2")}, List: []part{{auth.SecretString("3")}, {auth.SecretString("4")}},
		ByName: map[string]auth.Secret{"b": auth.SecretString("6"), "a": auth.SecretString("5")}, common: common{auth.SecretString("7")},
	}
	var got []string
	for _, s := range settings.Secrets(c) {
		value, err := s.Value()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, value)
	}
	if want := []string{"1", "2", "3", "4", "5", "6", "7"}; !slices.Equal(got, want) {
		t.Error(got)
	}
}
