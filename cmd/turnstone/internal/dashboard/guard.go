package dashboard

import (
	"net"
	"net/http"
	"net/netip"
)

// guard refuses what another site may have a browser ask: whatever names another host than an address of this machine
// (DNS rebinding), comes from another origin, or is not for reading while nobody may act. What is answered may not be framed,
// cached or read by another site, and the page loads nothing from elsewhere.
func guard(h http.Handler, acts func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		head.Set("X-Frame-Options", "DENY")
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Referrer-Policy", "no-referrer")
		head.Set("Cross-Origin-Opener-Policy", "same-origin")
		head.Set("Cross-Origin-Resource-Policy", "same-origin")
		head.Set("Cache-Control", "no-store")
		switch {
		case !namesUs(r):
			http.Error(w, "this host name is not the dashboard's: use its address, or localhost", http.StatusMisdirectedRequest)
		case !ownSite(r):
			http.Error(w, "another site asks", http.StatusForbidden)
		case !reads(r) && (r.Method != http.MethodPost || !acts()):
			head.Set("Allow", "GET, HEAD")
			http.Error(w, "the dashboard is for reading", http.StatusMethodNotAllowed)
		default:
			h.ServeHTTP(w, r)
		}
	})
}

// namesUs says whether the host of r is the address it came to, or one of loopback. The port may be another: it does,
// where it is forwarded.
func namesUs(r *http.Request) bool {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	} else if len(host) > 2 && host[0] == '[' {
		host = host[1 : len(host)-1]
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ip.IsLoopback() || ok && at.AddrPort().Addr().Unmap() == ip.Unmap()
}

// ownSite says whether r is of the page itself, or of somebody who opens it.
func ownSite(r *http.Request) bool {
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
		return false
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return true
	}
	return r.URL.Path == "/" && reads(r) && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

func reads(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }
