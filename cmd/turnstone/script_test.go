package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/crash"
	"turnstone/internal/testenv"
	"turnstone/store"

	"github.com/pion/logging"
	"github.com/pion/stun/v3"
	"github.com/pion/turn/v4"
	"github.com/rogpeppe/go-internal/testscript"
	"go.etcd.io/bbolt"
)

// patience is how long a condition may take to come true.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"turnstone": main, "crashing": crashing})
}

// crashing is a daemon with a bug: it panics in a goroutine of its own.
func crashing() {
	if _, err := crash.Watch(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go panic("a bug")
	select {}
}

func TestScript(t *testing.T) { testscript.Run(t, scripts("testdata/script")) }

// scripts are those in a directory, and the commands that they have.
func scripts(dir string) testscript.Params {
	return testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("NO_COLOR", "1")
			e.Setenv("TURNSTONE_DASHBOARD", "off") // its default is one address for all of them
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "port": port, "await": await, "signal": signalDaemon, "allocate": allocate,
			"get": get, "damage": damage, "emptydb": emptyDB, "absent": absent, "reports": reports,
			"absentkeys": absentKeys, "awaitlog": awaitLog, "awaittext": awaitText, "awaitsocket": awaitSocket, "credential": credential, "demo": demo,
			"recipe": recipe, "mode": mode, "shapedlog": shapedLog, "awaitget": awaitGet,
			"absentcanary": absentCanary, "address": address, "tokenallocate": tokenAllocate, "tlskey": tlsKey,
			"line": firstLine, "hook": hookServer, "requests": requests, "awaitdraining": awaitDraining,
			"completes": completes, "mute": mute, "post": post, "flip": flip, "smalldisk": smallDisk, "awaitwaiting": awaitWaiting,
		},
	}
}

// exits CODE COMMAND...: the command exits with the code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("run %v: %v", args[1:], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%v exited %d, want %d", args[1:], got, want)
	}
}

// port NAME...: each name is set to a port of the loopback that nobody has, over UDP and TCP, and no other name.
func port(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		a, err := testenv.Port(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(int(a.Port())))
	}
}

// until waits for a condition.
func until(ts *testscript.TestScript, what string, holds func() bool) {
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// await DIR: the daemon of the data directory answers requests; ! await DIR: nobody holds it.
func await(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	until(ts, "await "+args[0], func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		st, err := admin.NewClient(filepath.Join(dir, "admin.sock")).Status(ctx)
		if neg {
			return errors.Is(err, admin.ErrUnreachable)
		}
		return err == nil && st.Ready
	})
}

// signal NAME DIR: the daemon of the data directory gets a signal.
func signalDaemon(ts *testscript.TestScript, _ bool, args []string) {
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(filepath.Join(args[1], "lock"))))
	ts.Check(err)
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	ts.Check(syscall.Kill(pid, signals[args[0]]))
}

// allocate SERVER USER PASSWORD: a client (see [socketTo]) makes an allocation with a channel, gets a datagram through
// it to a peer and back, and stays until the end of the script. ! allocate: it gets none.
func allocate(ts *testscript.TestScript, neg bool, args []string) {
	err := relayOnce(ts, args[0], args[1], args[2])
	if neg && err == nil {
		ts.Fatalf("allocate at %s: got an allocation, want none", args[0])
	}
	if !neg {
		ts.Check(err)
	}
}

