package yamldoc

import (
	"cmp"
	"encoding/json"
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
	"github.com/itsmauth/itsmauth/internal/endpoint"
	"github.com/itsmauth/itsmauth/internal/follow"
	"github.com/itsmauth/itsmauth/internal/settings"
)

// Size is a number of bytes: 1MiB, 512KiB, or a plain number.
type Size int64

var (
	errString = Advise("must be a string", "put it in quotes")
	errBool   = errors.New("must be true or false")
	errEmpty  = errors.New("must not be empty")
	errRange  = errors.New("is out of range")

	decimal = regexp.MustCompile(`^[-+]?(0|[1-9][0-9]*)$`)
	sizes   = regexp.MustCompile(`^(0|[1-9][0-9]*)(B|KiB|MiB|GiB)?$`)
	units   = map[string]int64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
	bools   = map[string]string{"yes": "true", "on": "true", "y": "true", "true": "true",
		"no": "false", "off": "false", "n": "false", "false": "false"}
)

// scalar decodes everything but structs, lists and maps.
func (d *Document) scalar(at Node, v reflect.Value, f settings.Field) {
	n := deref(at.value)
	if n.Kind != yaml.ScalarNode {
		d.replace(v, at.value, at.Path, errors.New("must be a single value, not a list or a mapping"))
		return
	}
	source := sources{d.dir, v.Type() == secretType, d.Files.Read, &d.room, d.secrets.sources, d.secrets.load}
	if !source.secret {
		source.source = refuseSource
	}
	text, expanded, err := expand(n.Value, source)
	// The value of a reference has no type in YAML, so it takes the field's.
	quoted := !expanded && n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	isBool := !expanded && n.Tag == "!!bool"
	switch {
	case !slices.Contains([]string{"!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!merge"}, n.Tag):
		err = Advise("unknown tag", "put a value that begins with ! in quotes")
	case err != nil:
	case isBool && (v.Type() == secretType || v.Kind() == reflect.String):
		err = errString
	case v.Type() == secretType:
		err = d.setSecret(v, text, n.Value, source, expanded)
		if err == errEmpty && f.Tag.Get("blank") == "true" {
			err = nil
		}
	case v.Type() == urlType:
		err = setURL(v, text)
	case v.Type() == durationType:
		err = setDuration(v, text)
	case v.Type() == sizeType:
		err = setSize(v, text)
	case v.Kind() == reflect.String:
		if f.Tag.Get("path") == "true" && text != "" {
			text, err = source.path(text)
		}
		v.SetString(cmp.Or(text, f.Tag.Get("empty")))
	case v.Kind() == reflect.Interface:
		err = setAny(v, n.Tag, text, quoted || expanded)
	case v.Kind() == reflect.Bool:
		if err = setBool(v, text, quoted); err != nil && expanded {
			err = errBool // the other error would hint at the value
		}
	case v.CanInt(), v.CanUint(), v.CanFloat():
		err = setNumber(v, text, quoted)
	default:
		err = errors.New("cannot be set from YAML: a " + v.Type().String())
	}
	if err == nil {
		err = f.CheckWord(text)
	}
	if err == nil && v.CanInt() && v.Int() < f.Least {
		err = errors.New("must be at least " + f.Tag.Get("min"))
	}
	if err != nil {
		d.replace(v, at.value, at.Path, err)
		return
	}
	d.warnOf(at, v, f, n.Value, expanded)
	if !isDefault(v, f) {
		d.scalars[at.Path.String()] = Setting{at.Path, v.Interface(), !expanded}
	}
}

var (
	urlStart    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)
	urlPassword = regexp.MustCompile(`^[^/?#@:]*:[^/?#@]+@|[?&][a-z_]*password=[^&#]`)

	// credential is in the name of a header that is not public.
	credential = regexp.MustCompile(`(?i)auth|cookie|key|pass|secret|session|token`)

	// ErrLiteral is the warning about a secret that the file shows.
	ErrLiteral = Advise("a secret is written in the file", "use ${env:NAME} or ${file:PATH}")
)

// warnOf warns of a setting that its tag calls a risk, and of a secret that the file shows.
func (d *Document) warnOf(at Node, v reflect.Value, f settings.Field, text string, expanded bool) {
	if why := f.Tag.Get("warn"); why != "" && !v.IsZero() {
		fault, advice, _ := strings.Cut(why, "; ")
		d.warn(at.value, at.Path, Advise(fault, advice))
	}
	literal := !expanded
	if scheme := urlStart.FindString(text); scheme != "" {
		literal = urlPassword.MatchString(references.ReplaceAllString(text[len(scheme):], ""))
	}
	names := f.Tag.Get("literal")
	public := names == "true" && !credential.MatchString(at.Name) ||
		slices.ContainsFunc(strings.Split(names, ","), func(name string) bool { return strings.EqualFold(name, at.Name) }) ||
		text == "" || f.Key == "password" && text == "X"
	if v.Type() == secretType && literal && !public {
		d.warn(at.value, at.Path, ErrLiteral)
	}
}

