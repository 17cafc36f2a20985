package yamldoc

import (
	"path/filepath"
	"testing"
)

// Not parallel: it sets the home directory.
func TestPathOfFile(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	const refused = "only ~/ is expanded in a path; for a variable write ${env:NAME}"
	for path, want := range map[string]string{
		"~/x": home + "/x", "~/.local/state": home + "/.local/state", "~": home, "~/": home, "~/a/../b": home + "/b",
		"x": "/dir/x", "./x": "/dir/x", "../x": "/x", "/x/../y": "/x/../y", "a~b": "/dir/a~b", "/a/~/b": "/a/~/b", "./~": "/dir/~", "$": "/dir/$", "a$": "/dir/a$", "/5%": "/5%", "/5%20%": "/5%20%", "$1": "/dir/$1",
		"~user": "", "~user/x": "", "~+": "", "~~/x": "", "$HOME/x": "", "${HOME}/x": "", "/run/$USER": "", "$(pwd)/x": "", "~/$x": "", "%APPDATA%/x": "", `%USER_PROFILE%\x`: "",
	} {
		got, err := sources{dir: "/dir"}.path(path)
		if want == "" && (err == nil || err.Error() != refused) || want != "" && (err != nil || got != filepath.FromSlash(want)) {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	t.Setenv("HOME", "")
	if _, err := (sources{}).path("~/x"); err == nil || err.Error() != "~ is the home directory, which is not known; set $HOME, or write an absolute path" {
		t.Error(err)
	}
}

// Not parallel: it sets a variable.
func TestNewlineAtTheEnd(t *testing.T) {
	for value, want := range map[string]string{"id": "id", "id\n": "id", "id\r\n": "id", "id\n\n": "id\n", "i\nd": "i\nd", " id ": " id "} {
		t.Setenv("ID", value)
		s := sources{dir: "/dir", read: func(string) (string, error) { return value, nil }}
		for _, reference := range []string{"env:ID", "env:ID:-other", "file:id"} {
			if got, err := s.lookup(reference + "}"); got != want || err != nil {
				t.Errorf("%s of %q is %q, %v, want %q", reference, value, got, err, want)
			}
		}
	}
	t.Setenv("ID", "\n")
	if got, err := (sources{}).lookup("env:ID}"); err == nil || err.Error() != "environment variable ID is empty" {
		t.Errorf("%q, %v", got, err)
	}
}
