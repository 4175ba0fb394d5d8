package test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// TestProof shows the proof traces of a daemon that answers when it may, and of some that do not.
func TestProof(t *testing.T) {
	tx, other := transactionID([]byte(transactionMark+"aaaaaaaa")), transactionID([]byte(transactionMark+"bbbbbbbb"))
	page, meta := tracedWrite(8192, 0x02, tx), tracedWrite(4096, 0x04)
	const synced = `7 fdatasync(8<\x2f\x64\x2f\x6c\x6f\x67\x2e\x64\x62>) = 0`
	const failed = `7 fdatasync(8<\x2f\x64\x2f\x6c\x6f\x67\x2e\x64\x62>) = -1 EIO (Input/output error) (INJECTED)`
	const syncs = `7 fdatasync(8<\x2f\x64\x2f\x6c\x6f\x67\x2e\x64\x62> <unfinished ...>`
	const returns = `7 <... fdatasync resumed>) = 0`
	reply, refusal := tracedSend(0x0103, tx), tracedSend(0x0113, other)
	before, after, _ := strings.Cut(reply, "[")
	sends, sent := before+" <unfinished ...>", "9 <... sendmmsg resumed>["+after
	for _, row := range []struct {
		name  string
		lines []string
		want  string // part of the error; empty for none
	}{
		{"InOrder", []string{page, synced, meta, synced, reply}, ""},
		{"RefusalInOrder", []string{page, synced, meta, synced, refusal}, ""},
		{"Interleaved", []string{page, synced, meta, syncs, returns, reply}, ""},
		{"AfterLaterSync", []string{page, synced, meta, failed, synced, reply}, ""},
		{"ShownWhenItReturns", []string{page, synced, meta, synced, sends, sent}, ""},
		{"BeganWhileSyncing", []string{page, synced, meta, syncs, sends, returns, sent}, "leaves before"},
		{"NoSync", []string{page, meta, reply}, "before the pages"},
		{"BeforeMeta", []string{page, synced, reply, meta, synced}, "leaves before"},
		{"BeforeSecondSync", []string{page, synced, meta, reply, synced}, "leaves before"},
		{"WhileSyncing", []string{page, synced, meta, syncs, reply, returns}, "leaves before"},
		{"RefusalWhileSyncing", []string{page, synced, meta, syncs, refusal, returns}, "leaves before"},
		{"FirstSyncFailed", []string{page, failed, meta, synced, reply}, "leaves before"},
		{"SecondSyncFailed", []string{page, synced, meta, failed, reply}, "leaves before"},
		{"WrittenWhileSyncing", []string{page, synced, syncs, meta, returns, reply}, "leaves before"},
		{"NotInTheLog", []string{reply}, "leaves before"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newProof(map[transactionID]transactionID{other: tx})
			err := readTrace(strings.NewReader(strings.Join(row.lines, "\n")+"\n"), p.see)
			if row.want == "" && err != nil {
				t.Errorf("got %v, want no error", err)
			}
			if row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("got %v, want an error with %q", err, row.want)
			}
		})
	}
}

// tracedWrite is the line of a write of a page with flags to /d/log.db.
func tracedWrite(offset int64, flags uint16, txs ...transactionID) string {
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint16(b[8:], flags)
	for i, tx := range txs {
		copy(b[100+20*i:], tx[:])
	}
	return fmt.Sprintf(`7 pwrite64(8<\x2f\x64\x2f\x6c\x6f\x67\x2e\x64\x62>, "%s", 4096, %d) = 4096`, escape(b), offset)
}

// tracedSend is the line of a send of an empty STUN message of a type.
func tracedSend(kind uint16, tx transactionID) string {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = append(b, 0, 0, 0x21, 0x12, 0xA4, 0x42)
	return fmt.Sprintf(`9 sendmmsg(14<\x73>, [{msg_hdr={msg_iov=[{iov_base="%s", iov_len=20}]}, msg_len=20}], 1, 0) = 1`, escape(append(b, tx[:]...)))
}

func escape(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		fmt.Fprintf(&s, `\x%02x`, c)
	}
	return s.String()
}
