package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pion/stun/v3"
	"github.com/rogpeppe/go-internal/testscript"
)

// filesOf are the files that args name; a directory stands for those in it, but for the keys of a log.
func filesOf(ts *testscript.TestScript, args []string) map[string][]byte {
	all := map[string][]byte{}
	for _, root := range args {
		ts.Check(filepath.WalkDir(ts.MkAbs(root), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == "keys" && path != ts.MkAbs(root) {
				return filepath.SkipDir
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			all[path], err = contentOf(path)
			return err
		}))
	}
	if len(all) < len(args) {
		ts.Fatalf("looked at %d files for %d arguments", len(all), len(args))
	}
	return all
}

// contentOf is what a file holds, unpacked where it is packed.
func contentOf(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return b, err
	}
	r, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	unpacked, err := io.ReadAll(r)
	return append(b, unpacked...), err
}

// absentCanary HEX FILE...: no file holds the bytes, nor their hex or base64 forms.
func absentCanary(ts *testscript.TestScript, _ bool, args []string) {
	canary, err := hex.DecodeString(args[0])
	ts.Check(err)
	absentForms(ts, args[1:], canary, []byte(args[0]), []byte(strings.ToUpper(args[0])), encodedAnywhere(canary))
}

// encodedAnywhere is what is in the base64 of whatever has b in it at a multiple of three.
func encodedAnywhere(b []byte) []byte {
	return []byte(base64.RawStdEncoding.EncodeToString(b[:len(b)/3*3]))
}

func absentForms(ts *testscript.TestScript, files []string, forms ...[]byte) {
	for path, b := range filesOf(ts, files) {
		for _, form := range forms {
			if bytes.Contains(b, form) {
				ts.Fatalf("%s holds %q", path, form)
			}
		}
	}
}

// address [!] ADDR FILE...: a file holds the address with a port in the binary form of the log, or in text. ! address: none does.
func address(ts *testscript.TestScript, neg bool, args []string) {
	a := netip.MustParseAddr(args[0])
	raw := append([]byte{0x46}, a.AsSlice()...) // a byte string of six: the port follows
	found := ""
	for path, b := range filesOf(ts, args[1:]) {
		if bytes.Contains(b, raw) || bytes.Contains(b, []byte(args[0])) {
			found = path
		}
	}
	if neg == (found != "") {
		ts.Fatalf("address %s: found in %q", args[0], found)
	}
}

// tokenAllocate SERVER FILE: a client with the access token in the JSON of FILE gets an allocation.
func tokenAllocate(ts *testscript.TestScript, _ bool, args []string) {
	var token struct {
		KID   string `json:"kid"`
		Token []byte `json:"access_token"`
		Key   []byte `json:"key"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &token))
	ts.Setenv("TOKENKEY", hex.EncodeToString(token.Key))
	conn, err := net.Dial("udp4", args[0])
	ts.Check(err)
	defer conn.Close()
	var nonce stun.Nonce
	var realm stun.Realm
	m, err := askAllocate(ts, conn, patience)
	ts.Check(err)
	ts.Check(nonce.GetFrom(m))
	ts.Check(realm.GetFrom(m))
	m, err = askAllocate(ts, conn, patience, stun.NewUsername(token.KID), realm, nonce, stun.RawAttribute{Type: 0x001B, Value: token.Token},
		stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}}, stun.MessageIntegrity(token.Key))
	ts.Check(err)
	if m.Type.Class != stun.ClassSuccessResponse {
		ts.Fatalf("allocate with a token: got %v", m)
	}
}

// tlsKey CERT KEY: a certificate of 127.0.0.1 and its key are written, and KEYBODY is set to the middle of the key in hex.
func tlsKey(ts *testscript.TestScript, _ bool, args []string) {
	certificate, key := selfSigned(ts)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), certificate, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), key, 0o600))
	lines := strings.Split(string(key), "\n")
	body, err := base64.StdEncoding.DecodeString(lines[1])
	ts.Check(err)
	ts.Setenv("KEYBODY", hex.EncodeToString(body[36:48])) // of the private number, at a multiple of three
}
