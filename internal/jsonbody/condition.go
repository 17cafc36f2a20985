package jsonbody

import (
	"bytes"
	"fmt"

	"github.com/itsmauth/itsmauth/internal/settings"
)

// Condition matches a response that meets all of its fields.
type Condition struct {
	// Status is the status code. The default is any.
	Status int `yaml:"status"`
	// Pointer is a JSON Pointer into the body, in which * is any element of an array. The value there
	// must equal Equals; without Equals it must exist and be neither null nor "".
	Pointer string `yaml:"pointer"`
	Equals  string `yaml:"equals"`
	// BodyContains is a text that the first 64 KiB of the body must contain.
	BodyContains string `yaml:"body_contains"`
}

// Matches reports whether a response meets the condition.
func (c Condition) Matches(status int, body []byte) bool {
	return (c.Status == 0 || c.Status == status) && bytes.Contains(body, []byte(c.BodyContains)) &&
		(c.Pointer == "" || Holds(Decode(body), c.Pointer, c.Equals))
}

// CheckConditions adds an error for each wrong field of the conditions on API responses at key.
func CheckConditions(errs *settings.Errors, key string, list []Condition) {
	for i, c := range list {
		at := fmt.Sprintf("%s.%d", key, i)
		c.Check(errs, at)
		readsBody := c.Pointer != "" || c.BodyContains != ""
		errs.When(readsBody && c.Status >= 100 && c.Status < 400, at+".status",
			"must be 400 or more to look at the body; below, the body is streamed")
	}
}

// Check adds an error for each wrong field of the condition at key.
func (c Condition) Check(errs *settings.Errors, key string) {
	errs.When(c == Condition{}, key, "is empty and would match every response")
	errs.When(c.Status != 0 && (c.Status < 100 || c.Status > 599), key+".status", "must be from 100 to 599")
	errs.When(c.Equals != "" && c.Pointer == "", key+".equals", "needs pointer")
	if c.Pointer != "" {
		errs.Add(key+".pointer", CheckPointer(c.Pointer))
	}
}
