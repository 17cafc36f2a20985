package generic

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/itsmauth/itsmauth/auth"
)

// A privateKey signs JWTs.
type privateKey struct {
	crypto.Signer
	id        string                  // what a JSON Web Key calls itself, or ""
	algorithm jose.SignatureAlgorithm // what a JSON Web Key is for, or ""
}

// unusable says why a key or a certificate cannot be used, and shows nothing of it. It is an [auth.ErrSecret].
type unusable string

func (u unusable) Error() string { return string(u) }

// Is reports whether target is [auth.ErrSecret].
func (unusable) Is(target error) bool { return target == auth.ErrSecret }

const (
	errEncrypted = unusable("is encrypted; to decrypt it: openssl pkey -in KEY -out NEW")
	errKind      = unusable("is damaged, or of none of these kinds: RSA (for PS256 too), EC (P-256, P-384, P-521), Ed25519")
	errPublic    = unusable("is a public key, not the private one")
)

// parsePrivateKey reads a key in PEM (PKCS#1, PKCS#8 or SEC 1) or a JSON Web Key (RFC 7517). Its errors show
// nothing of the text.
func parsePrivateKey(text string) (privateKey, error) {
	if text = strings.TrimSpace(text); strings.HasPrefix(text, "{") {
		return parseJWK(text)
	}
	key, err := parsePEM(text)
	return privateKey{Signer: key}, err
}

func parseJWK(text string) (privateKey, error) {
	var is struct {
		Keys       []json.RawMessage
		Type       string `json:"kty"`
		Ciphertext string
	}
	if json.Unmarshal([]byte(text), &is) != nil {
		return privateKey{}, unusable("begins as a JSON Web Key, and is damaged")
	}
	var key jose.JSONWebKey
	err := key.UnmarshalJSON([]byte(text))
	signer, canSign := key.Key.(crypto.Signer)
	switch {
	case is.Keys != nil:
		return privateKey{}, unusable("is a JSON Web Key Set; give one of its keys alone")
	case is.Ciphertext != "":
		return privateKey{}, unusable("is an encrypted JSON Web Key; decrypt it")
	case is.Type == "oct":
		return privateKey{}, unusable("is a symmetric key; this takes a private key")
	case is.Type == "":
		return privateKey{}, unusable("is JSON, but not a JSON Web Key: it has no kty")
	case err != nil:
		return privateKey{}, errKind
	case !canSign:
		return privateKey{}, errPublic
	case key.Use != "" && key.Use != "sig":
		return privateKey{}, unusable("is a JSON Web Key that is not for signing: its use is not sig")
	}
	return privateKey{signer, key.KeyID, jose.SignatureAlgorithm(key.Algorithm)}, nil
}

// parsePEM reads the one private key in text, in which certificates and parameters may stand too.
func parsePEM(text string) (key crypto.Signer, err error) {
	if !strings.Contains(text, "\n") {
		text = strings.ReplaceAll(text, `\n`, "\n") // as in environment variables
	}
	var block *pem.Block
	holds := ""
	for rest := []byte(text); ; {
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, errEncrypted
		case block.Type == "OPENSSH PRIVATE KEY":
			return nil, unusable("is in OpenSSH's own format; to convert a copy of it: ssh-keygen -p -m PKCS8 -f COPY")
		case block.Type == "CERTIFICATE", strings.HasSuffix(block.Type, "PUBLIC KEY"):
			holds = strings.ToLower(block.Type)
		case !strings.HasSuffix(block.Type, "PRIVATE KEY"): // EC PARAMETERS
		case key != nil:
			return nil, unusable("holds several private keys")
		default:
			if key, err = parseDER(block.Bytes); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case key != nil:
		return key, nil
	case strings.HasSuffix(holds, "public key"):
		return nil, errPublic
	case holds != "":
		return nil, unusable("holds a certificate and no private key")
	case strings.Contains(text, "-----BEGIN "):
		return nil, unusable("is damaged PEM; each of its lines must be a line of its own, up to the END line")
	}
	return nil, unusable("is neither PEM nor a JSON Web Key")
}

// parseDER does not rely on the name of the PEM block, because some tools write a wrong one.
func parseDER(der []byte) (crypto.Signer, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	} else if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	} else if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	return nil, errKind
}

// algorithms are the algorithms that the key may sign with, the usual one first.
func (k privateKey) algorithms() ([]jose.SignatureAlgorithm, error) {
	if public, ok := k.Public().(*rsa.PublicKey); ok && public.N.BitLen() < 2048 {
		return nil, unusable(fmt.Sprintf("is an RSA key of %d bits; 2048 or more are needed (RFC 7518 section 3.3)", public.N.BitLen()))
	}
	all := cryptosigner.Opaque(k).Algs()
	switch {
	case len(all) == 0:
		return nil, errKind
	case k.algorithm == "":
		return all, nil
	case !slices.Contains(all, k.algorithm):
		return nil, unusable("is a JSON Web Key that is not for signing: its alg is none of " + join(all))
	}
	return []jose.SignatureAlgorithm{k.algorithm}, nil
}

func join(algorithms []jose.SignatureAlgorithm) string {
	return strings.Trim(fmt.Sprint(algorithms), "[]")
}

// Sign is [crypto.Signer.Sign]. An RSASSA-PSS salt is as long as the hash (RFC 7518 section 3.5), but package
// cryptosigner asks for the longest possible one; and it panics if a device signs with a longer key than it says.
func (k privateKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: pss.Hash}
	}
	signature, err := k.Signer.Sign(rand, digest, opts)
	if public, ok := k.Public().(*ecdsa.PublicKey); ok && err == nil && !ecdsa.VerifyASN1(public, digest, signature) {
		err = errors.New("the signature is not of its public key")
	}
	return signature, err
}

// signJWT returns the JWT of a payload (RFC 7515 section 7.1). It verifies the signature, because a key in parts may not
// fit together, and an HSM may fail.
func (k privateKey) signJWT(algorithm jose.SignatureAlgorithm, opts *jose.SignerOptions, payload []byte) (token string, err error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: cryptosigner.Opaque(k)}, opts)
	var signed *jose.JSONWebSignature
	if err == nil {
		signed, err = signer.Sign(payload)
	}
	if err == nil {
		_, err = signed.Verify(k.Public())
	}
	if err == nil {
		token, err = signed.CompactSerialize()
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", unusable("cannot sign"), err)
	}
	return token, nil
}

// thumbprint is the SHA-256 thumbprint of the certificate that is for the key, in base64url (RFC 7515 section
// 4.1.8). The text may hold a chain of certificates.
func (k privateKey) thumbprint(text string) (string, error) {
	public, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool })
	found := false
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", unusable("holds a damaged certificate")
		}
		if found = true; ok && public.Equal(cert.PublicKey) {
			sum := sha256.Sum256(cert.Raw)
			return base64.RawURLEncoding.EncodeToString(sum[:]), nil
		}
	}
	if !found {
		return "", unusable("holds no certificate in PEM")
	}
	return "", unusable("does not belong to the private key")
}
