package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"testing"

	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// drawEvent fills every field of an event of the kind with something. It goes by the type, so that a new
// field is drawn too.
func drawEvent(t *rapid.T, kind turn.Kind) turn.Event {
	for _, s := range samples {
		if s.event.Kind() == kind {
			v := reflect.New(reflect.TypeOf(s.event)).Elem()
			drawValue(t, v)
			return v.Interface().(turn.Event)
		}
	}
	t.Fatalf("kind %d has no sample", kind)
	return nil
}

func drawAddr(t *rapid.T) netip.Addr {
	if rapid.Bool().Draw(t, "ipv4") {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")))
	}
	return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr")))
}

func drawValue(t *rapid.T, v reflect.Value) {
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(drawAddr(t)))
		return
	case netip.AddrPort:
		if rapid.IntRange(0, 9).Draw(t, "valid") > 0 {
			v.Set(reflect.ValueOf(netip.AddrPortFrom(drawAddr(t), rapid.Uint16().Draw(t, "port"))))
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			drawValue(t, v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 3).Draw(t, "len"), 3))
		for i := range v.Len() {
			drawValue(t, v.Index(i))
		}
	case reflect.Array:
		reflect.Copy(v, reflect.ValueOf(rapid.SliceOfN(rapid.Byte(), v.Len(), v.Len()).Draw(t, "bytes")))
	case reflect.String:
		v.SetString(rapid.String().Draw(t, "text"))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		shift := rapid.IntRange(0, v.Type().Bits()-1).Draw(t, "shift")
		v.SetUint(rapid.Uint64().Draw(t, "uint") >> (64 - v.Type().Bits()) >> shift)
	case reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "int"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	default:
		t.Fatalf("cannot draw a %s", v.Type())
	}
}

func TestEveryKindSurvivesItsEncoding(t *testing.T) {
	for kind := range decoders {
		t.Run(reflect.TypeOf(sampleOf(kind)).Name(), rapid.MakeCheck(func(t *rapid.T) {
			e := drawEvent(t, kind)
			b, err := EncodeEvent(nil, e)
			if err != nil {
				t.Fatal(err)
			}
			if want := encodedByLibrary(t, e); !bytes.Equal(b, want) {
				t.Errorf("%#v is encoded as %x, the library makes it %x", e, b, want)
			}
			got, err := DecodeEvent(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(e, got, comparing); diff != "" {
				t.Errorf("decoded differently (-want +got):\n%s", diff)
			}
		}))
	}
}

func sampleOf(kind turn.Kind) turn.Event {
	for _, s := range samples {
		if s.event.Kind() == kind {
			return s.event
		}
	}
	return nil
}

// encodedByLibrary is the oracle of EncodeEvent.
func encodedByLibrary(t interface{ Fatal(...any) }, e turn.Event) []byte {
	b, err := encoding.Marshal([]any{e.Kind(), e})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// decodedByLibrary is the oracle of decodeHot.
func decodedByLibrary(b []byte) (turn.Event, error) {
	c := cursor{b: b}
	c.head(majorArray)
	kind := c.head(majorUint)
	decode, known := decoders[turn.Kind(kind)]
	if !known {
		return nil, ErrUnknownKind
	}
	return decode(c.b)
}

// FuzzDecodeEvent holds the decoder for the hot kinds against the library: what it accepts the
// library decodes to the same event, and what the library accepts in canonical form it does too.
func FuzzDecodeEvent(f *testing.F) {
	for _, s := range samples {
		b, err := EncodeEvent(nil, s.event)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0x82, 0x18, 0xff, 0xa0})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := DecodeEvent(b)
		if err != nil {
			return
		}
		want, err := decodedByLibrary(b)
		if err != nil {
			t.Fatalf("%x is decoded to %#v, the library says %v", b, got, err)
		}
		if diff := cmp.Diff(want, got, comparing); diff != "" {
			t.Fatalf("%x is decoded differently (-library +ours):\n%s", b, diff)
		}
		again, err := EncodeEvent(nil, got)
		if err != nil {
			t.Fatal(err)
		}
		canonical := encodedByLibrary(t, got)
		if !bytes.Equal(again, canonical) {
			t.Fatalf("%#v is encoded as %x, the library makes it %x", got, again, canonical)
		}
		back, err := DecodeEvent(canonical)
		if err != nil {
			t.Fatalf("decode %x, the canonical form of %x: %v", canonical, b, err)
		}
		if diff := cmp.Diff(got, back, comparing); diff != "" {
			t.Fatalf("the canonical form is decoded differently (-want +got):\n%s", diff)
		}
	})
}

func TestHotKindsNeedNoLibrary(t *testing.T) {
	hot := 0
	for _, s := range samples {
		body, ok := encodeHot(nil, s.event)
		if !ok {
			continue
		}
		hot++
		e, ok := decodeHot(s.event.Kind(), body, nil)
		if diff := cmp.Diff(s.event, e, comparing); !ok || diff != "" {
			t.Errorf("%s is not decoded by hand: %v\n%s", s.name, ok, diff)
		}
	}
	if hot < 9 {
		t.Errorf("%d samples are of hot kinds, want at least 9", hot)
	}
}

func TestZonesAreLeftToTheLibrary(t *testing.T) {
	zoned := netip.MustParseAddr("fe80::1%eth0")
	for _, e := range []turn.Event{
		turn.PermissionInstalled{Allocation: 1, Peer: zoned},
		turn.ChannelBound{Allocation: 1, Channel: 0x4000, Peer: netip.AddrPortFrom(zoned, 1)},
	} {
		got, err := EncodeEvent(nil, e)
		if err != nil {
			t.Fatal(err)
		}
		if want := encodedByLibrary(t, e); !bytes.Equal(got, want) {
			t.Errorf("%#v is encoded as %x, the library makes it %x", e, got, want)
		}
	}
}

