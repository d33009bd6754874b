package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// validity is how long certificates count, from an hour before they are made.
const validity = 30 * 24 * time.Hour

// pair is a certificate with its key, in PEM.
type pair struct{ cert, key []byte }

// authority signs the certificates of one cluster.
type authority struct {
	pair
	parsed *x509.Certificate
	signer *ecdsa.PrivateKey
	serial int64
}

func newAuthority() (*authority, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "crinet test cluster"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a := &authority{}
	var err error
	if a.pair, a.signer, err = a.sign(template); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(a.cert)
	a.parsed, err = x509.ParseCertificate(block.Bytes)
	return a, err
}

// server makes the certificate of a server with these names and addresses.
func (a *authority) server(name string, names []string, addresses ...string) (pair, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		DNSNames:    names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	p, _, err := a.sign(template)
	return p, err
}

// client makes the certificate of a user of the API in a group.
func (a *authority) client(user, group string) (pair, error) {
	p, _, err := a.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: []string{group}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return p, err
}

// sign makes a key and signs its certificate; the authority's own signs itself.
func (a *authority) sign(template *x509.Certificate) (pair, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, nil, fmt.Errorf("make a key: %w", err)
	}
	a.serial++
	template.SerialNumber = big.NewInt(a.serial)
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = template.NotBefore.Add(validity)
	parent, signer := a.parsed, a.signer
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return pair{}, nil, fmt.Errorf("sign the certificate of %s: %w", template.Subject, err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return pair{}, nil, fmt.Errorf("encode the key of %s: %w", template.Subject, err)
	}
	return pair{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	}, key, nil
}

// tlsConfig is that of a client with this certificate.
func (a *authority) tlsConfig(client pair) (*tls.Config, error) {
	own, err := tls.X509KeyPair(client.cert, client.key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.parsed)
	return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: roots, MinVersion: tls.VersionTLS13}, nil
}

// kubeconfig is a file for clients of the API at that address, with this
// certificate.
func (a *authority) kubeconfig(server string, client pair) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
contexts: [{name: test, context: {cluster: test, user: test}}]
clusters: [{name: test, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: test, user: {client-certificate-data: %s, client-key-data: %s}}]
`, server, text(a.cert), text(client.cert), text(client.key))
}

func text(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
