// Package audit answers who relayed to whom, from where, when and how much.
//
// Invariants:
//
//   - Rows are a projection of the log: [Builder] is a pure fold, and the same records give the same rows.
//   - index.db holds the rows of what has ended, in blocks that are cut at places the log alone decides, and what is
//     still open behind the last of them. It can be made again from the log at any time, and is where it is missing,
//     damaged, or of another log or history.
//   - What is not in the index yet is folded when a question comes, so an answer is as of the end of the log.
//   - Nothing here waits for the writer of the log, or makes it wait.
package audit
