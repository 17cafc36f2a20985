package providers_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"expvar"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	htmltemplate "html/template"
	"log"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"text/template"

	"golang.org/x/oauth2"

	"github.com/itsmauth/itsmauth/auth"
	"github.com/itsmauth/itsmauth/auth/consent"
	"github.com/itsmauth/itsmauth/auth/filestore"
	"github.com/itsmauth/itsmauth/auth/redisstore"
	"github.com/itsmauth/itsmauth/config"
	"github.com/itsmauth/itsmauth/internal/jsonbody"
	"github.com/itsmauth/itsmauth/providers"
	beyondtrustprovider "github.com/itsmauth/itsmauth/providers/beyondtrust"
	"github.com/itsmauth/itsmauth/providers/generic"
	remedyprovider "github.com/itsmauth/itsmauth/providers/remedy"
	staticprovider "github.com/itsmauth/itsmauth/providers/static"
	webcommanderprovider "github.com/itsmauth/itsmauth/providers/webcommander"
	"github.com/itsmauth/itsmauth/transport"
)

// printed returns v as every verb of fmt and every encoder of the standard library shows it. With byMethods it
// leaves out those that do not call v's methods but read its fields, which may change meanwhile.
func printed(v any, byMethods bool) string {
	var b bytes.Buffer
	for _, flags := range []string{"", "+", "#"} {
		for verb := 'A'; verb <= 'z'; verb++ {
			if readsFields := verb == 'p' || verb == 'w'; !readsFields || !byMethods {
				fmt.Fprintf(&b, "%"+flags+string(verb)+"\n", v)
			}
		}
	}
	for _, encode := range []func(){
		func() { json.NewEncoder(&b).Encode(v) },
		func() { xml.NewEncoder(&b).Encode(v) },
		func() { gob.NewEncoder(&b).Encode(v) },
		func() { binary.Write(&b, binary.BigEndian, v) },
		func() { der, _ := asn1.Marshal(v); b.Write(der) },
	} {
		func() {
			defer func() { recover() }() // some panic on what they cannot encode
			encode()
		}()
	}
	if !byMethods {
		template.Must(template.New("").Parse("{{.}} {{printf \"%#v\" .}}")).Execute(&b, v)
		htmltemplate.Must(htmltemplate.New("").Parse("{{.}} <script>x = {{.}}</script> <a href='?{{.}}'>")).Execute(&b, v)
	}
	b.WriteString(expvar.Func(func() any { return v }).String())
	log.New(&b, "", 0).Println(v)
	for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
		slog.New(h).Info("shown", "v", v, "in", []any{v})
	}
	func() {
		defer func() { fmt.Fprintf(&b, "%v %+v", recover(), recover()) }()
		panic(v)
	}()
	return b.String()
}

