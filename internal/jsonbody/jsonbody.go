// Package jsonbody looks for values in the JSON body of a response.
package jsonbody

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
)

// ByteOrderMark is what some servers put before UTF-8.
var ByteOrderMark = []byte("\xef\xbb\xbf")

// Decode parses JSON. It returns nil if body is not JSON.
func Decode(body []byte) any {
	doc, _ := Parse(body)
	return doc
}

// Parse parses JSON and keeps numbers as they are written. Its error is [io.ErrUnexpectedEOF] if the
// body is cut off.
func Parse(body []byte) (doc any, err error) {
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(body, ByteOrderMark)))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than one JSON value")
	}
	return doc, nil
}

// CheckPointer returns an error unless pointer is a JSON Pointer to a part of a document.
func CheckPointer(pointer string) error {
	rest := strings.NewReplacer("~0", "", "~1", "").Replace(pointer)
	if !strings.HasPrefix(pointer, "/") || strings.Contains(rest, "~") {
		return errors.New("must be a JSON Pointer, such as /data/token (RFC 6901)")
	}
	return nil
}

var unescape = strings.NewReplacer("~1", "/", "~0", "~")

// Find returns the value at a JSON Pointer (RFC 6901). As an extension, * is every element of an array,
// so there may be several values.
func Find(doc any, pointer string) []any {
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

// Holds reports whether a value at pointer equals equals, or, if that is "", is neither null nor "".
func Holds(doc any, pointer, equals string) bool {
	return slices.ContainsFunc(Find(doc, pointer), func(v any) bool {
		if equals != "" {
			return Text(v) == equals
		}
		return v != nil && v != ""
	})
}

// Text returns a scalar as it is written in JSON, and "" for anything else.
func Text(v any) string {
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
