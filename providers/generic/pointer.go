package generic

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strconv"
	"strings"
)

// byteOrderMark is what some servers put before UTF-8.
var byteOrderMark = []byte("\xef\xbb\xbf")

// decode parses JSON. It returns nil if body is not JSON.
func decode(body []byte) any {
	doc, _ := parse(body)
	return doc
}

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
func trim(body []byte) []byte { return bytes.TrimSpace(bytes.TrimPrefix(body, byteOrderMark)) }

// parse parses JSON and keeps numbers as they are written. Its error is [io.ErrUnexpectedEOF] if the
// body is cut off.
func parse(body []byte) (doc any, err error) {
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(body, byteOrderMark)))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than one JSON value")
	}
	return doc, nil
}

func checkPointer(pointer string) error {
	rest := strings.NewReplacer("~0", "", "~1", "").Replace(pointer)
	if !strings.HasPrefix(pointer, "/") || strings.Contains(rest, "~") {
		return errors.New("must be a JSON Pointer, such as /data/token (RFC 6901)")
	}
	return nil
}

var unescape = strings.NewReplacer("~1", "/", "~0", "~")

// find returns the value at a JSON Pointer (RFC 6901). As an extension, * is every element of an array,
// so there may be several values.
func find(doc any, pointer string) []any {
	at := []any{doc}
	for _, ref := range strings.Split(pointer, "/")[1:] {
		var next []any
		for _, v := range at {
			switch v := v.(type) {
			case map[string]any:
				if child, ok := v[unescape.Replace(ref)]; ok {
					next = append(next, child)
				}
			case []any:
				if ref == "*" {
					next = append(next, v...)
				} else if i, err := strconv.Atoi(ref); err == nil && i >= 0 && i < len(v) && strconv.Itoa(i) == ref {
					next = append(next, v[i])
				}
			}
		}
		at = next
	}
	return at
}

// text returns a scalar as it is written in JSON, and "" for anything else.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

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

// first returns the first non-empty value at pointer, converted by text or str.
func first(doc any, pointer string, as func(any) string) string {
	for _, v := range find(doc, pointer) {
		if s := as(v); s != "" {
			return s
		}
	}
	return ""
}