// socketTo is a client's socket to a server, HOST:PORT or, over a stream, tcp:// or tls:// before it. Over UDP it is of the
// address in $CLIENT.
func socketTo(ts *testscript.TestScript, server string) (net.PacketConn, string) {
	transport, at, named := strings.Cut(server, "://")
	switch {
	case !named:
		c, err := net.ListenPacket("udp4", cmp.Or(ts.Getenv("CLIENT"), "127.0.0.1")+":0")
		ts.Check(err)
		return c, server
	case transport == "tls":
		c, err := tls.Dial("tcp4", at, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is selfSigned
		ts.Check(err)
		return turn.NewSTUNConn(c), at
	default:
		c, err := net.Dial("tcp4", at)
		ts.Check(err)
		return turn.NewSTUNConn(c), at
	}
}

func relayOnce(ts *testscript.TestScript, server, user, password string) error {
	local, server := socketTo(ts, server)
	ts.Defer(func() { local.Close() })
	quiet := logging.NewDefaultLoggerFactory()
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	client, err := turn.NewClient(&turn.ClientConfig{
		TURNServerAddr: server, STUNServerAddr: server, Conn: local, Username: user, Password: password,
		Realm: "turnstone", LoggerFactory: quiet,
	})
	ts.Check(err)
	ts.Check(client.Listen())
	relayed, err := client.Allocate() // left open: closing it would end the allocation
	if err != nil {
		return err
	}
	peer, err := net.ListenPacket("udp4", "127.0.0.1:0")
	ts.Check(err)
	defer peer.Close()
	ts.Check(client.CreatePermission(peer.LocalAddr()))
	buf := make([]byte, 100)
	until(ts, "relay a datagram", func() bool { // the first of them have pion bind a channel
		_, err := relayed.WriteTo([]byte("ping"), peer.LocalAddr())
		ts.Check(err)
		ts.Check(peer.SetReadDeadline(time.Now().Add(100 * time.Millisecond)))
		n, from, err := peer.ReadFrom(buf)
		return err == nil && string(buf[:n]) == "ping" && from.String() == relayed.LocalAddr().String()
	})
	return nil
}

// get URL: what a GET yields, with the status code in front; ! get URL: nobody answers there any more.
func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		until(ts, "nobody is at "+args[0], func() bool {
			resp, err := http.Get(args[0])
			if err == nil {
				resp.Body.Close()
			}
			return err != nil
		})
		return
	}
	resp, err := http.Get(args[0])
	ts.Check(err)
	answered(ts, resp)
}

// post URL TOKEN: asks with a bearer token, and writes code and body to stdout.
func post(ts *testscript.TestScript, _ bool, args []string) {
	r, err := http.NewRequest(http.MethodPost, args[0], nil)
	ts.Check(err)
	r.Header.Set("Authorization", "Bearer "+args[1])
	resp, err := http.DefaultClient.Do(r)
	ts.Check(err)
	answered(ts, resp)
}

func answered(ts *testscript.TestScript, resp *http.Response) {
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%d\n%s", resp.StatusCode, body)
}

// damage FILE TEXT: the last byte of the text is another wherever the file holds it, free pages included.
func damage(ts *testscript.TestScript, _ bool, args []string) {
	old := args[1]
	changed := []byte(old)
	changed[len(changed)-1] ^= 1
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, old) {
		ts.Fatalf("%s does not hold %q", args[0], old)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.ReplaceAll(text, old, string(changed))), 0o600))
}

// emptydb FILE: a store as it was before its first schema.
func emptyDB(ts *testscript.TestScript, _ bool, args []string) {
	db, err := bbolt.Open(ts.MkAbs(args[0]), 0o600, nil)
	ts.Check(err)
	ts.Check(db.Close())
}

// absent TEXT FILE...: no file holds the text; a directory stands for the files in it.
func absent(ts *testscript.TestScript, _ bool, args []string) {
	files := 0
	for _, root := range args[1:] {
		ts.Check(filepath.WalkDir(ts.MkAbs(root), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := contentOf(path)
			if err == nil && strings.Contains(string(b), args[0]) {
				err = fmt.Errorf("%s holds %q", path, args[0])
			}
			files++
			return err
		}))
	}
	if files < len(args)-1 {
		ts.Fatalf("looked at %d files for %d arguments", files, len(args)-1)
	}
}

// absentKeys KEYS FILE...: no file holds what the files in the directory KEYS hold, nor its hex or base64 form.
func absentKeys(ts *testscript.TestScript, _ bool, args []string) {
	keys := filesOf(ts, args[:1])
	if len(keys) == 0 {
		ts.Fatalf("there are no keys in %s", args[0])
	}
	for _, b := range keys {
		key := string(b)
		for _, form := range []string{key, hex.EncodeToString([]byte(key)), base64.StdEncoding.EncodeToString([]byte(key))} {
			absent(ts, false, append([]string{form}, args[1:]...))
		}
	}
}

