package doctor

import (
	"net/netip"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/kernel"
	"turnstone/turn"
)

// Facts are what a configuration wants and what its host is like.
type Facts struct {
	Wanted
	Daemon  Known[Daemon] // errNothing: none runs
	Process Process       // the daemon where one runs, else this command
	Kernel  Kernel
	Links   Known[[]Link]
	Missing []string // names in the configuration that no interface has

	Taken     Known[[]Taken] // listeners that cannot be bound
	Local     Known[string]  // ip_local_port_range
	Reserved  Known[string]  // ip_local_reserved_ports
	Receive   Known[int]     // rmem_max, bytes
	Reverse   Known[map[string]int]
	Chains    Known[[]Chain] // of nf_tables, with a hook
	Legacy    Known[[]Legacy]
	Clock     Known[Clock]
	Disk      Known[Disk]
	Open      []Open        // files of the data directory that others may read
	DataOwner Known[Access] // errNothing: there is no data directory yet

	Now          time.Time
	Own          Known[[]netip.Addr] // addresses of the interfaces
	Cloud        string              // that this machine is in, where it gives private addresses; empty for none
	Certificates []Certificate
}

// Wanted is what the configuration asks of the host.
type Wanted struct {
	Mode        string // of the kernel: auto, required, off
	Wish        kernel.XDPMode
	Instance    string
	Listeners   []netip.AddrPort // over UDP
	Serves      []netip.AddrPort // listeners of all transports
	Relays      []netip.Addr
	Addresses   []turn.Relay // the same, with what a NAT makes of them
	First, Last uint16       // relayed ports
	Allocations int          // at most; 0: one for each port
	Streams     int          // connections of clients at most, 0 where none are taken
	Secrets     bool         // there are time-limited credentials
	Retain      int64        // bytes that the log may take, 0 for any
	Data        string
}

// Daemon is what a running daemon says of itself.
type Daemon struct {
	Status admin.Status
	Kernel Known[kernel.Status]
}

// Process is what a process may do.
type Process struct {
	PID          int // 0: this command; unseen: the daemon, in another pid namespace
	Capabilities Known[uint64]
	Files        Known[Files]
	Elsewhere    []string             // kinds of namespaces in which the daemon is and this command is not
	Memory       Known[uint64]        // of its control group, bytes; errNothing: as much as there is
	BootOffset   Known[time.Duration] // of its time namespace
	PrivateMount Known[bool]          // its mount namespace is not that of init
}

// Files is how many files a process may open.
type Files struct{ Soft, Hard uint64 }

// Kernel is what the kernel can.
type Kernel struct {
	Release  Known[string]
	Features Known[[]kernel.Feature]
	Loaded   Known[kernel.Loaded]
	BTF      Known[bool]
	JIT      Known[int]
	BPFFS    Known[BPFFS]
	MapBytes Known[uint64]
}

// BPFFS is the file system of pins.
type BPFFS struct {
	Mounted bool
	Writes  error // why nothing can be pinned
}

// Link is an interface that the relay uses.
type Link struct {
	kernel.Candidate
	Abilities Known[Abilities]
	Queues    Known[Queues]
	Offloads  Known[map[string]Offload]
	CPUs      int
}

// Abilities are the XDP features of a device.
type Abilities uint64

// Abilities, as the kernel counts them (NETDEV_XDP_ACT).
const (
	CanXDP      Abilities = 1 << 0 // run a program natively
	CanRedirect Abilities = 1 << 1 // hand a frame of its own on
	CanTransmit Abilities = 1 << 2 // send what another device hands on
	CanBuffers  Abilities = 1 << 5 // receive frames in several buffers
	CanSendBufs Abilities = 1 << 6 // send such
)

// Queues are the pairs of queues a device has and could have.
type Queues struct{ Now, Most int }

// Offload is a feature of a device.
type Offload struct {
	On    bool
	Fixed bool // it cannot be changed
}

// Taken is an address that cannot be listened on.
type Taken struct {
	Address netip.AddrPort
	Err     error
}

// Clock is how the wall clock is.
type Clock struct {
	Unsynced bool
	Error    time.Duration // at most, by what keeps it right
	Written  time.Time     // when the log was written last, zero for never
}

// Certificate is what clients are shown.
type Certificate struct {
	File       string
	Err        error // why it cannot be read
	Names      []string
	Begin, End time.Time
	SelfSigned bool
	Weak       string // what of it clients do not take, empty for nothing
	Verified   error  // why this host does not
}

// Disk is where the log is.
type Disk struct {
	Free, Total int64 // bytes
	Log         int64 // bytes of the log's file
	Type        string
	Sync        time.Duration // median of an fdatasync
	SyncErr     error
}

// Open is a file that more may be done with than is good.
type Open struct {
	Path string
	Mode string
	To   string // to whom: o for others, go for the group too; empty: it is a directory for everybody
}

// Access says whether the data directory can be used.
type Access struct {
	UID       uint32   // its owner
	User      uint32   // who asks
	Error     error    // why it cannot be written
	Strangers []string // files in it that belong to somebody else than the directory
}
