package main

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/turn"
)

// eventRow is an event as it is shown.
type eventRow struct {
	Seq   turn.Seq      `json:"seq"`
	Time  time.Time     `json:"time"`
	Kind  string        `json:"kind"`
	Event output.Fields `json:"event"`
}

// rowOf shows event i of r.
func rowOf(r turn.Record, i int) eventRow {
	v := reflect.ValueOf(r.Events[i])
	return eventRow{Seq: r.First + turn.Seq(i), Time: r.Moment.WallTime(), Kind: v.Type().Name(), Event: fields(v)}
}

// details are the fields that a table leaves out: they are the same in all events, or mean something to machines only.
var details = map[string]bool{
	"tx": true, "transport": true, "realm": true, "server": true, "protocol": true,
	"proof": true, "stored": true, "key": true, "checkpoint": true,
}

// fields are the fields of a struct under their names in lower case, what is empty left out.
func fields(v reflect.Value) output.Fields {
	out := output.Fields{}
	for i := range v.NumField() {
		name := snake(v.Type().Field(i).Name)
		if f := v.Field(i); (!f.IsZero() || name == "uid") && (name != "uid" || f.Uint() != turn.NoUID) { // 0 is root
			out = append(out, output.Field{Name: name, Value: plain(f), Detail: details[name]})
		}
	}
	return out
}

// plain is a value in a form that JSON and people can read.
func plain(v reflect.Value) any {
	switch {
	case v.Type() == reflect.TypeFor[turn.FiveTuple](), v.Type() == reflect.TypeFor[turn.Count]():
		return fields(v)
	case v.Kind() == reflect.Array && v.Type().Elem().Kind() == reflect.Uint8 && !v.Type().Implements(reflect.TypeFor[fmt.Stringer]()):
		b := make([]byte, v.Len())
		reflect.Copy(reflect.ValueOf(b), v)
		return hex.EncodeToString(b)
	case v.Type() == reflect.TypeFor[[][32]byte]():
		list := make([]any, v.Len())
		for i := range list {
			list[i] = plain(v.Index(i))
		}
		return list
	case v.Kind() == reflect.Slice && (v.Type().Elem() == reflect.TypeFor[turn.Refusal]() || v.Type().Elem() == reflect.TypeFor[turn.SettingChange]() ||
		v.Type().Elem() == reflect.TypeFor[turn.Attempt]() || v.Type().Elem() == reflect.TypeFor[turn.Relay]()):
		list := make([]output.Fields, v.Len())
		for i := range list {
			list[i] = fields(v.Index(i))
		}
		return list
	}
	return v.Interface()
}

// snake is a Go name as the output has it: FiveTuple is five_tuple.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 && !unicode.IsUpper(rune(name[i-1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