// awaitLog DIR TEXT N: the running daemon's log holds N events that have the text, forgotten ones left out.
func awaitLog(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[2])
	ts.Check(err)
	client := admin.NewClient(filepath.Join(ts.MkAbs(args[0]), "admin.sock"))
	until(ts, "await "+args[1], func() bool {
		n := 0
		keys := client.Keys(context.Background())
		for raw, err := range client.Raw(context.Background(), 1, false) {
			ts.Check(err)
			rec, err := store.Decode(raw, keys)
			if withoutKey(err) != nil {
				continue
			}
			ts.Check(err)
			for _, e := range rec.Events {
				if strings.Contains(fmt.Sprintf("%T", e), args[1]) {
					n++
				}
			}
		}
		return n >= want
	})
}

// awaitText FILE TEXT: the file holds the text.
func awaitText(ts *testscript.TestScript, _ bool, args []string) {
	until(ts, "await "+args[1], func() bool {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		return err == nil && strings.Contains(string(b), args[1])
	})
}

// awaitSocket PATH: a daemon answers at the admin socket.
func awaitSocket(ts *testscript.TestScript, _ bool, args []string) {
	until(ts, "await "+args[0], func() bool {
		_, err := admin.NewClient(ts.MkAbs(args[0])).Status(context.Background())
		return err == nil
	})
}

// line NAME FILE: the variable is set to the first line of the file.
func firstLine(ts *testscript.TestScript, _ bool, args []string) {
	text, _, _ := strings.Cut(ts.ReadFile(args[1]), "\n")
	ts.Setenv(args[0], text)
}

// awaitDraining DIR: the daemon of the data directory makes no new allocations.
func awaitDraining(ts *testscript.TestScript, _ bool, args []string) {
	until(ts, "await a drain of "+args[0], func() bool {
		st, err := admin.NewClient(filepath.Join(ts.MkAbs(args[0]), "admin.sock")).Status(context.Background())
		return err == nil && st.Draining
	})
}

// completes PATTERN ARGS...: a shell that completes the last argument gets what matches. The time it waits for the daemon is
// short for a busy machine, so it may ask again.
func completes(ts *testscript.TestScript, _ bool, args []string) {
	pattern := regexp.MustCompile("(?m)" + args[0])
	until(ts, "completion with "+args[0], func() bool {
		ts.Check(ts.Exec("turnstone", append([]string{"__complete"}, args[1:]...)...))
		return pattern.MatchString(ts.ReadFile("stdout"))
	})
}

// mute PATH: a socket that takes connections and never answers.
func mute(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

// credential NAME PASSWORD: the variables are set to what the CSV of the last command has.
func credential(ts *testscript.TestScript, _ bool, args []string) {
	rows, err := csv.NewReader(strings.NewReader(ts.ReadFile("stdout"))).ReadAll()
	ts.Check(err)
	ts.Setenv(args[0], rows[1][0])
	ts.Setenv(args[1], rows[1][1])
}

// mode FILE OCTAL: the file has these permissions.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

// awaitGet URL TEXT...: what a GET yields has a line of the texts, with a space between them.
func awaitGet(ts *testscript.TestScript, _ bool, args []string) {
	want := strings.Join(args[1:], " ")
	until(ts, "await "+want, func() bool {
		resp, err := http.Get(args[0])
		ts.Check(err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		ts.Check(err)
		return strings.Contains(string(body), "\n"+want+"\n")
	})
}

// hookServer VAR TOKEN: the variable is set to the URL of a hook for users, which has those of users.json in the
// directory of the script: a name, and the answer. It fails while that is no JSON, or the token is another.
func hookServer(ts *testscript.TestScript, _ bool, args []string) {
	file := ts.MkAbs("users.json")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var question struct{ Username, Realm string }
		var all map[string]json.RawMessage
		text, err := os.ReadFile(file)
		if err := errors.Join(err, json.Unmarshal(text, &all), json.NewDecoder(r.Body).Decode(&question)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer, ok := all[question.Username]
		switch {
		case r.Header.Get("Authorization") != "Bearer "+args[1] || question.Realm != "turnstone":
			w.WriteHeader(http.StatusForbidden)
		case !ok:
			w.WriteHeader(http.StatusNotFound)
		default:
			_, _ = w.Write(answer)
		}
	}))
	ts.Defer(s.Close)
	ts.Setenv(args[0], s.URL+"/users")
}

