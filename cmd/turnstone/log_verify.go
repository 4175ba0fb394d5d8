package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"turnstone/audit"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

type reportRow struct {
	Records     uint64       `json:"records"`
	Events      uint64       `json:"events"`
	Bytes       uint64       `json:"bytes"`
	Last        turn.Seq     `json:"last"`
	Chain       string       `json:"chain"`
	Root        string       `json:"root"`
	State       string       `json:"state,omitempty"`
	Checkpoints uint64       `json:"checkpoints"`
	Index       turn.Seq     `json:"index,omitempty"` // the event up to which the index for audits was held against the log; 0: there is none
	Findings    []findingRow `json:"findings" table:"-"`
}

// findingRow is something that is wrong, and where.
type findingRow struct {
	What    string   `json:"what"`
	Segment uint64   `json:"segment,omitempty"`
	Event   turn.Seq `json:"event,omitempty"`
	File    string   `json:"file"`
	Offset  *int64   `json:"offset,omitempty"`
	Problem string   `json:"problem"`
}

// verification is what log verify is asked for.
type verification struct {
	proof       string
	keys        []string
	checkpoints []string
}

func logVerify(o *options) *cobra.Command {
	var v verification
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that the log is what was written", Args: cobra.NoArgs,
		Long: "Checks every record (CRC-32C, gapless sequences, hash chain, RFC 6962 tree heads), those of archives too, that all\nevents decode and fold, that each snapshot is the fold of the records before it, the signed checkpoints in the data\ndirectory, and what the kernel's maps know of the log; of a file that no daemon has open also its pages, the file\ntree and the index for audits. With --key and --checkpoints it holds the log against what was kept elsewhere. Says\nall that is wrong, and where, and then exits 3.",
		Example: `  turnstone log verify
  turnstone log verify --db copy-of-log.db && echo good
  turnstone log verify --key "$(cat relay1.key)" --checkpoints relay1.checkpoints -o json
  turnstone log verify --proof proof.json --key "$(cat relay1.key)" -o table`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if v.proof != "" {
				return verifyProof(cmd, o, v.proof, v.keys)
			}
			return v.run(cmd, o)
		},
	}
	cmd.Flags().StringVar(&v.proof, "proof", "", "Check the proof in this `FILE` (- for stdin), by the key alone: no log is needed.")
	cmd.Flags().StringArrayVar(&v.keys, "key", nil, "`KEY`, as turnstone log key prints it, that must have signed; several are possible. Default: that in the data directory.")
	cmd.Flags().StringArrayVar(&v.checkpoints, "checkpoints", nil, "`FILE` of checkpoints that were kept elsewhere, to hold the log against; several are possible.")
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

func (v *verification) run(cmd *cobra.Command, o *options) error {
	for _, k := range v.keys {
		if err := store.CheckKey(k); err != nil {
			return usageError("--key: %w", err)
		}
	}
	source, err := o.openLog(cmd.Context())
	if damage := damageOf(err); damage != nil {
		return showExamination(cmd, o, &store.Examination{Findings: []store.Finding{wholeFile("page", damage)}}, damage.File, 0)
	}
	if err != nil {
		return err
	}
	with, remarks, err := v.evidence(cmd.Context(), o, source)
	if err != nil {
		return err
	}
	x, err := source.examine(cmd.Context(), with)
	if err != nil {
		return err
	}
	x.Remarks = append(remarks, x.Remarks...)
	wrong := verifySlice(cmd, source, v.keys)
	var index audit.Verified
	if x.State != nil { // else the log itself is damaged
		index, err = source.verifyIndex(cmd.Context())
	}
	damage := damageOf(err)
	switch {
	case withoutKey(err) != nil:
		x.Remarks = append(x.Remarks, fmt.Sprintf("the index for audits was not held against the log: %v", err))
	case damage != nil:
		x.Findings = append(x.Findings, wholeFile("index", damage))
	default:
		wrong = errors.Join(wrong, err)
	}
	return errors.Join(showExamination(cmd, o, &x, o.nameOf(source), index.Last), wrong)
}

// damageOf is the damage that err tells of, nil for none.
func damageOf(err error) *store.CorruptError {
	var damage *store.CorruptError
	errors.As(err, &damage)
	return damage
}

// wholeFile is the finding that a file is damaged, of which no more is known.
func wholeFile(what string, damage *store.CorruptError) store.Finding {
	return store.Finding{What: what, Seq: damage.Seq, File: damage.File, Offset: -1, Err: damage}
}

// nameOf is what findings call the log.
func (o *options) nameOf(s *logSource) string {
	if s.client != nil {
		return "the daemon's log"
	}
	return s.reader.File()
}

