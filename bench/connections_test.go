package main

import (
	"bytes"
	"testing"
)

// TestFramesOnStream cuts frames that were queued, padded to four bytes each, out of every piece of the stream.
func TestFramesOnStream(t *testing.T) {
	k := &connections{list: []*connection{{address: nth(clientAddresses, 0)}}}
	request := make([]byte, 24)
	request[1], request[3] = 1, 4
	frames := [][]byte{{0x40, 0, 0, 5, 1, 2, 3, 4, 5}, {0x40, 0, 0, 0}, request, {0x4f, 0xff, 0, 3, 6, 7, 8}}
	k.last = k.list[0]
	for _, f := range frames {
		if err := k.join(copy(k.next(), f)); err != nil {
			t.Fatal(err)
		}
	}
	stream := k.last.out
	if got, want := len(stream), 12+4+24+8; got != want {
		t.Fatalf("got %d bytes, want %d", got, want)
	}
	for at := range stream {
		c := &connection{in: stream[:at:at]}
		var got [][]byte
		for range 2 {
			for f := c.cut(); f != nil; f = c.cut() {
				got = append(got, f)
			}
			c.in = stream
		}
		if len(got) != len(frames) {
			t.Fatalf("got %d frames of a stream in two pieces, the first of %d bytes, want %d", len(got), at, len(frames))
		}
		for i := range got {
			if !bytes.Equal(got[i], frames[i]) {
				t.Errorf("got frame %x, want %x", got[i], frames[i])
			}
		}
	}
}
