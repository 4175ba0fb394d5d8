package store

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"turnstone/turn"
)

// fixtures are files of every schema there was, with what they fold to.
var fixtures = map[string]string{
	"schema-1.db": "b8f75ec59933e79892794b8ca24b6987f3404e7257640f1ce9c8d0f274bb9184",
}

func TestFilesOfEverySchemaFoldToTheSame(t *testing.T) {
	for name, want := range fixtures {
		b, err := os.ReadFile(filepath.Join("..", "migrations", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		writeFile(t, dir, b)
		l := openTest(t, dir, Options{})
		s := l.State()
		sum := sha256.Sum256([]byte(encoded(t, s)))
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s folds to %s, want %s", name, got, want)
		}
		appendTest(t, l, s, at(1<<20), turn.ServerStopped{Signal: "terminated"}) // and goes on
	}
}
