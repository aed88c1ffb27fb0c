package image

// InUse reports whether something holds the image of this digest by Use.
func (s *Store) InUse(digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pins[digest] > 0
}