// askAllocate sends an Allocate with what set says, and yields the answer. The error is that none came.
func askAllocate(ts *testscript.TestScript, conn net.Conn, wait time.Duration, set ...stun.Setter) (*stun.Message, error) {
	all := append([]stun.Setter{stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest)}, set...)
	_, err := conn.Write(stun.MustBuild(all...).Raw)
	ts.Check(err)
	ts.Check(conn.SetReadDeadline(time.Now().Add(wait)))
	b := make([]byte, 1500)
	n, err := conn.Read(b)
	if err != nil {
		return nil, err
	}
	m := &stun.Message{Raw: b[:n]}
	ts.Check(m.Decode())
	return m, nil
}

// requests SERVER USER PASSWORD URL PATTERN: a client asks for an allocation again and again, until a GET yields a match.
func requests(ts *testscript.TestScript, _ bool, args []string) {
	conn, err := net.Dial("udp4", args[0])
	ts.Check(err)
	defer conn.Close()
	const wait = 100 * time.Millisecond
	pattern := regexp.MustCompile("(?m)^" + args[4] + "$")
	until(ts, "requests until "+args[4], func() bool {
		var nonce stun.Nonce
		var realm stun.Realm
		if m, err := askAllocate(ts, conn, wait); err == nil && nonce.GetFrom(m) == nil && realm.GetFrom(m) == nil {
			_, _ = askAllocate(ts, conn, wait, stun.NewUsername(args[1]), realm, nonce, stun.NewLongTermIntegrity(args[1], realm.String(), args[2]))
		}
		resp, err := http.Get(args[3])
		ts.Check(err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		ts.Check(err)
		return pattern.Match(body)
	})
}

var (
	recipeAddress = regexp.MustCompile(`(?m)^(listening-ip|relay-ip|external-ip)=.*$`)
	recipePort    = regexp.MustCompile(`(?m)^(tls-)?listening-port=.*$`)
	recipeFile    = regexp.MustCompile(`(?m)^(cert|pkey)=.*$`)
)

// recipe NAME PORT TLSPORT: NAME.conf is the recipe for coturn of that name, with the addresses of the
// loopback, the ports, and a certificate that exists.
func recipe(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(filepath.Join("internal", "coturn", "testdata", args[0]+".conf"))
	ts.Check(err)
	text := recipeAddress.ReplaceAllString(string(b), "$1=127.0.0.1")
	text = recipePort.ReplaceAllString(text, "")
	certificate, key := selfSigned(ts)
	ts.Check(os.WriteFile(ts.MkAbs("cert.pem"), certificate, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("pkey.pem"), key, 0o600))
	text = recipeFile.ReplaceAllString(text, "$1=$1.pem")
	text += "listening-port=" + args[1] + "\ntls-listening-port=" + args[2] + "\n"
	if !strings.Contains(text, "listening-ip=") {
		text += "listening-ip=127.0.0.1\n"
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".conf"), []byte(text), 0o600))
}

// selfSigned is a certificate of 127.0.0.1 and its key, PEM.
func selfSigned(ts *testscript.TestScript) (certificate, key []byte) {
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &pair.PublicKey, pair)
	ts.Check(err)
	private, err := x509.MarshalPKCS8PrivateKey(pair)
	ts.Check(err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

// demo DIR PASSWORD: the variable is set to the password of the demo user.
func demo(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[1], base64.RawURLEncoding.EncodeToString([]byte(ts.ReadFile(filepath.Join(args[0], "keys", "demo")))))
}

// reports DIR TEXT: the log in the data directory, which no daemon has open, holds the text.
func reports(ts *testscript.TestScript, _ bool, args []string) {
	r, err := store.OpenReader(filepath.Join(ts.MkAbs(args[0]), store.FileName))
	ts.Check(err)
	for rec, err := range r.Records(1) {
		ts.Check(err)
		for _, e := range rec.Events {
			if strings.Contains(fmt.Sprintf("%T%+v", e, e), args[1]) {
				return
			}
		}
	}
	ts.Fatalf("no event in %s has %q", args[0], args[1])
}
