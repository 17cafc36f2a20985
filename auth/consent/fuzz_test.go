package consent

import (
	"net/url"
	"strings"
	"testing"
)

// For any query there is either a code or an error, and the error shows at most a well-formed error code.
func FuzzCallback(f *testing.F) {
	for _, s := range []string{"", "code=c", "code=a&code=b", "error=access_denied", "error=", "error=%3Cb%3E&code=c", "error=odd_error&error_description=words"} {
		f.Add(s)
	}
	c := Connector{Name: "NAME", Provider: "PROVIDER"}
	f.Fuzz(func(t *testing.T, query string) {
		q, _ := url.ParseQuery(query)
		code, err := c.code(q)
		if (code == "") == (err == nil) || err != nil && code != "" {
			t.Fatalf("%q, %v", code, err)
		}
		if err == nil {
			if len(q["code"]) != 1 || q.Has("error") {
				t.Fatal("a code that was not granted")
			}
			return
		}
		for _, shown := range []string{err.Error(), cause(err)} {
			if e := q.Get("error"); len(e) > 40 && strings.Contains(shown, e) {
				t.Fatalf("%q shows %q", shown, e)
			}
			if strings.ContainsAny(shown, "<>\"\n") {
				t.Fatalf("%q", shown)
			}
		}
	})
}
