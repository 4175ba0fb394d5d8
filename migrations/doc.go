// Package migrations knows every form the store has had: numbered steps that
// bring the schema of a bbolt file to the present one, and upcasters that bring
// an old event to its present kind.
//
// Steps are never edited once released; a new form is a new step, with a fixture of
// the form before it in testdata. A file of a newer schema is refused.
package migrations