// isDefault reports whether v is what holds without it. An element of a list, for example, has no default. A
// false flag that a pointer leads to is one, too, where only some settings make its default true.
func isDefault(v reflect.Value, f settings.Field) bool {
	if f.Type.Kind() == reflect.Pointer && v.Kind() == reflect.Bool {
		return v.IsZero()
	}
	return v.Type() == f.Type && (v.IsZero() || v.Comparable() && v.Equal(f.Default()))
}

// setSecret sets a secret that is read again at each use if references says so. text is what it is now.
func (d *Document) setSecret(v reflect.Value, text, value string, source sources, references bool) error {
	secret := auth.SecretString(text)
	switch {
	case references && source.cached(value):
		secret = auth.SecretCached(func(maxAge time.Duration) (string, error) {
			again := source
			again.read, again.room = d.read, new(maxReferenced)
			again.source = func(r sourceRef) (string, error) { return d.secrets.within(r, maxAge), nil }
			text, _, err := expand(value, again)
			return text, err
		})
	case references:
		again := d.read
		secret = auth.SecretFunc(func() (string, error) {
			text, _, err := expand(value, source)
			source.read, source.room = again, new(maxReferenced)
			return text, err
		}).Within(follow.Patience)
	}
	text, err := secret.Value()
	if err == nil && text == "" {
		err = errEmpty
	}
	v.Set(reflect.ValueOf(secret))
	return err
}

// setURL hides net/url's own errors, which repeat the URL.
func setURL(v reflect.Value, text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("must be an absolute http or https URL")
	case u.User != nil:
		return Advise("must not hold a user or a password", "credentials have keys of their own")
	}
	v.Set(reflect.ValueOf(u))
	return endpoint.Check(u)
}

func setDuration(v reflect.Value, text string) error {
	t, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return errors.New("must be a duration with its unit, such as 500ms, 30s or 5m")
	case t <= 0:
		return errors.New("must be longer than 0")
	case t > 87600*time.Hour: // a mistake, and near the range's end
		return errors.New("must be at most ten years (87600h)")
	}
	v.SetInt(int64(t))
	return nil
}

func setSize(v reflect.Value, text string) error {
	m := sizes.FindStringSubmatch(text)
	if m == nil {
		return errors.New("must be a size, such as 1MiB, 512KiB or 4096")
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || n > math.MaxInt64/units[m[2]] {
		return errRange
	}
	v.SetInt(n * units[m[2]])
	return nil
}

// setAny sets text, a number or a flag, as the value's YAML tag says. A number becomes a [json.Number], which is
// sent as it is written.
func setAny(v reflect.Value, tag, text string, isText bool) error {
	switch {
	case isText || tag != "!!int" && tag != "!!float" && tag != "!!bool":
		v.Set(reflect.ValueOf(text))
	case tag == "!!bool":
		v.Set(reflect.ValueOf(strings.EqualFold(text, "true")))
	case !json.Valid([]byte(text)):
		return Advise("must be a number as in JSON, such as 1.5", "put text in quotes")
	default:
		v.Set(reflect.ValueOf(json.Number(text)))
	}
	return nil
}

func setBool(v reflect.Value, text string, quoted bool) error {
	meant := bools[strings.ToLower(text)]
	switch {
	case !quoted && meant == text && meant != "":
		v.SetBool(text == "true")
		return nil
	case meant != "":
		return Advise("must be true or false, without quotes", "write "+meant)
	}
	return errBool
}

// setNumber takes no quoted value, which is text in YAML.
func setNumber(v reflect.Value, text string, quoted bool) error {
	whole, bits := !v.CanFloat(), v.Type().Bits()
	switch {
	case whole && quoted:
		return errors.New("must be a whole number, without quotes")
	case whole && !decimal.MatchString(text):
		if _, err := strconv.ParseInt(text, 0, 64); err == nil || strings.Trim(text, "0123456789_") == "" {
			return errors.New("must be a whole number in plain decimal digits: no leading 0, 0o, 0x or _")
		}
		return errors.New("must be a whole number")
	case v.CanInt():
		if i, err := strconv.ParseInt(text, 10, bits); err == nil {
			v.SetInt(i)
			return nil
		}
	case v.CanUint():
		if u, err := strconv.ParseUint(strings.TrimPrefix(text, "+"), 10, bits); err == nil {
			v.SetUint(u)
			return nil
		}
	default:
		f, err := strconv.ParseFloat(text, bits)
		if err != nil || quoted || math.IsInf(f, 0) || math.IsNaN(f) {
			return errors.New("must be a number")
		}
		v.SetFloat(f)
		return nil
	}
	return errRange
}
