package admin

import (
	"net/http"
	"strconv"
)

// segmentKey is the key of an encrypted segment; it is nil where there is none.
type segmentKey struct {
	Key []byte `json:"key"`
}

// segmentKey hands out the key of a segment: the records of the log are streamed as they are stored, so that
// they can be verified, and whoever is let in here may read them.
func (s *Server) segmentKey(w http.ResponseWriter, r *http.Request) {
	segment, err := strconv.ParseUint(r.PathValue("segment"), 10, 64)
	var key segmentKey
	if err == nil {
		key.Key, err = s.log.Keys().Export(segment)
	}
	reply(w, key, err)
}
