package store

import (
	"bytes"
	"reflect"
	"testing"

	shape "turnstone/internal/shape/calls"
	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// ordinary takes from an element what few have, so that it is written by hand.
func ordinary(t *rapid.T, a *turn.AllocationImage) {
	if rapid.Bool().Draw(t, "ordinary") {
		a.Until, a.Token, a.Connections, a.Next, a.Adrift, a.Spare = nil, nil, nil, turn.FiveTuple{}, false, false
		a.Ticket = rapid.Uint32Max(3).Draw(t, "ticket")
	}
}

func TestAllocationImagesAreEncodedAsTheLibraryDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		asLibrary(t, encodeAllocation, (*cursor).allocationImage, ordinary)
	})
}

func TestAnswerImagesAreEncodedAsTheLibraryDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		asLibrary(t, encodeAnswer, (*cursor).answerImage, func(t *rapid.T, a *turn.AnswerImage) {
			if rapid.Bool().Draw(t, "ordinary") {
				a.Token, a.Family, a.Code = turn.ReservationToken{}, 0, 0
				a.Ticket = rapid.Uint32Max(3).Draw(t, "ticket")
			}
		})
	})
}

// asLibrary draws a list, and compares what is made of it by hand and by the library, both ways.
func asLibrary[T any](t *rapid.T, hot func([]byte, *T) ([]byte, bool), read func(*cursor, *T), amend func(*rapid.T, *T)) {
	var list []T
	for range rapid.IntRange(0, 4).Draw(t, "elements") {
		var one T
		drawValue(t, reflect.ValueOf(&one).Elem())
		amend(t, &one)
		list = append(list, one)
	}
	if list == nil {
		list = []T{}
	}
	got, err := encodeImages(list, hot)
	if err != nil {
		t.Fatal(err)
	}
	want, err := encoding.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%#v is encoded as %x, the library makes it %x", list, got, want)
	}
	var back []T
	if err := decoding.Unmarshal(want, &back); err != nil {
		t.Fatal(err)
	}
	decoded, err := decodeImages(got, nil, read)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(back, decoded, comparing); diff != "" {
		t.Errorf("decoded differently (-library +by hand):\n%s", diff)
	}
}

// FuzzDecodeImages holds the decoder of allocations against the library: they take and refuse the same.
func FuzzDecodeImages(f *testing.F) {
	for _, s := range shapedState().Image().Allocations[:20] {
		b, err := encodeImages([]turn.AllocationImage{s}, encodeAllocation)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0xf6})
	f.Add([]byte{0x81, 0xa0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var want []turn.AllocationImage
		refused := decoding.Unmarshal(b, &want)
		got, err := decodeImages(b, nil, (*cursor).allocationImage)
		if (err != nil) != (refused != nil) {
			t.Fatalf("%x: got %v, the library says %v", b, err, refused)
		}
		if diff := cmp.Diff(want, got, comparing); err == nil && diff != "" {
			t.Errorf("%x is decoded differently (-library +by hand):\n%s", b, diff)
		}
	})
}

func TestStatesAreEncodedAsTheLibraryDoes(t *testing.T) {
	s := shapedState()
	want, err := encoding.Marshal(s.Image())
	if err != nil {
		t.Fatal(err)
	}
	got, err := EncodeState(s)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("a state of %d allocations is encoded otherwise than the library does", s.Len())
	}
	back, err := DecodeState(got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Image(), back.Image(), comparing); diff != "" {
		t.Errorf("decoded differently (-want +got):\n%s", diff)
	}
}

// shapedState is the state of a relay in the middle of its day.
func shapedState() *turn.State {
	c := shape.New(shape.Options{Seed: 1, RestartEvery: 5_000})
	for c.State().Seq() < 20_000 {
		c.Next()
	}
	return c.State()
}
