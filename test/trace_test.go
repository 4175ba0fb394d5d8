package test

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/pion/stun/v3"
)

// straced runs a program under strace, which writes to file what the durability of replies can be told from.
func straced(strace, file string, more ...string) []string {
	return append([]string{
		strace, "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", "1100000", "-e", "signal=none", "-o", file,
		"-e", "trace=sendmmsg,sendmsg,sendto,pwrite64,fdatasync",
	}, more...)
}

// call is a system call in a trace. Lines are in the order in which strace saw its threads stop, and it lets a thread
// go on only after it wrote the line: what one thread did after another had let it is on a later line.
type call struct {
	name       string
	args       string
	result     string
	begin, end int // lines; end is 0 where the call did not return
}

var (
	callLine    = regexp.MustCompile(`^(\d+) +(\w+)\(`)
	resumedLine = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>`)
)

const unfinished = " <unfinished ...>"

// readTrace calls each with every call when it begins, and again when it has returned.
func readTrace(r io.Reader, each func(c *call, begins bool) error) error {
	open := map[string]*call{} // by thread
	lines := bufio.NewReaderSize(r, 1<<20)
	for line := 1; ; line++ {
		s, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s = strings.TrimSuffix(s, "\n")
		if m := resumedLine.FindStringSubmatch(s); m != nil {
			c := open[m[1]]
			if c == nil || c.name != m[2] {
				return fmt.Errorf("line %d: %s resumes what did not begin", line, m[2])
			}
			delete(open, m[1])
			c.finish(s[len(m[0]):], line)
			if err := each(c, false); err != nil {
				return err
			}
			continue
		}
		m := callLine.FindStringSubmatch(s)
		if m == nil {
			continue // the end of a thread
		}
		c := &call{name: m[2], begin: line}
		rest, cut := strings.CutSuffix(s[len(m[0]):], unfinished)
		if cut {
			c.args = rest
			open[m[1]] = c
		} else {
			c.finish(rest, line)
		}
		if err := each(c, true); err != nil {
			return err
		}
		if !cut {
			if err := each(c, false); err != nil {
				return err
			}
		}
	}
}

// finish takes the rest of a call that returned on a line.
func (c *call) finish(rest string, line int) {
	args, result, _ := cutLast(rest, " = ")
	c.args += strings.TrimRight(strings.TrimRight(args, " "), ")")
	c.result, c.end = result, line
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// file is the path of the descriptor that is the first argument.
func (c *call) file() string {
	_, rest, _ := strings.Cut(c.args, "<")
	path, _, _ := strings.Cut(rest, ">")
	return string(unescape(path))
}

// unescape reads what strace -xx writes.
func unescape(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, `\x`, ""))
	if err != nil {
		return nil
	}
	return b
}

// quoted are the strings among the arguments.
func (c *call) quoted() (all [][]byte) {
	parts := strings.Split(c.args, `"`)
	for i := 1; i < len(parts); i += 2 {
		all = append(all, unescape(parts[i]))
	}
	return all
}

// pageWrite is a write to the log's file.
type pageWrite struct {
	offset  int64
	txs     []transactionID // of the events in it
	meta    bool            // it is a page that says which pages are the log
	durable bool
	commit  []*pageWrite // meta: the pages that it makes the log
}

type transactionID [stun.TransactionIDSize]byte

// proof follows a trace and finds replies that left before what they rest on was durable: its
// page, then the meta page that makes it part of the log, each followed by an fdatasync that
// returned 0.
type proof struct {
	restsOn map[transactionID]transactionID // a refusal rests on what another transaction was granted

	syncing  map[*call][]*pageWrite // an fdatasync that has begun: the writes that it makes durable
	returned []*pageWrite           // written, not yet durable
	pending  []*pageWrite           // pages of a commit without its meta page yet
	durable  map[transactionID]int  // line from which it is
	written  map[transactionID]bool

	replies    map[transactionID]int // successes
	refusals   map[transactionID]int // of those in restsOn
	commits    int
	syncs      int
	failedData int // fdatasyncs of pages that failed
	failedMeta int // fdatasyncs of meta pages that failed
}

func newProof(restsOn map[transactionID]transactionID) *proof {
	return &proof{
		restsOn: restsOn, syncing: map[*call][]*pageWrite{}, durable: map[transactionID]int{}, written: map[transactionID]bool{},
		replies: map[transactionID]int{}, refusals: map[transactionID]int{},
	}
}

// prove reads a whole trace.
func (p *proof) prove(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return readTrace(f, p.see)
}

