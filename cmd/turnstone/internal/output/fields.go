package output

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Fields are names and values in an order of their own: an object in JSON, a cell
// of name=value elsewhere.
type Fields []Field

// Field is one of [Fields].
type Field struct {
	Name   string
	Value  any
	Detail bool // it is left out of tables
}

// MarshalJSON writes an object in the order of f.
func (f Fields) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, one := range f {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(one.Name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(one.Value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (f Fields) text(table bool) string {
	var parts []string
	for _, one := range f {
		if table && one.Detail {
			continue
		}
		text := Text(one.Value, table)
		if inner, ok := one.Value.(Fields); ok {
			text = "{" + inner.text(table) + "}"
		} else if list, ok := one.Value.([]Fields); ok {
			texts := make([]string, len(list))
			for i, l := range list {
				texts[i] = "{" + l.text(table) + "}"
			}
			text = "[" + strings.Join(texts, " ") + "]"
		} else if strings.ContainsAny(text, " \"=") {
			text = quoted(text)
		}
		parts = append(parts, one.Name+"="+text)
	}
	return strings.Join(parts, " ")
}

func quoted(s string) string {
	b, _ := json.Marshal(s) // strings always marshal
	return string(b)
}
