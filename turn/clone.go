package turn

import "slices"

// Clone is a state of its own that equals s: what is applied to one does not change the other.
func (s *State) Clone() *State {
	im := s.Image()
	for i := range im.Allocations {
		a := &im.Allocations[i]
		a.Permissions, a.Channels, a.Usage = slices.Clone(a.Permissions), slices.Clone(a.Channels), slices.Clone(a.Usage)
		a.Until, a.Connections = slices.Clone(a.Until), slices.Clone(a.Connections)
	}
	im.Bans = slices.Clone(im.Bans)
	c, err := FromImage(im)
	must(err) // it is the image of a state
	return c
}
