package config

import (
	"errors"
	"math"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/itsmauth/itsmauth/auth"
)

// size is a number of bytes: 1MiB, 512KiB, or a plain number.
type size int64

var (
	sizeType     = reflect.TypeFor[size]()
	durationType = reflect.TypeFor[time.Duration]()
)

// maxDuration is more than anybody means.
const maxDuration = 10 * 365 * 24 * time.Hour

var (
	errString   = errors.New("must be a string; put it in quotes")
	errBool     = errors.New("must be true or false")
	errInt      = errors.New("must be a whole number")
	errDecimal  = errors.New("must be a whole number in plain decimal digits: no leading 0, 0o, 0x or _")
	errRange    = errors.New("is out of range")
	errNumber   = errors.New("must be a number")
	errDuration = errors.New("must be a duration with its unit, such as 500ms, 30s or 5m")
	errPositive = errors.New("must be longer than 0")
	errAbsurd   = errors.New("must be at most ten years (87600h)")
	errSize     = errors.New("must be a size, such as 1MiB, 512KiB or 4096")
	errURL      = errors.New("must be an absolute http or https URL")
	errUserinfo = errors.New("must not hold a user or a password; credentials have keys of their own")

	decimal = regexp.MustCompile(`^[-+]?(0|[1-9][0-9]*)$`)
	sizes   = regexp.MustCompile(`^(0|[1-9][0-9]*)(B|KiB|MiB|GiB)?$`)
	units   = map[string]int64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
	bools   = map[string]string{"yes": "true", "on": "true", "y": "true", "true": "true",
		"no": "false", "off": "false", "n": "false", "false": "false"}
)

// scalar decodes a string, a number, a secret, a URL and the like.
func (d *decoder) scalar(at place, v reflect.Value, enum []string) {
	n := target(at.value)
	if n.Kind != yaml.ScalarNode {
		d.refuse(at.value, at.path, "must be a single value, not a list or a mapping")
		return
	}
	switch n.Tag {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!merge":
	default:
		d.refuse(at.value, at.path, "unknown tag; put a value that begins with ! in quotes")
		return
	}
	text, expanded, err := expand(n.Value, d.dir)
	if err == nil {
		// What a reference gives has no type of its own in YAML: the field's is meant.
		quoted := !expanded && n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
		switch {
		case v.Type() == secretType:
			err = d.secret(v, n, text, expanded)
		case v.Type() == urlType:
			var u *url.URL
			if u, err = parseURL(text); err == nil {
				d.urls[u] = at.path
				v.Set(reflect.ValueOf(u))
			}
		case v.Kind() == reflect.String:
			if v.SetString(text); n.Tag == "!!bool" && !expanded {
				err = errString
			}
		case v.Type() == durationType:
			err = setDuration(v, text)
		case v.Type() == sizeType:
			err = setSize(v, text)
		default:
			if err = setPlain(v, text, quoted); err != nil && expanded && v.Kind() == reflect.Bool {
				err = errBool // without a hint at what was found
			}
		}
	}
	if err == nil && enum != nil && !slices.Contains(enum, text) {
		err = errors.New("must be one of " + strings.Join(enum, ", "))
	}
	if err != nil {
		d.wrap(at.value, at.path, err.Error(), err)
		return
	}
	d.leaves[at.path] = v.Interface()
}

// secret checks a secret now and reads it again at each use.
func (d *decoder) secret(v reflect.Value, n *yaml.Node, text string, expanded bool) error {
	switch {
	case n.Tag == "!!bool" && !expanded:
		return errString
	case text == "":
		return errors.New("must not be empty")
	case !expanded:
		v.Set(reflect.ValueOf(auth.SecretString(text)))
		return nil
	}
	source, dir := n.Value, d.dir
	v.Set(reflect.ValueOf(auth.SecretFunc(func() (string, error) {
		text, _, err := expand(source, dir)
		return text, err
	})))
	return nil
}

// parseURL leaves out net/url's own errors, which repeat the URL.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, errURL
	case u.User != nil:
		return nil, errUserinfo
	}
	return u, nil
}

func setDuration(v reflect.Value, text string) error {
	t, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return errDuration
	case t <= 0:
		return errPositive
	case t > maxDuration:
		return errAbsurd
	}
	v.SetInt(int64(t))
	return nil
}

func setSize(v reflect.Value, text string) error {
	m := sizes.FindStringSubmatch(text)
	if m == nil {
		return errSize
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || n > math.MaxInt64/units[m[2]] {
		return errRange
	}
	v.SetInt(n * units[m[2]])
	return nil
}

// setPlain sets a bool or a number, for which a quoted value is a wrong type.
func setPlain(v reflect.Value, text string, quoted bool) error {
	switch k := v.Kind(); {
	case k == reflect.Bool:
		meant := bools[strings.ToLower(text)]
		switch {
		case !quoted && (text == "true" || text == "false"):
			v.SetBool(text == "true")
			return nil
		case meant != "":
			return errors.New("must be true or false, without quotes; write " + meant)
		}
		return errBool
	case quoted && (v.CanInt() || v.CanUint()):
		return errors.New("must be a whole number, without quotes")
	case v.CanInt() || v.CanUint():
		if !decimal.MatchString(text) {
			if _, err := strconv.ParseInt(text, 0, 64); err == nil || strings.Trim(text, "0123456789_") == "" {
				return errDecimal
			}
			return errInt
		}
		if i, err := strconv.ParseInt(text, 10, 64); err == nil && v.CanInt() && !v.OverflowInt(i) {
			v.SetInt(i)
			return nil
		}
		if u, err := strconv.ParseUint(strings.TrimPrefix(text, "+"), 10, 64); err == nil && v.CanUint() && !v.OverflowUint(u) {
			v.SetUint(u)
			return nil
		}
		return errRange
	case v.CanFloat():
		f, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil || quoted || math.IsInf(f, 0) || math.IsNaN(f) {
			return errNumber
		}
		v.SetFloat(f)
		return nil
	}
	return errors.New("cannot be set from YAML: a " + v.Type().String())
}
