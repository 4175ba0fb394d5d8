package turn

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestAnswersAreThoseOfTheLastSeconds holds answers against a list that is walked, with hashes that nearly all
// transactions share with others and numbers that wrap around.
func TestAnswersAreThoseOfTheLastSeconds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newAnswers()
		w.first = math.MaxUint32 - 5
		w.hash = func(t transaction) uint64 { return uint64(t.tx[0] % 3) }
		var model []remembered
		var now Moment
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now.Uptime += rapid.SampledFrom([]time.Duration{0, time.Second, 15 * time.Second}).Draw(t, "later")
			w.prune(now)
			for len(model) > 0 && model[0].until.Passed(now) {
				model = model[1:]
			}
			tx := transaction{tx: TransactionID{rapid.ByteMax(12).Draw(t, "tx")}}
			at := -1
			for i := range model {
				if model[i].transaction == tx {
					at = i
				}
			}
			got, known := w.recall(tx, now)
			if want := at >= 0 && !model[at].until.Passed(now); known != want || known && got != model[at].answer {
				t.Fatalf("recall %v: got %v, %v, want %v", tx.tx, got, known, want)
			}
			if rapid.Bool().Draw(t, "answer") {
				a := answer{lifetime: rapid.Uint32().Draw(t, "lifetime"), until: now.After(AnswerLifetime)}
				w.remember(tx, a, now)
				if at >= 0 {
					model[at].answer = a
				} else {
					model = append(model, remembered{transaction: tx, answer: a})
				}
			}
			if rapid.IntRange(0, 20).Draw(t, "drop") == 0 {
				w.drop()
			}
			if got := len(w.of) + len(w.clash); len(w.live()) != len(model) || got != len(model) {
				t.Fatalf("got %d answers and %d that are found, want %d", len(w.live()), got, len(model))
			}
		}
	})
}
