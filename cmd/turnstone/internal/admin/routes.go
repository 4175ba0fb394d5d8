package admin

import "net/http"

// routes are a mux that knows what it serves.
type routes struct {
	*http.ServeMux
	patterns *[]string
}

func newRoutes() routes { return routes{http.NewServeMux(), new([]string)} }

// HandleFunc is [http.ServeMux.HandleFunc].
func (r routes) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	*r.patterns = append(*r.patterns, pattern)
	r.ServeMux.HandleFunc(pattern, h)
}
