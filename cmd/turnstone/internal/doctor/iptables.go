package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of sockets that tell of a table: IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, the same for IPv6.
const (
	getInfo    = 64
	getEntries = 65
)

// tableName is the size of the name of a table, which requests begin with.
const tableName = 32

// legacyFamily is where a family tells of its tables.
type legacyFamily struct {
	name, file    string
	domain, level int
	target        int // where an entry says at which offset its target is
}

// struct ipt_entry and struct ip6t_entry have that behind what they match and a word.
var legacyFamilies = []legacyFamily{
	{"ip", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.SOL_IP, 84 + 4},
	{"ip6", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6, 136 + 4},
}

// legacyTables reads which tables of iptables-legacy there are, without making any. It needs CAP_NET_ADMIN, and
// the user root.
func legacyTables() (out []Legacy, err error) {
	for _, f := range legacyFamilies {
		names, err := os.ReadFile(f.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, table := range strings.Fields(string(names)) {
			t, err := f.table(table)
			if err != nil {
				return nil, fmt.Errorf("read table %s of iptables-legacy: %w", table, err)
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// table reads one that is there.
func (f *legacyFamily) table(name string) (Legacy, error) {
	fd, err := unix.Socket(f.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return Legacy{}, err
	}
	defer unix.Close(fd)
	info := make([]byte, tableName+4+5*4+5*4+4+4) // struct ipt_getinfo
	if err := f.ask(fd, getInfo, name, info); err != nil {
		return Legacy{}, err
	}
	size := binary.NativeEndian.Uint32(info[80:])
	entries := make([]byte, tableName+8+size) // struct ipt_get_entries
	binary.NativeEndian.PutUint32(entries[tableName:], size)
	if err := f.ask(fd, getEntries, name, entries); err != nil {
		return Legacy{}, err
	}
	rules, drops := f.parse(info, entries[tableName+8:])
	return Legacy{Family: f.name, Table: name, Rules: rules, Drops: drops}, nil
}

// ask has b filled, which begins with the name of a table.
func (f *legacyFamily) ask(fd, option int, name string, b []byte) error {
	copy(b[:tableName-1], name)
	length := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(f.level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// parse counts the entries that a table has beyond those of an empty one, a policy for each hook and the end, and
// says whether one of the policies drops.
func (f *legacyFamily) parse(info, entries []byte) (rules int, drops bool) {
	number := func(at int) int { return int(binary.NativeEndian.Uint32(info[at:])) }
	hooks := uint32(number(32))
	for hook := range 5 {
		at := number(56 + 4*hook) // of the policy
		if hooks>>hook&1 == 0 || at+f.target+2 > len(entries) {
			continue
		}
		const verdict = 32 // in a target, behind its header
		at += int(binary.NativeEndian.Uint16(entries[at+f.target:])) + verdict
		if at+4 <= len(entries) && int32(binary.NativeEndian.Uint32(entries[at:])) == -1 { // -NF_DROP - 1
			drops = true
		}
	}
	return max(0, number(76)-bits.OnesCount32(hooks)-1), drops
}
