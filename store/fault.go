package store

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// guard runs f, which reads a mapped file that may be damaged: bbolt panics on
// pages that make no sense, and a file shorter than its pages say raises
// SIGBUS. Both become a CorruptError.
func guard(file string, f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		switch r := recover().(type) {
		case nil:
		case runtime.Error:
			if _, fault := r.(interface{ Addr() uintptr }); !fault && !insideBolt() {
				panic(r)
			}
			err = &CorruptError{File: file, Err: r}
		default:
			err = &CorruptError{File: file, Err: fmt.Errorf("%v", r)}
		}
	}()
	return f()
}

// insideBolt says whether the panic that is being recovered rose in bbolt.
func insideBolt() bool {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for {
		f, more := frames.Next()
		if len(f.Function) > 14 && f.Function[:14] == "go.etcd.io/bbo" {
			return true
		}
		if !more {
			return false
		}
	}
}
