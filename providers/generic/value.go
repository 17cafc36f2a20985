package generic

import (
	"bytes"
	"encoding/json"
	"net/url"

	"github.com/itsmauth/itsmauth/internal/jsonbody"
)

// decodeForm parses a form with an error or an access token. It returns nil for anything else.
func decodeForm(body []byte) any {
	fields, err := url.ParseQuery(string(trim(body)))
	if err != nil || !fields.Has("error") && !fields.Has("access_token") || bytes.ContainsAny(body, "<{") {
		return nil
	}
	doc := map[string]any{}
	for name := range fields {
		doc[name] = fields.Get(name)
	}
	return doc
}

// trim removes white space around body, and a byte order mark.
func trim(body []byte) []byte { return bytes.TrimSpace(bytes.TrimPrefix(body, jsonbody.ByteOrderMark)) }

// token returns a string, or a number as it is written, and "" for anything else.
func token(v any) string {
	if n, ok := v.(json.Number); ok {
		return n.String()
	}
	return str(v)
}

// str returns a string, and "" for anything else.
func str(v any) string {
	s, _ := v.(string)
	return s
}

// first returns the first non-empty value at pointer, converted by [jsonbody.Text], token or str.
func first(doc any, pointer string, as func(any) string) string {
	for _, v := range jsonbody.Find(doc, pointer) {
		if s := as(v); s != "" {
			return s
		}
	}
	return ""
}