// evidence gathers what the log is held against: what lies beside it, what was named, and what the kernel knows. It is
// gathered before the log is read, which may grow meanwhile.
func (v *verification) evidence(ctx context.Context, o *options, s *logSource) (e store.Evidence, remarks []string, err error) {
	var dir string
	e.Keys = v.keys
	if s.client != nil {
		st, err := s.client.Status(ctx)
		if err != nil {
			return e, nil, err
		}
		dir = st.Data
	} else {
		dir = filepath.Dir(s.reader.File())
		e.Tree = dir
	}
	beside := filepath.Join(dir, store.CheckpointsName)
	files := v.checkpoints
	if _, err := os.Stat(beside); err == nil {
		files = append([]string{beside}, files...)
	}
	if len(files) == 0 {
		remarks = append(remarks, "there are no checkpoints to hold the log against")
	} else if len(e.Keys) == 0 {
		if e.Keys, err = v.ownKey(ctx, s, dir); err != nil {
			remarks = append(remarks, err.Error())
		}
	}
	for _, name := range files {
		f, err := store.ReadNotes(name)
		if err != nil {
			return e, nil, err
		}
		if len(e.Keys) == 0 && name != beside {
			return e, nil, usageError("--checkpoints needs --key: there is none beside the log")
		}
		if len(e.Keys) > 0 {
			e.Checkpoints = append(e.Checkpoints, f)
		}
	}
	if o.db == "" {
		witness, remark := o.kernelWitness()
		e.Witnesses = append(e.Witnesses, witness...)
		remarks = append(remarks, remark...)
	}
	return e, remarks, nil
}

// ownKey is the key of checkpoints that is beside the log. Why there is none is an error.
func (v *verification) ownKey(ctx context.Context, s *logSource, dir string) ([]string, error) {
	if s.client != nil {
		signed, err := s.client.Checkpoint(ctx)
		if err != nil {
			return nil, fmt.Errorf("the checkpoints were not looked at: %w", err)
		}
		return []string{signed.Key}, nil
	}
	k, err := store.ReadCheckpointKey(dir)
	if err != nil {
		return nil, fmt.Errorf("the checkpoints were not looked at, for want of --key: %w", err)
	}
	return []string{k.Public()}, nil
}

// kernelWitness is what the kernel's maps are made of, where they can be read.
func (o *options) kernelWitness() ([]store.Witness, []string) {
	c, err := o.located()
	if err != nil {
		return nil, nil
	}
	p, err := kernel.Inspect(kernel.DefaultRoot, c.Kernel.Instance)
	switch {
	case errors.Is(err, kernel.ErrNothingPinned):
		return nil, nil
	case err != nil:
		return nil, []string{fmt.Sprintf("the kernel's maps were not looked at, which takes root: %v", err)}
	case p.Applied == 0:
		return nil, nil
	}
	return []store.Witness{{Name: "the kernel", Log: p.Log, Epoch: p.Epoch, Seq: p.Applied, Chain: p.Chain}}, nil
}

// showExamination writes what was found, and is an error where something is wrong.
func showExamination(cmd *cobra.Command, o *options, x *store.Examination, name string, index turn.Seq) error {
	row := reportRow{
		Records: x.Records, Events: x.Events, Bytes: x.Bytes, Last: x.Last, Chain: x.Chain.String(), Root: x.Root.String(),
		Checkpoints: x.Checkpoints, Index: index, Findings: []findingRow{},
	}
	remarks := x.Remarks
	if x.Unread > 0 {
		remarks = append(remarks, fmt.Sprintf("%d events were not folded, for a key is missing, or what lies before them is damaged or gone: all from %d on were", x.Unread, x.ReadFrom))
	}
	if x.State != nil {
		var err error
		if row.State, err = stateDigest(x.State); err != nil {
			return err
		}
	}
	var wrong []error
	for _, f := range x.Findings {
		one := findingRow{What: f.What, Segment: f.Segment, Event: f.Seq, File: f.File, Problem: f.Err.Error()}
		text := one.Problem
		if f.File == "" {
			one.File = name
		} else if damageOf(f.Err) == nil { // which says where
			text = f.File + ": " + text
		}
		if f.Segment > 0 {
			text += fmt.Sprintf(", in segment %d", f.Segment)
		}
		if f.Offset >= 0 {
			one.Offset = &f.Offset
			text += fmt.Sprintf(", at byte %d of %s", f.Offset, filepath.Base(one.File))
		}
		row.Findings = append(row.Findings, one)
		wrong = append(wrong, errors.New(text))
	}
	if err := output.Object(cmd.OutOrStdout(), o.format, row); err != nil {
		return err
	}
	if err := output.Section(cmd.OutOrStdout(), o.format, "findings", row.Findings); err != nil {
		return err
	}
	for _, r := range remarks {
		cmd.PrintErrf("remark: %s\n", r)
	}
	if len(wrong) > 0 {
		return exitError{errMismatch, errors.Join(wrong...)}
	}
	return nil
}

// stateDigest is the SHA-256 of the one encoding of s.
func stateDigest(s *turn.State) (string, error) {
	b, err := store.EncodeState(s)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}
