package main

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"strconv"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

func logProve(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "prove SEQ...", Short: "Prove events of the log to somebody else", Args: cobra.MinimumNArgs(1),
		Long: "Prints a JSON document with events, each with the proof that it is in the tree of a signed checkpoint: one that the\nrunning daemon signs now, else the last one beside a log's file. turnstone log verify --proof checks it anywhere; it\nshows nothing of other events.",
		Example: `  turnstone log prove 4711 4720 > proof.json
  turnstone log verify --proof proof.json --key "$(cat relay1.key)"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.format != "" && o.format != output.JSON {
				return usageError("a proof is JSON: -o %s is not possible", o.format)
			}
			seqs := make([]turn.Seq, len(args))
			for i, a := range args {
				n, err := strconv.ParseUint(a, 10, 63)
				if err != nil || n == 0 {
					return usageError("%q is no sequence", a)
				}
				seqs[i] = turn.Seq(n)
			}
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			p, err := source.prove(cmd.Context(), seqs)
			if err != nil {
				return err
			}
			if err := p.Disclose(source.keys(cmd.Context())); err != nil {
				return source.explain(cmd.Context(), err)
			}
			return store.WriteProof(cmd.OutOrStdout(), p, readable)
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// readable is the form of events in proofs.
func readable(e turn.Event) any { return fields(reflect.ValueOf(e)) }

// verifyProof checks the proof in a file, - for stdin, and shows the events.
func verifyProof(cmd *cobra.Command, o *options, file string, keys []string) error {
	if len(keys) == 0 {
		return usageError("--proof needs --key: a proof is worth what the key is that it is checked with")
	}
	for _, k := range keys {
		if err := store.CheckKey(k); err != nil {
			return usageError("--key: %w", err)
		}
	}
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	return showProof(cmd, o, in, keys)
}

func showProof(cmd *cobra.Command, o *options, in io.Reader, keys []string) error {
	p, wrong := store.VerifyProof(in, readable, keys...)
	if wrong != nil {
		return exitError{errMismatch, wrong}
	}
	w := output.New(cmd.OutOrStdout(), o.format)
	for _, e := range p.Events {
		event, err := e.Event()
		if err != nil {
			return err
		}
		if err := w.Row(rowOf(turn.Record{First: e.Seq, Moment: e.Moment, Events: []turn.Event{event}}, 0)); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	c := p.Checkpoint
	fmt.Fprintf(cmd.ErrOrStderr(), "%d events of log %v are proved: the key signed the tree of its first %d events\n", len(p.Events), c.Log, c.Size)
	return nil
}
