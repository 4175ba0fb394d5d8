package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/pion/turn/v4"
	"golang.org/x/sys/unix"
)

// childPion is the first argument of this program where it is to be the server on pion/turn.
const childPion = "child-pion"

func pionCommand(*lab, string) *exec.Cmd { return self(childPion) }

// self is this program in another role.
func self(args ...string) *exec.Cmd { return exec.Command("/proc/self/exe", args...) }

func pionVersion(*lab) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/pion/turn/v4" {
				return m.Version
			}
		}
	}
	return "of unknown version"
}

// servePion is a small server: a listener for each processor, as pion's own
// example for many threads has it. With a certificate's file it listens on streams too.
func servePion(certificate []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	key := turn.GenerateAuthKey(username, realm, password)
	config := turn.ServerConfig{
		Realm: realm,
		AuthHandler: func(name, _ string, _ net.Addr) ([]byte, bool) {
			return key, name == username
		},
	}
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}); e != nil {
			return e
		}
		return err
	}}
	for range runtime.NumCPU() {
		c, err := listen.ListenPacket(ctx, "udp4", listenAddress.String())
		if err != nil {
			return err
		}
		config.PacketConnConfigs = append(config.PacketConnConfigs, turn.PacketConnConfig{PacketConn: c, RelayAddressGenerator: pionRelay()})
	}
	for _, file := range certificate {
		list, err := pionListeners(ctx, file)
		if err != nil {
			return err
		}
		config.ListenerConfigs = append(config.ListenerConfigs, list...)
	}
	s, err := turn.NewServer(config)
	if err != nil {
		return err
	}
	<-ctx.Done()
	return s.Close()
}

func pionRelay() turn.RelayAddressGenerator {
	return &turn.RelayAddressGeneratorStatic{RelayAddress: relayHost.Addr().AsSlice(), Address: relayHost.Addr().String()}
}

// pionListeners are for TCP and TLS.
func pionListeners(ctx context.Context, certificate string) ([]turn.ListenerConfig, error) {
	pair, err := tls.LoadX509KeyPair(certificate, certificate)
	if err != nil {
		return nil, err
	}
	var listen net.ListenConfig
	overTCP, err := listen.Listen(ctx, "tcp4", listenAddress.String())
	if err != nil {
		return nil, err
	}
	overTLS, err := listen.Listen(ctx, "tcp4", tlsAddress.String())
	if err != nil {
		return nil, err
	}
	return []turn.ListenerConfig{
		{Listener: overTCP, RelayAddressGenerator: pionRelay()},
		{Listener: tls.NewListener(overTLS, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}), RelayAddressGenerator: pionRelay()},
	}, nil
}

// asChild runs this program in another role, and ends it, where args ask for that.
func asChild(args []string) error {
	if len(args) == 0 {
		return nil
	}
	var err error
	switch args[0] {
	case childPion:
		err = servePion(args[1:])
	case childLog:
		err = timeLog(args[1:])
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	os.Exit(0)
	return nil
}
