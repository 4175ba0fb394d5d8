package admin

import (
	"context"
	"net/http"

	"turnstone/kernel"
	"turnstone/turn"
)

// Kernel is what the admin interface shows and mends of the kernel's side. Its methods yield
// kernel.ErrNothingPinned where userspace relays everything.
type Kernel interface {
	KernelStatus(ctx context.Context) (kernel.Status, error)
	KernelRows() ([]kernel.Row, error)
	KernelDiff(ctx context.Context) ([]kernel.Difference, error)
	KernelRepair(ctx context.Context) (kernel.Drift, error)
	Carries(ctx context.Context, id turn.AllocationID) ([]kernel.Carried, error)
}

// kernelRoutes adds what is about the kernel to mux.
func kernelRoutes(mux routes, k Kernel, o Operators) {
	mux.HandleFunc("GET /v1/kernel", func(w http.ResponseWriter, r *http.Request) {
		st, err := k.KernelStatus(r.Context())
		reply(w, st, err)
	})
	mux.HandleFunc("GET /v1/kernel/flows", func(w http.ResponseWriter, _ *http.Request) {
		rows, err := k.KernelRows()
		reply(w, rows, err)
	})
	mux.HandleFunc("GET /v1/kernel/diff", func(w http.ResponseWriter, r *http.Request) {
		d, err := k.KernelDiff(r.Context())
		reply(w, d, err)
	})
	mux.act(o, "POST /v1/kernel/repair", always("repair the kernel's maps"), func(w http.ResponseWriter, r *http.Request) {
		d, err := k.KernelRepair(r.Context())
		reply(w, d, err)
	})
	mux.HandleFunc("GET /v1/allocations/{id}/kernel", func(w http.ResponseWriter, r *http.Request) {
		id, err := allocationID(r)
		var out []kernel.Carried
		if err == nil {
			out, err = k.Carries(r.Context(), id)
		}
		reply(w, out, err)
	})
}

// KernelStatus asks how the kernel's side is.
func (c *Client) KernelStatus(ctx context.Context) (kernel.Status, error) {
	return call[kernel.Status](ctx, c, http.MethodGet, "/v1/kernel")
}

// KernelRows lists the flows in the kernel's maps.
func (c *Client) KernelRows(ctx context.Context) ([]kernel.Row, error) {
	return call[[]kernel.Row](ctx, c, http.MethodGet, "/v1/kernel/flows")
}

// KernelDiff holds the maps against the log.
func (c *Client) KernelDiff(ctx context.Context) ([]kernel.Difference, error) {
	return call[[]kernel.Difference](ctx, c, http.MethodGet, "/v1/kernel/diff")
}

// KernelRepair has everything compared at once, and put right.
func (c *Client) KernelRepair(ctx context.Context) (kernel.Drift, error) {
	return call[kernel.Drift](ctx, c, http.MethodPost, "/v1/kernel/repair")
}

// Carries says of each channel of an allocation whether the kernel relays it.
func (c *Client) Carries(ctx context.Context, id turn.AllocationID) ([]kernel.Carried, error) {
	return call[[]kernel.Carried](ctx, c, http.MethodGet, "/v1/allocations/"+id.String()+"/kernel")
}