// exported are the exported types of the packages that hold credentials, except interfaces and functions.
var exported = []reflect.Type{
	reflect.TypeFor[auth.CodeFlow](), reflect.TypeFor[auth.Env](), reflect.TypeFor[auth.Error](), reflect.TypeFor[auth.Key](),
	reflect.TypeFor[auth.KeyError](), reflect.TypeFor[auth.Limit](), reflect.TypeFor[auth.Memory](), reflect.TypeFor[auth.MonitorOptions](),
	reflect.TypeFor[auth.Options](), reflect.TypeFor[auth.Record](), reflect.TypeFor[auth.Refresh](), reflect.TypeFor[auth.Secret](),
	reflect.TypeFor[auth.Session](), reflect.TypeFor[auth.State](), reflect.TypeFor[auth.Status](), reflect.TypeFor[auth.Traffic](),
	reflect.TypeFor[consent.Connector](), reflect.TypeFor[consent.HandlerOptions](), reflect.TypeFor[consent.LoginOptions](),
	reflect.TypeFor[filestore.Config](), reflect.TypeFor[redisstore.Config](),
	reflect.TypeFor[config.Connector](), reflect.TypeFor[config.Connectors](), reflect.TypeFor[config.Problem](), reflect.TypeFor[config.Problems](),
	reflect.TypeFor[config.Preset](), reflect.TypeFor[config.PresetKey](), reflect.TypeFor[config.PresetVariable](), reflect.TypeFor[config.PresetWay](),
	reflect.TypeFor[config.Settings](),
	reflect.TypeFor[transport.Limiter](), reflect.TypeFor[transport.Options](), reflect.TypeFor[transport.Retry](),
	reflect.TypeFor[providers.Definition](),
	reflect.TypeFor[jsonbody.Condition](), reflect.TypeFor[generic.Assertion](), reflect.TypeFor[generic.Config](), reflect.TypeFor[generic.DPoP](), reflect.TypeFor[generic.Header](), reflect.TypeFor[generic.Provider](),
	reflect.TypeFor[generic.Refresh](), reflect.TypeFor[generic.Response](), reflect.TypeFor[generic.ResponseError](), reflect.TypeFor[generic.Then](),
	reflect.TypeFor[beyondtrustprovider.Config](), reflect.TypeFor[remedyprovider.Config](), reflect.TypeFor[staticprovider.Config](), reflect.TypeFor[webcommanderprovider.Config](),
}

// static is a source that holds its token by value.
type static oauth2.Token

func (s static) Token() (*oauth2.Token, error) { tok := oauth2.Token(s); return &tok, nil }

// TestExportedTypesPrinted prints a value of each exported type that holds credentials wherever it can.
func TestExportedTypesPrinted(t *testing.T) {
	t.Parallel()
	const canary = "canary-of-32-bytes+in-every-type"
	encodedKey := base64.StdEncoding.EncodeToString([]byte(canary))
	key, err := auth.ParseKey(encodedKey)
	if err != nil {
		t.Fatal(err)
	}
	source := static{AccessToken: canary, RefreshToken: canary}
	store := new(auth.Memory)
	session := auth.New(auth.FromTokenSource(source), &auth.Options{Store: store})
	defer session.Close(t.Context())
	if _, err := session.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := store.Save(t.Context(), "canary", auth.Record{Data: []byte(canary)}); err != nil {
		t.Fatal(err)
	}
	conns, err := config.Parse("t.yaml", []byte("version: 1\nconnectors:\n  a: {provider: beyondtrust, base_url: 'https://h', client_id: a, client_secret: "+canary+
		", transport: {proxy_url: 'http://u:"+canary+"@h'}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer conns.Close()
	connector, err := conns.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	provider, err := generic.NewProvider(generic.Config{TokenURL: connector.BaseURL, ClientID: "a", ClientSecret: auth.SecretString(canary)})
	if err != nil {
		t.Fatal(err)
	}
	client, err := transport.NewClient(session, &transport.Options{BaseURL: connector.BaseURL})
	if err != nil {
		t.Fatal(err)
	}
	files, err := filestore.Open(filestore.Config{Path: filepath.Join(t.TempDir(), "tokens")})
	if err != nil {
		t.Fatal(err)
	}
	redis, err := redisstore.Open(redisstore.Config{URL: auth.SecretString("redis://u:" + canary + "@127.0.0.1:1/0")})
	if err != nil {
		t.Fatal(err)
	}

	// Values of types with unexported fields, and what interfaces of ours may hold.
	values := []any{
		auth.SecretString(canary), auth.SecretFunc(func() (string, error) { return canary, nil }), key, session, store, conns, connector, provider, []byte(canary),
		auth.Encrypt(store, key), auth.Monitor(store, nil), auth.FromTokenSource(source), auth.FromTokenSource(oauth2.StaticTokenSource((*oauth2.Token)(&source))),
		auth.TokenSource(t.Context(), session), auth.Encrypt(files, key), redis, client, client.Transport, connector.Client(), connector.Client().Transport,
		consent.NewHandler([]consent.Connector{{Name: "a", Session: session}}, nil), transport.NewExchanger(&transport.Options{BaseURL: connector.BaseURL}),
	}
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		if pkg := v.Type().PkgPath(); !v.CanSet() || pkg != "" && !strings.HasPrefix(pkg, "github.com/itsmauth/") {
			return
		}
		fits := func(value any) bool {
			typ := reflect.TypeOf(value)
			return typ == v.Type() || v.Kind() == reflect.Interface && v.NumMethod() > 0 && typ.Implements(v.Type())
		}
		if i := slices.IndexFunc(values, fits); i >= 0 {
			v.Set(reflect.ValueOf(values[i]))
			return
		}
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem())
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fill(v.Index(0))
		case reflect.Map:
			elem := reflect.New(v.Type().Elem()).Elem()
			fill(elem)
			v.Set(reflect.MakeMap(v.Type()))
			v.SetMapIndex(reflect.Zero(v.Type().Key()), elem)
		}
	}
	all := slices.Clone(values)
	all = slices.DeleteFunc(all, func(v any) bool { _, bytes := v.([]byte); return bytes })
	for _, typ := range exported {
		pointer := reflect.New(typ)
		fill(pointer.Elem())
		if all = append(all, pointer.Interface()); typ != reflect.TypeFor[auth.Memory]() { // which must not be copied
			all = append(all, pointer.Elem().Interface())
		}
	}
	hidden := append(forms(canary), forms(encodedKey)...)
	for _, v := range all {
		_, isRecord := v.(auth.Record) // whose Data is bytes
		byMethods := isRecord || reflect.TypeOf(v).Kind() == reflect.Pointer
		held := reflect.New(reflect.StructOf([]reflect.StructField{{Name: "V", Type: reflect.TypeOf(v)}})).Elem()
		held.Field(0).Set(reflect.ValueOf(v))
		for _, in := range []any{v, []any{v}, map[string]any{"v": v}, held.Interface()} {
			out := printed(in, byMethods)
			for _, form := range hidden {
				if i := strings.Index(out, form); i >= 0 {
					t.Errorf("%T in %T is shown: %.300s", v, in, out[max(0, i-200):])
					break
				}
			}
		}
	}
}

