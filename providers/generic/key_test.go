package generic

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/itsmauth/itsmauth/auth"
)

// TestPrivateKeyRefused tests the reasons why a key is refused, which show nothing of it.
func TestPrivateKeyRefused(t *testing.T) {
	t.Parallel()
	p224 := made(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	x25519 := made(x509.MarshalPKCS8PrivateKey(made(ecdh.X25519().GenerateKey(rand.Reader))))
	short := made(rsa.GenerateKey(rand.Reader, 1024))
	good, key := pkcs8(p256()), jwk(p256())
	other, otherEd := made(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), ed25519.NewKeyFromSeed(make([]byte, 32))
	public := inPEM("PUBLIC KEY", made(x509.MarshalPKIXPublicKey(p256().Public())))
	const (
		damaged  = "is damaged, or of none of these kinds"
		cut      = "is damaged PEM"
		broken   = "begins as a JSON Web Key, and is damaged"
		isPublic = "is a public key"
		signing  = "is a JSON Web Key that is not for signing"
	)
	for name, tc := range map[string]struct{ text, want string }{
		"nothing":               {"x", "is neither PEM nor a JSON Web Key"},
		"a path":                {"/etc/key.pem", "is neither PEM nor a JSON Web Key"},
		"encrypted PKCS#8":      {inPEM("ENCRYPTED PRIVATE KEY", []byte("x")), "is encrypted; to decrypt it: openssl pkey"},
		"encrypted PKCS#1":      {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", "is encrypted"},
		"OpenSSH":               {inPEM("OPENSSH PRIVATE KEY", []byte("x")), "is in OpenSSH's own format"},
		"a certificate":         {ownCertificate(), "holds a certificate and no private key"},
		"a public key":          {public, isPublic},
		"two keys":              {good + pkcs8(p384()), "holds several private keys"},
		"cut off":               {good[:len(good)-20], cut},
		"in one line":           {strings.ReplaceAll(good, "\n", " "), cut},
		"another character":     {strings.Replace(good, "M", "*", 1), cut},
		"other bytes":           {inPEM("PRIVATE KEY", []byte("x")), damaged},
		"a short RSA key":       {pkcs8(short), "is an RSA key of 1024 bits; 2048 or more are needed"},
		"a short JWK":           {jwk(short), "is an RSA key of 1024 bits; 2048 or more are needed"},
		"P-224":                 {pkcs8(p224), damaged},
		"X25519":                {inPEM("PRIVATE KEY", x25519), damaged},
		"JSON cut off":          {key[:len(key)-3], broken},
		"other JSON":            {`{"type":"service_account","private_key":"x"}`, "is JSON, but not a JSON Web Key"},
		"a set":                 {`{"keys":[` + key + `]}`, "is a JSON Web Key Set"},
		"an encrypted JWK":      {`{"protected":"e30","ciphertext":"AAAA","tag":"AAAA"}`, "is an encrypted JSON Web Key"},
		"a symmetric JWK":       {`{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`, "is a symmetric key"},
		"a public JWK":          {mixed(key, "{}", "d"), isPublic},
		"another curve":         {strings.Replace(key, "P-256", "secp256k1", 1), damaged},
		"another kind":          {strings.Replace(key, `"EC"`, `"XY"`, 1), damaged},
		"a kind that is 5":      {`{"kty":5}`, broken},
		"two JWKs":              {key + key, broken},
		"not on the curve":      {mixed(key, jwk(other), "x"), damaged},
		"for encryption":        {jwk(p256(), `"use":"enc"`), signing},
		"for wrapping":          {jwk(rsaKey(), `"alg":"RSA-OAEP"`), signing},
		"for another kind":      {jwk(p256(), `"alg":"RS256"`), signing},
		"parts of two, RSA":     {mixed(jwk(rsaKey()), jwk(made(rsa.GenerateKey(rand.Reader, 2048))), "d"), damaged},
		"parts of two, EC":      {mixed(key, jwk(other), "d"), "cannot sign"},
		"parts of two, Ed25519": {mixed(jwk(edKey()), jwk(otherEd), "d"), damaged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := (&Config{ClientID: "id", TokenURL: &url.URL{}, Assertion: Assertion{PrivateKey: auth.SecretString(tc.text)}}).assertion(party{})
			if err == nil || !strings.HasPrefix(err.Error(), "assertion.private_key: "+tc.want) || !errors.Is(err, auth.ErrSecret) {
				t.Fatalf("%v, want %s", err, tc.want)
			}
			for part := range slices.Chunk([]byte(tc.text), 8) {
				if strings.Contains(err.Error(), string(part)) && len(part) == 8 && len(tc.text) > 100 {
					t.Errorf("%q in %v", part, err)
				}
			}
		})
	}
}

// mixed is the key a with the member of b, or without one if b has none.
func mixed(a, b, member string) string {
	var mix, from map[string]any
	if err := errors.Join(json.Unmarshal([]byte(a), &mix), json.Unmarshal([]byte(b), &from)); err != nil {
		panic(err)
	}
	if mix[member] = from[member]; from[member] == nil {
		delete(mix, member)
	}
	return string(made(json.Marshal(mix)))
}

// TestKeysOfOpenSSL tests keys in every form in which OpenSSL and ssh-keygen write them.
func TestKeysOfOpenSSL(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	run := func(t *testing.T, program string, args ...string) {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", program, args, err, out)
		}
	}
	// The keys, and then each in the other forms: these take a key's file and write another.
	const otherKind = "is damaged, or of none of these kinds"
	for name, tc := range map[string]struct{ make, algorithm, refused string }{
		"rsa":       {"genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "RS256", ""},
		"rsa-1024":  {"genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024", "", "is an RSA key of 1024 bits"},
		"rsa-pss":   {"genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048", "", "is damaged, or of none of these kinds: RSA (for PS256 too)"},
		"p256":      {"genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256", "ES256", ""},
		"p384":      {"genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384", "ES384", ""},
		"p521":      {"genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521", "ES512", ""},
		"params":    {"ecparam -name prime256v1 -genkey", "ES256", ""}, // EC PARAMETERS stand before the key
		"explicit":  {"genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit", "", otherKind},
		"secp256k1": {"genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp256k1", "", otherKind},
		"ed25519":   {"genpkey -algorithm ED25519", "EdDSA", ""},
		"ed448":     {"genpkey -algorithm ED448", "", otherKind},
		"x25519":    {"genpkey -algorithm X25519", "", otherKind},
		"dsa":       {"genpkey -paramfile dsa.pem", "", otherKind},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "dsa" {
				run(t, "openssl", "genpkey", "-genparam", "-algorithm", "DSA", "-pkeyopt", "dsa_paramgen_bits:1024", "-out", "dsa.pem")
			}
			first := name + ".pem"
			run(t, "openssl", append(strings.Fields(tc.make), "-out", first)...)
			files := map[string]string{first: tc.refused}
			for form, args := range map[string]string{
				"pkcs8":       "pkcs8 -topk8 -nocrypt",
				"traditional": "pkey -traditional",
				"encrypted":   "pkcs8 -topk8 -v2 aes-256-cbc -passout pass:x",
				"old":         "pkey -traditional -aes256 -passout pass:x",
				"public":      "pkey -pubout",
			} {
				if (form == "traditional" || form == "old") && slices.Contains([]string{"ed25519", "ed448", "x25519", "rsa-pss"}, name) {
					continue // PKCS#8 alone
				}
				file := name + "-" + form + ".pem"
				run(t, "openssl", append(strings.Fields(args), "-in", first, "-out", file)...)
				files[file] = tc.refused
				switch form {
				case "encrypted", "old":
					files[file] = "is encrypted"
				case "public":
					files[file] = "is a public key"
				}
			}
			for file, refused := range files {
				text := string(made(os.ReadFile(filepath.Join(dir, file))))
				c := &Config{TokenURL: &url.URL{}, Assertion: Assertion{PrivateKey: auth.SecretString(text)}}
				token, err := c.assertion(party{})
				if refused != "" {
					if err == nil || !strings.HasPrefix(err.Error(), "assertion.private_key: "+refused) {
						t.Errorf("%s: %v, want %s", file, err, refused)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", file, err)
					continue
				}
				key := made(parsePrivateKey(text))
				dot := strings.LastIndex(token, ".")
				if !verified(tc.algorithm, key.Public(), token[:dot], made(base64.RawURLEncoding.DecodeString(token[dot+1:]))) {
					t.Errorf("%s: %s", file, token)
				}
				// OpenSSL's own certificate for it belongs to it.
				cert := file + ".crt"
				run(t, "openssl", "req", "-x509", "-new", "-key", file, "-subj", "/CN=itsm", "-out", cert)
				if _, err := key.thumbprint(string(made(os.ReadFile(filepath.Join(dir, cert))))); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
		})
	}
	t.Run("ssh-keygen", func(t *testing.T) {
		t.Parallel()
		if _, err := exec.LookPath("ssh-keygen"); err != nil {
			t.Skip(err)
		}
		run(t, "ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", "ssh")
		read := func() (privateKey, error) {
			return parsePrivateKey(string(made(os.ReadFile(filepath.Join(dir, "ssh")))))
		}
		if _, err := read(); err == nil || !strings.Contains(err.Error(), "ssh-keygen -p -m PKCS8 -f COPY") {
			t.Error(err)
		}
		run(t, "ssh-keygen", "-q", "-p", "-P", "", "-N", "", "-m", "PKCS8", "-f", "ssh") // as the error says
		if _, err := read(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzPrivateKey looks for keys that make the parser or the signer panic, and for errors that show them.
func FuzzPrivateKey(f *testing.F) {
	for _, key := range []crypto.Signer{rsaKey(), p256(), p384(), edKey()} {
		f.Add(pkcs8(key))
		f.Add(jwk(key, `"kid":"k"`, `"alg":"ES256"`, `"use":"sig"`))
	}
	f.Add(inPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey())))
	f.Add(inPEM("EC PRIVATE KEY", made(x509.MarshalECPrivateKey(p521()))) + ownCertificate())
	f.Add(inPEM("ENCRYPTED PRIVATE KEY", []byte("x")))
	f.Add(`{"keys":[]}`)
	f.Add(`{"kty":"oct","k":"AAAA"}`)
	f.Add(`{"kty":"OKP","crv":"Ed25519","x":"AAAA","d":"AAAA"}`)
	f.Fuzz(func(t *testing.T, text string) {
		c := &Config{TokenURL: &url.URL{}, Assertion: Assertion{PrivateKey: auth.SecretString(text), Certificate: auth.SecretString(text)}}
		token, err := c.assertion(party{})
		if (token == "") != (err != nil) {
			t.Errorf("%q: %q, %v", text, token, err)
		}
		c.Assertion.Certificate = auth.Secret{}
		if token, err = c.assertion(party{}); err == nil {
			key, err := parsePrivateKey(text)
			parsed, also := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA, jose.RS384, jose.RS512, jose.PS384, jose.PS512})
			if err := errors.Join(err, also); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if _, err := parsed.Verify(key.Public()); err != nil {
				t.Errorf("%q: %v", text, err)
			}
		} else if !errors.Is(err, auth.ErrSecret) || len(text) >= 24 && strings.Contains(err.Error(), text[:24]) {
			t.Errorf("%q: %v", text, err)
		}
	})
}
