package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// LoadKey is the secret NAME of size bytes in dir/keys, which is drawn when it
// is first asked for. It is durable when LoadKey returns.
func LoadKey(dir, name string, size int) ([]byte, error) {
	keys := filepath.Join(dir, keysName)
	if err := makeDir(keys); err != nil {
		return nil, fmt.Errorf("load key %s: %w", name, err)
	}
	file := filepath.Join(keys, name)
	key, err := os.ReadFile(file)
	if err == nil {
		if len(key) != size {
			return nil, fmt.Errorf("load key %s: %d bytes, want %d", file, len(key), size)
		}
		return key, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("load key: %w", err)
	}
	key = make([]byte, size)
	rand.Read(key)
	return key, writeKey(file, key)
}

// writeKey puts key in place whole or not at all.
func writeKey(file string, key []byte) error {
	err := writeWhole(file, func(w io.Writer) error {
		_, err := w.Write(key)
		return err
	})
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	return nil
}

// writeWhole has the file name, mode 0600, be what write writes: whole and durable, or not at all.
func writeWhole(name string, write func(io.Writer) error) error {
	f, err := replaceWhole(name, 0o600, write)
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	return err
}

// replaceWhole is writeWhole for a file that is to be written on. It is nil where the old file is still in its place.
func replaceWhole(name string, mode os.FileMode, write func(io.Writer) error) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(name), freshPrefix+"*")
	if err != nil {
		return nil, err
	}
	if err = errors.Join(write(f), f.Chmod(mode), f.Sync()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, syncDir(filepath.Dir(name))
}
