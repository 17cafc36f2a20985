package generic

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
)

// byteOrderMark begins what some servers write as UTF-8.
var byteOrderMark = []byte("\xef\xbb\xbf")

// decode reads JSON, numbers as they are written. What is not JSON is nil.
func decode(body []byte) any {
	doc, _ := parse(body)
	return doc
}

// parse is decode with the reason. It is [io.ErrUnexpectedEOF] if the text breaks off.
func parse(body []byte) (doc any, err error) {
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(body, byteOrderMark)))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something follows it")
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

// find returns all that a JSON Pointer (RFC 6901) leads to: at most one value, but that * is any
// element of an array, where the RFC knows only indices.
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

// text is a scalar as it is written, and "" for anything else.
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

// str is a string, and "" for anything else.
func str(v any) string {
	s, _ := v.(string)
	return s
}

// first is the first value, as text or str has it, that is not "".
func first(doc any, pointer string, as func(any) string) string {
	for _, v := range find(doc, pointer) {
		if s := as(v); s != "" {
			return s
		}
	}
	return ""
}
