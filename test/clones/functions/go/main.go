// Command function answers with everything that it takes for random. It is
// what an ordinary program does, and knows nothing of snapshots.
package main

import (
	"bytes"
	"crypto/ecdh"
	crand "crypto/rand"
	"crypto/tls"
	_ "embed" // cert.pem and key.pem, which the test puts here
	"encoding/json"
	"fmt"
	"hash/maphash"
	"log"
	"math/rand"
	randv2 "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

var (
	//go:embed cert.pem
	certPEM []byte
	//go:embed key.pem
	keyPEM []byte

	cert tls.Certificate
	seed = maphash.MakeSeed()
)

func main() {
	var err error
	if cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		all := map[string][]string{}
		for range 3 {
			if err := collect(func(name string, v any) { all[name] = append(all[name], fmt.Sprint(v)) }); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		_ = json.NewEncoder(w).Encode(all)
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}

func collect(add func(string, any)) error {
	b := make([]byte, 16)
	if _, err := crand.Read(b); err != nil {
		return err
	}
	add("crypto/rand", fmt.Sprintf("%x", b))
	add("crypto/rand.Text", crand.Text())
	u := make([]byte, 16)
	_, _ = crand.Read(u)
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	add("uuid", fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
	add("math/rand", rand.Int63())
	add("math/rand/v2", randv2.Uint64())
	add("math/rand.New", rand.New(rand.NewSource(rand.Int63())).Int63())
	key, err := ecdh.X25519().GenerateKey(crand.Reader)
	if err != nil {
		return err
	}
	add("crypto/ecdh", fmt.Sprintf("%x", key.Bytes()))
	dir, err := os.MkdirTemp("", "clone")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	add("os.MkdirTemp", filepath.Base(dir))
	f, err := os.CreateTemp("", "clone")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	add("os.CreateTemp", filepath.Base(f.Name()))
	_ = maphash.String(seed, "")
	return handshake(add, f.Close())
}

// handshake lets the program talk TLS with itself.
func handshake(add func(string, any), err error) error {
	if err != nil {
		return err
	}
	var keys bytes.Buffer
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	failed := make(chan error, 1)
	go func() {
		failed <- tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}).Handshake()
	}()
	if err := tls.Client(b, &tls.Config{InsecureSkipVerify: true, KeyLogWriter: &keys}).Handshake(); err != nil {
		return err
	}
	if err := <-failed; err != nil {
		return err
	}
	for line := range strings.Lines(keys.String()) {
		if f := strings.Fields(line); len(f) == 3 {
			add("tls "+f[0], f[2])
		}
	}
	return nil
}
