package systemd

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"

	"turnstone/turn/relay"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

func TestNamesHaveNoColons(t *testing.T) {
	for _, c := range []struct {
		socket relay.Socket
		want   string
	}{
		{relay.Socket{Relayed: true, Address: netip.MustParseAddrPort("192.0.2.1:49152")}, "relayed/192.0.2.1/49152"},
		{relay.Socket{Relayed: true, Address: netip.MustParseAddrPort("[2001:db8::1]:49152")}, "relayed/2001_db8__1/49152"},
		{relay.Socket{Address: netip.MustParseAddrPort("[2001:db8::1]:3478")}, "listen/udp/2001_db8__1/3478"},
		{relay.Socket{Stream: true, Address: netip.MustParseAddrPort("192.0.2.1:443")}, "listen/tcp/192.0.2.1/443"},
	} {
		if got := nameOf(c.socket); got != c.want || strings.Contains(got, ":") || !stored(got) {
			t.Errorf("%+v: got %q, want %q", c.socket, got, c.want)
		}
	}
	if stored("turnstone.socket") {
		t.Error("the name of a socket unit is taken for one of the store")
	}
}

// bound is a socket of a kind at an address. It is closed with the test.
func bound(t *testing.T, kind int, ip [4]byte) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: ip}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestInheritedSocketsAreLookedAt(t *testing.T) {
	loopback := [4]byte{127, 0, 0, 1}
	listening := bound(t, unix.SOCK_STREAM, loopback)
	if err := unix.Listen(listening, 1); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, c := range []struct {
		what, name string
		fd         int
		want       string // in the error; empty for none
		relayed    bool
	}{
		{"Datagrams", "turnstone.socket", bound(t, unix.SOCK_DGRAM, loopback), "", false},
		{"Relayed", "relayed/127.0.0.1/1", bound(t, unix.SOCK_DGRAM, loopback), "", true},
		{"Stream", "turnstone.socket", listening, "", false},
		{"StreamThatIsNoListener", "x", bound(t, unix.SOCK_STREAM, loopback), "nothing is accepted from", false},
		{"Wildcard", "turnstone.socket", bound(t, unix.SOCK_DGRAM, [4]byte{}), "name each in the socket unit", false},
		{"NoSocket", "x", int(file.Fd()), "it is no socket", false},
	} {
		t.Run(c.what, func(t *testing.T) {
			in := Inherited{Admin: -1, Named: map[string]int{}}
			err := in.add(c.fd, c.name)
			switch {
			case c.want == "" && (err != nil || len(in.Sockets) != 1 || in.Sockets[0].Relayed != c.relayed || in.Named[c.name] != 1):
				t.Errorf("got %v and %+v, want one socket", err, in)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(in.Sockets) != 0):
				t.Errorf("got %v and %+v, want an error with %q", err, in, c.want)
			}
		})
	}
}

func TestJournalIsToldPriorities(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	var at unix.Stat_t
	if err := unix.Fstat(int(write.Fd()), &at); err != nil {
		t.Fatal(err)
	}
	if got := Journal(write); got != io.Writer(write) {
		t.Errorf("what is no stream of the journal: got %T, want it as it is", got)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", at.Dev, at.Ino))
	log := zerolog.New(Journal(write))
	log.Warn().Msg("one")
	log.Info().Msg("two")
	_ = write.Close()
	got, err := io.ReadAll(read)
	const want = `<4>{"level":"warn","message":"one"}` + "\n" + `<6>{"level":"info","message":"two"}` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}