func (p *proof) see(c *call, begins bool) error {
	switch c.name {
	case "sendmmsg", "sendmsg", "sendto":
		if !begins { // strace shows what sendmmsg sends when it returns
			return p.send(c)
		}
	case "pwrite64":
		if !begins && strings.HasSuffix(c.file(), "/log.db") {
			return p.write(c)
		}
	case "fdatasync":
		switch {
		case !strings.HasSuffix(c.file(), "/log.db"):
		case begins:
			p.syncing[c] = p.returned
		default:
			p.sync(c)
		}
	}
	return nil
}

// write takes a write that has returned.
func (p *proof) write(c *call) error {
	tail := c.args[strings.LastIndex(c.args, `"`)+1:] // ", 4096, 8192", with ... before where strace cut the string
	var size, offset int64
	if _, err := fmt.Sscanf(strings.TrimLeft(tail, ".,"), "%d, %d", &size, &offset); err != nil {
		return fmt.Errorf("line %d: a write with %q: %w", c.begin, tail, err)
	}
	if c.result != strconv.FormatInt(size, 10) {
		return fmt.Errorf("line %d: a write of %d bytes yields %s", c.begin, size, c.result)
	}
	b := c.quoted()[0]
	if int64(len(b)) != size {
		return fmt.Errorf("line %d: the trace has %d of %d bytes", c.begin, len(b), size)
	}
	const pageSize, metaPage = 4096, 4 // bbolt: two meta pages at the front, told by a flag in the header
	w := &pageWrite{offset: offset, meta: offset < 2*pageSize && size == pageSize && binary.LittleEndian.Uint16(b[8:]) == metaPage}
	for rest := b; ; {
		i := strings.Index(string(rest), transactionMark)
		if i < 0 || len(rest) < i+stun.TransactionIDSize {
			break
		}
		w.txs = append(w.txs, transactionID(rest[i:]))
		rest = rest[i+stun.TransactionIDSize:]
	}
	kept := p.returned[:0:0]
	for _, old := range p.returned {
		if old.offset != offset {
			kept = append(kept, old)
		}
	}
	p.returned = append(kept, w)
	if !w.meta {
		p.pending = append(p.pending, w)
		return nil
	}
	p.commits++
	w.commit, p.pending = p.pending, nil
	for _, page := range w.commit {
		if !page.durable && len(page.txs) > 0 {
			return fmt.Errorf("line %d: a meta page is written before the pages that it names are durable", c.begin)
		}
	}
	return nil
}

// sync takes an fdatasync that has returned.
func (p *proof) sync(c *call) {
	covered := p.syncing[c]
	delete(p.syncing, c)
	p.syncs++
	if c.result != "0" {
		if len(p.pending) > 0 { // the commit ends here: its pages are nobody's
			p.failedData++
			p.pending = nil
		} else {
			p.failedMeta++
		}
		return
	}
	for _, w := range covered {
		w.durable = true
		if !w.meta {
			continue
		}
		for _, page := range w.commit {
			for _, tx := range page.txs {
				p.durable[tx] = c.end
			}
		}
	}
	kept := p.returned[:0:0]
	for _, w := range p.returned {
		if !w.durable {
			kept = append(kept, w)
		}
	}
	p.returned = kept
}

// send takes a send that has returned. What it sends may have left as soon as it began.
func (p *proof) send(c *call) error {
	for _, b := range c.quoted() {
		for len(b) >= 20 && binary.BigEndian.Uint32(b[4:]) == 0x2112A442 {
			n := 20 + int(binary.BigEndian.Uint16(b[2:]))
			if err := p.reply(c, binary.BigEndian.Uint16(b), transactionID(b[8:])); err != nil {
				return err
			}
			b = b[min(n, len(b)):]
		}
	}
	return nil
}

// durableBefore says whether what a transaction was granted was durable when c began.
func (p *proof) durableBefore(c *call, tx transactionID) bool {
	line, ok := p.durable[tx]
	return ok && line < c.begin
}

// reply takes a STUN message that is on its way.
func (p *proof) reply(c *call, kind uint16, tx transactionID) error {
	switch kind {
	case 0x0103, 0x0104, 0x0108, 0x0109: // success of Allocate, Refresh, CreatePermission, ChannelBind
		p.replies[tx]++
		if !p.durableBefore(c, tx) {
			return fmt.Errorf("line %d: reply %#04x to transaction %x leaves before its record is durable", c.begin, kind, tx)
		}
	case 0x0113:
		if on, rests := p.restsOn[tx]; rests {
			p.refusals[tx]++
			if !p.durableBefore(c, on) {
				return fmt.Errorf("line %d: the refusal of transaction %x leaves before transaction %x, on which it rests, is durable", c.begin, tx, on)
			}
		}
	}
	return nil
}