// TestExportedTypesKnown checks that no exported type is missing above.
func TestExportedTypesKnown(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, typ := range exported {
		known[strings.TrimPrefix(typ.PkgPath(), "github.com/itsmauth/itsmauth/")+"."+typ.Name()] = true
	}
	found := map[string]bool{}
	for _, dir := range []string{"auth", "auth/consent", "auth/filestore", "auth/redisstore", "config", "internal/jsonbody", "transport", "providers",
		"providers/generic", "providers/beyondtrust", "providers/remedy", "providers/static", "providers/webcommander"} {
		names, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(dir), "*.go"))
		if err != nil || len(names) == 0 {
			t.Fatal(dir, err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				spec, ok := n.(*ast.TypeSpec)
				if !ok || !spec.Name.IsExported() || spec.Assign.IsValid() {
					return true
				}
				switch spec.Type.(type) {
				case *ast.InterfaceType, *ast.FuncType:
				default:
					found[dir+"."+spec.Name.Name] = true
				}
				return true
			})
		}
	}
	if !maps.Equal(known, found) {
		t.Errorf("known %v\nfound %v", slices.Sorted(maps.Keys(known)), slices.Sorted(maps.Keys(found)))
	}
}

// A store author who encodes a whole record loses no login silently.
func TestRecordIsNotEncoded(t *testing.T) {
	t.Parallel()
	r := auth.Record{Version: 1, Data: []byte("canary")}
	_, asJSON := json.Marshal(r)
	_, asXML := xml.Marshal(r)
	asGob := gob.NewEncoder(new(bytes.Buffer)).Encode(r)
	for _, err := range []error{asJSON, asXML, asGob} {
		if err == nil || !strings.Contains(err.Error(), "store its Data") || errors.Is(err, auth.ErrStore) {
			t.Error(err)
		}
	}
}