// seal makes b, a record, look undamaged.
func seal(b []byte) []byte {
	if len(b) >= recordHeader {
		b = bytes.Clone(b)
		b[0] = recordFormat
		binary.BigEndian.PutUint32(b[1:], crc32.Checksum(b[5:], castagnoli))
	}
	return b
}

// FuzzDecodeRecord wants no panic, no absurd allocation, and of what is accepted that it is encoded to
// the same bytes.
func FuzzDecodeRecord(f *testing.F) {
	for _, r := range sampleRecords(f, 3) {
		f.Add(r)
	}
	f.Add(seal(append(make([]byte, recordHeader), 0xff, 0xff, 0xff, 0xff, 0x0f)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		b = seal(b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r, err := Decode(b, nil)
		runtime.ReadMemStats(&after)
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(1<<20+512*len(b)); got > most {
			t.Fatalf("decoding %d bytes allocated %d", len(b), got)
		}
		if err != nil {
			return
		}
		if len(r.Events) == 0 || r.Last() < r.First {
			t.Fatalf("a record of %d events at %d was accepted", len(r.Events), r.First)
		}
	})
}

// sampleRecords are n records in their stored form, as one log holds them.
func sampleRecords(t testing.TB, n int) [][]byte {
	t.Helper()
	var out [][]byte
	c, gen := chain{}, newTraffic(1, turn.NewState(), 20)
	for range n {
		b, err := c.encode(gen.record(8), nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

func TestRecordsRefuseWhatTheyAreNot(t *testing.T) {
	good := sampleRecords(t, 2)[1]
	edit := func(f func(b []byte) []byte) []byte { return seal(f(bytes.Clone(good))) }
	for name, tc := range map[string]struct {
		b    []byte
		want error // nil: a *CorruptError
	}{
		"empty":             {nil, ErrUnknownFormat},
		"newer-format":      {append([]byte{recordFormat + 1}, good[1:]...), ErrUnknownFormat},
		"short":             {good[:recordHeader-1], nil},
		"bad-crc":           {append(bytes.Clone(good), 0), nil},
		"no-events":         {edit(func(b []byte) []byte { binary.BigEndian.PutUint32(b[13:], 0); return b }), nil},
		"more-events":       {edit(func(b []byte) []byte { b[16]++; return b }), nil},
		"4-billion-events":  {edit(func(b []byte) []byte { binary.BigEndian.PutUint32(b[13:], 1<<32-1); return b }), nil},
		"something-follows": {edit(func(b []byte) []byte { return append(b, 0) }), nil},
		"long-length": {edit(func(b []byte) []byte {
			return append(append(b[:recordHeader:recordHeader], b[recordHeader]|0x80, 0), b[recordHeader+1:]...)
		}), nil},
		"huge-length":  {edit(func(b []byte) []byte { return binary.AppendUvarint(b[:recordHeader], 1<<63) }), nil},
		"unknown-kind": {edit(func(b []byte) []byte { return oneEvent(b, 0x82, 0x19, 0x03, 0xe7, 0xa0) }), ErrUnknownKind},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(tc.b, nil)
			var damage *CorruptError
			if tc.want == nil && !errors.As(err, &damage) {
				t.Errorf("got %v, want a *CorruptError", err)
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// oneEvent replaces the events of b by one in its stored form.
func oneEvent(b []byte, event ...byte) []byte {
	binary.BigEndian.PutUint32(b[13:], 1)
	return append(binary.AppendUvarint(b[:recordHeader], uint64(len(event))), event...)
}

func TestEventsRefuseUnknownFields(t *testing.T) {
	for name, b := range map[string][]byte{
		"field":      {0x82, 0x04, 0xa2, 0x01, 0x01, 0x18, 0x63, 0x01},
		"trailing":   {0x82, 0x04, 0xa1, 0x01, 0x01, 0x00},
		"no-array":   {0x04, 0xa1, 0x01, 0x01},
		"indefinite": {0x82, 0x04, 0xbf, 0x01, 0x01, 0xff},
		"kind-0":     {0x82, 0x00, 0xa0},
		"kind-65536": {0x82, 0x1a, 0x00, 0x01, 0x00, 0x00, 0xa0},
		"empty":      {},
	} {
		if e, err := DecodeEvent(b); err == nil {
			t.Errorf("%s: %x is decoded to %#v, want an error", name, b, e)
		}
	}
}

// FuzzDecodeState wants no panic, and that what is accepted is a state with one encoding.
func FuzzDecodeState(f *testing.F) {
	s := turn.NewState()
	gen := newTraffic(3, s, 5)
	for range 40 {
		b, err := EncodeState(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		gen.record(4)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		s, err := DecodeState(b)
		if err != nil {
			return
		}
		once, err := EncodeState(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeState(once)
		if err != nil {
			t.Fatalf("the encoding of a decoded state is refused: %v", err)
		}
		if twice, err := EncodeState(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("a state has two encodings (%v):\n%x\n%x", err, once, twice)
		}
	})
}

func TestDamagedStatesAreRefusedOrWhole(t *testing.T) {
	s := turn.NewState()
	gen := newTraffic(4, s, 50)
	for range 100 {
		gen.record(8)
	}
	good, err := EncodeState(s)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		b := bytes.Clone(good)
		for range 1 + rng.IntN(3) {
			b[rng.IntN(len(b))] = byte(rng.Uint32())
		}
		damaged, err := DecodeState(b[:len(b)-rng.IntN(2)*rng.IntN(len(b))])
		if err != nil {
			continue
		}
		if _, err := EncodeState(damaged); err != nil {
			t.Fatalf("a state that was accepted cannot be encoded: %v", err)
		}
	}
}
