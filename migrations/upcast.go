package migrations

// Upcaster turns the body of an event of a retired kind into that of a present one.
type Upcaster func(body []byte) (kind uint16, newBody []byte, err error)

// upcasters by retired kind. None is retired yet.
var upcasters = map[uint16]Upcaster{}

// Upcast brings an event, a kind and its CBOR body, to its present form, in as many steps as it takes.
func Upcast(kind uint16, body []byte) (uint16, []byte, error) {
	for {
		up, old := upcasters[kind]
		if !old {
			return kind, body, nil
		}
		var err error
		if kind, body, err = up(body); err != nil {
			return kind, body, err
		}
	}
}
